package cli

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/opencontainers/runtime-spec/specs-go/features"

	"caisson/internal/cgroup"
	"caisson/internal/oci"
)

// checkRuntimes looks at the OCI runtime that is configured and at the others
// that people use.
func (d *doctor) checkRuntimes(ctx context.Context) {
	names := []string{d.cfg.Runtime.Default}
	for _, other := range []string{"runc", "crun"} {
		if filepath.Base(d.cfg.Runtime.Default) != other {
			names = append(names, other)
		}
	}
	for i, name := range names {
		path, err := oci.Find(name)
		switch {
		case err != nil && i == 0:
			d.fail("OCI runtime "+filepath.Base(name), "install it (Debian: apt-get install runc), or name another in [runtime] of caissond's configuration", "the default one, and not in PATH")
		case err != nil:
			// Nobody asked for it.
		default:
			feats, _ := oci.Features(ctx, path) // nil: it has no such command
			d.judgeRuntime(name, runtimeVersion(ctx, path), feats, cgroup.CurrentMode(), i == 0)
		}
	}
}

// runtimeVersion is the first line of what the runtime says, such as "runc version 1.1.5".
func runtimeVersion(ctx context.Context, path string) string {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	// crun makes its directory whatever it is asked.
	dir, err := os.MkdirTemp("", "caisson-doctor")
	if err != nil {
		return ""
	}
	defer os.RemoveAll(dir)
	cmd := exec.CommandContext(ctx, path, "--version")
	cmd.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+dir)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	if err != nil {
		return ""
	}
	first, _, _ := strings.Cut(string(out), "\n")
	return strings.TrimSpace(first)
}

func (d *doctor) judgeRuntime(name, version string, feats *features.Features, mode cgroup.Mode, isDefault bool) {
	check := "OCI runtime " + filepath.Base(name)
	found := version
	if isDefault {
		found += ", the default"
	}
	idmap := feats != nil && feats.Linux != nil && feats.Linux.MountExtensions != nil &&
		feats.Linux.MountExtensions.IDMap != nil && feats.Linux.MountExtensions.IDMap.Enabled != nil &&
		*feats.Linux.MountExtensions.IDMap.Enabled
	switch {
	case version == "":
		d.fail(check, "install it again: `"+name+" --version` does not work", "it does not run")
	case strings.HasPrefix(version, "crun") && mode == cgroup.Hybrid && isDefault:
		d.fail(check, "make runc the default, or boot with cgroup v2 (systemd.unified_cgroup_hierarchy=1)", "%s; it refuses hosts with hybrid cgroups, such as this", found)
	case strings.HasPrefix(version, "crun") && mode == cgroup.Hybrid:
		d.warn(check, "use runc, or boot with cgroup v2 (systemd.unified_cgroup_hierarchy=1)", "%s; it refuses hosts with hybrid cgroups, such as this", found)
	case !idmap:
		d.warn(check, "for volumes in pods with a user namespace, use runc 1.2 or a newer crun", "%s; it cannot mount with mapped ids", found)
	default:
		d.ok(check, "%s", found)
	}
}

func (d *doctor) checkCNI() {
	dir, bins := d.cfg.Network.CNIConfDir, d.cfg.Network.CNIBinDirs
	files, err := libcni.ConfFiles(dir, []string{".conf", ".conflist", ".json"})
	if err != nil {
		d.fail("CNI configuration", "make the directory readable", "%v", err)
		return
	}
	slices.Sort(files)
	if len(files) == 0 {
		d.warn("CNI configuration", "install a network add-on, or put a *.conflist there; until then only pods on the host's network run", "none in %s", dir)
		return
	}
	// The first in order of name is the one that is used.
	list, err := loadCNI(files[0])
	if err != nil {
		d.fail("CNI configuration", "mend the file, or remove it", "%s: %v", files[0], err)
		return
	}
	var missing []string
	for _, p := range list.Plugins {
		if !slices.ContainsFunc(bins, func(bin string) bool { return exists(filepath.Join(bin, p.Type)) }) {
			missing = append(missing, p.Type)
		}
	}
	if len(missing) > 0 {
		d.fail("CNI plugins", "install them there (Debian: apt-get install containernetworking-plugins, in /usr/lib/cni)",
			"network %s needs %s, not in %s", list.Name, strings.Join(missing, ", "), strings.Join(bins, " or "))
		return
	}
	d.ok("CNI configuration", "network %s of %s, plugins installed", list.Name, files[0])
}

// maxCNIConfig bounds a file that a person or an add-on wrote.
const maxCNIConfig = 1 << 20

// cniNetwork is what counts of a CNI configuration; a *.conf has one plugin and
// no list.
type cniNetwork struct {
	Name    string      `json:"name"`
	Type    string      `json:"type"`
	Plugins []cniPlugin `json:"plugins"`
}

type cniPlugin struct {
	Type string `json:"type"`
}

func loadCNI(path string) (*cniNetwork, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var n cniNetwork
	if err := json.NewDecoder(io.LimitReader(f, maxCNIConfig)).Decode(&n); err != nil {
		return nil, err
	}
	if n.Type != "" {
		n.Plugins = append(n.Plugins, cniPlugin{n.Type})
	}
	if n.Name == "" || len(n.Plugins) == 0 {
		return nil, errors.New("it names no network, or no plugin")
	}
	return &n, nil
}
