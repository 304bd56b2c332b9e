package engine

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

	"github.com/containerd/containerd/v2/plugins/snapshots/overlay/overlayutils"
	"github.com/containerd/log"
	"github.com/containerd/platforms"
	"golang.org/x/sys/unix"
)

// probe looks at what the machine lacks, says so in the log, and returns the
// plugin settings that make containerd work all the same. root is where the
// engine keeps its data.
func probe(ctx context.Context, root string, cfg Config) table {
	out := table{}
	if !hasCapability(unix.CAP_SYS_RESOURCE) {
		log.G(ctx).Warn("CAP_SYS_RESOURCE is missing: OOM scores below this daemon's are raised to it (restrict_oom_score_adj)")
		merge(out, table{pluginRuntime: table{"restrict_oom_score_adj": true}})
	}
	if err := overlayutils.Supported(root); err != nil {
		log.G(ctx).WithError(err).WithField("root", root).Warn("overlayfs does not work below the root directory: images are unpacked with the native snapshotter, which copies them")
		merge(out, nativeSnapshotter())
	}
	probeCNI(ctx, cfg.CNIConfDir)
	probeShim(ctx)
	return out
}

// nativeSnapshotter names it wherever containerd has a default of its own.
func nativeSnapshotter() table {
	const native = "native"
	return table{
		pluginImages: table{"snapshotter": native},
		pluginTransfer: table{"unpack_config": []any{table{
			"platform":    platforms.Format(platforms.DefaultSpec()),
			"snapshotter": native,
			"differ":      "walking",
		}}},
	}
}

func probeCNI(ctx context.Context, dir string) {
	if dir == "" {
		return
	}
	entries, err := os.ReadDir(dir)
	if err != nil && !os.IsNotExist(err) {
		log.G(ctx).WithError(err).Warn("CNI configurations cannot be listed")
		return
	}
	for _, e := range entries {
		if slices.Contains([]string{".conf", ".conflist", ".json"}, filepath.Ext(e.Name())) {
			return
		}
	}
	log.G(ctx).WithField("dir", dir).Info("no CNI configuration: CRI is not ready for pods with a network of their own until one is there")
}

// probeShim looks for the shim binaries where containerd will.
func probeShim(ctx context.Context) {
	if !installed("containerd-shim-caisson-v2") {
		log.G(ctx).Error("containerd-shim-caisson-v2 is neither in PATH nor beside this executable: no task can be started")
	}
	if !installed("containerd-shim-runc-v2") {
		log.G(ctx).Info("containerd-shim-runc-v2 is not installed: the CRI handler runc, and the runtime io.containerd.runc.v2, do not work")
	}
}

func installed(name string) bool {
	if _, err := exec.LookPath(name); err == nil {
		return true
	}
	self, err := os.Executable()
	if err != nil {
		return false
	}
	_, err = os.Stat(filepath.Join(filepath.Dir(self), name))
	return err == nil
}

// hasCapability says whether c is effective in this process. If the kernel
// does not tell, it is taken to be there, as on an ordinary machine.
func hasCapability(c uint) bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return true
	}
	return data[c/32].Effective&(1<<(c%32)) != 0
}
