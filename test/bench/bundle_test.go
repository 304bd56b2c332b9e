package bench

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"caisson/test/image"
)

// makeBundle makes a bundle of the test image, with what CRI's containers of a pod on
// the host's network have: containerd's default specification, and limits. The
// container waits until it is killed.
func makeBundle(t *testing.T, cgroup string) string {
	t.Helper()
	dir := t.TempDir()
	root := filepath.Join(dir, "rootfs")
	fail := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	fail(os.Mkdir(root, 0o755))
	var files bytes.Buffer
	fail(image.RootFS(&files, image.Options{}))
	_, err := archive.Apply(t.Context(), root, &files)
	fail(err)
	spec, err := oci.GenerateSpec(namespaces.WithNamespace(t.Context(), "bench"), nil, &containers.Container{ID: "c"},
		oci.WithRootFSPath("rootfs"), oci.WithProcessArgs("/bin/sleep", "1000000"), oci.WithHostNamespace(specs.NetworkNamespace),
		oci.WithCgroup(cgroup), oci.WithMemoryLimit(64<<20), oci.WithCPUShares(256),
	)
	fail(err)
	spec.Version = "1.0.2" // Debian's crun refuses later ones
	data, err := json.Marshal(spec)
	fail(err)
	fail(os.WriteFile(filepath.Join(dir, "config.json"), data, 0o600))
	return dir
}

// hierarchies are the directories of the cgroup hierarchies, each once: several names
// can lead to one.
func hierarchies() (dirs []string) {
	for _, pattern := range []string{"/sys/fs/cgroup/cgroup.procs", "/sys/fs/cgroup/*/cgroup.procs"} {
		files, _ := filepath.Glob(pattern) // the patterns are right
		for _, file := range files {
			dir, err := filepath.EvalSymlinks(filepath.Dir(file))
			if err == nil && !slices.Contains(dirs, dir) {
				dirs = append(dirs, dir)
			}
		}
		if len(dirs) > 0 {
			break // With cgroup v2 there is one.
		}
	}
	return dirs
}

// removeGroup removes an empty cgroup from the hierarchies where it is.
func removeGroup(name string) error {
	var errs []error
	for _, dir := range hierarchies() {
		if err := unix.Rmdir(filepath.Join(dir, name)); err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("remove cgroup %s in %s: %w", name, dir, err))
		}
	}
	return errors.Join(errs...)
}
