package daemon

import (
	"context"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/runc/options"
	_ "github.com/containerd/containerd/v2/core/runtime" // the type URL of OCI features
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go/features"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/anypb"

	"caisson/internal/engine"
	"caisson/internal/oci"
	"caisson/internal/version"
)

// maxFeatures bounds what a runtime prints; runc prints 10 KiB.
const maxFeatures = 1 << 20

// info describes the OCI runtime called name, or the one that the
// options name: its features are what it says of itself.
//
// containerd asks for two purposes. CRI asks once, without options, whether
// pods may have user namespaces, and takes runtimes without mounts with mapped
// ids for incapable of them. They are not: the sandboxer makes the namespace,
// and only volumes need such mounts; so what the runtime leaves open is claimed.
// For a container that does have such a mount containerd asks again, with the
// container's options, and then the runtime's own word counts alone, because
// one that does not know the request ignores it silently and gives the
// container files of the wrong owner.
func (r *runtimes) info(ctx context.Context, name string, opts *anypb.Any) (*types.RuntimeInfo, error) {
	var o options.Options
	if opts.MessageIs(&o) {
		if err := opts.UnmarshalTo(&o); err != nil {
			return nil, fmt.Errorf("runtime options: %v: %w", err, errdefs.ErrInvalidArgument)
		}
		if o.GetBinaryName() != "" {
			name = o.GetBinaryName()
		}
	}
	path, err := oci.Find(name)
	if err != nil {
		return nil, err
	}
	feats, err := r.features(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("OCI runtime %s: %w", path, err)
	}
	if opts == nil {
		claimIDMap(feats.Linux)
	}
	described, err := typeurl.MarshalAny(feats)
	if err != nil {
		return nil, fmt.Errorf("features of OCI runtime %s: %w", path, err)
	}
	return &types.RuntimeInfo{
		Name:     engine.RuntimeType,
		Version:  &types.RuntimeVersion{Version: version.String()},
		Options:  opts,
		Features: typeurl.MarshalProto(described),
	}, nil
}

// features are those of a program, with what every runtime has.
func (r *runtimes) features(ctx context.Context, path string) (*features.Features, error) {
	out, err := r.print(ctx, path)
	if err != nil {
		return nil, err
	}
	feats := &features.Features{}
	if len(out) > 0 {
		if err := json.Unmarshal(out, feats); err != nil {
			return nil, fmt.Errorf("its features: %v: %w", err, errdefs.ErrInvalidArgument)
		}
	}
	if feats.Linux == nil {
		// containerd looks into it without a check.
		feats.Linux = &features.Linux{}
	}
	addNamespaces(feats.Linux)
	return feats, nil
}

// runtimes remembers what OCI runtimes say of themselves: containerd asks again
// for each container with mounts of mapped ids, that is each one of a pod with a
// user namespace and a volume.
type runtimes struct {
	mu    sync.Mutex // guards said; held while a program runs
	which program
	said  []byte // by the last program that was asked
}

// program tells apart one file from what replaces it.
type program struct {
	dev, ino    uint64
	size        int64
	mtim, ctime unix.Timespec
}

// identify returns false for a script: it may run another runtime tomorrow.
func identify(path string) (program, bool) {
	f, err := os.Open(path)
	if err != nil {
		return program{}, false
	}
	defer f.Close() //nolint:errcheck // only read from
	var magic [4]byte
	var st unix.Stat_t
	if _, err := io.ReadFull(f, magic[:]); err != nil || string(magic[:]) != elf.ELFMAG || unix.Fstat(int(f.Fd()), &st) != nil {
		return program{}, false
	}
	return program{dev: st.Dev, ino: st.Ino, size: st.Size, mtim: st.Mtim, ctime: st.Ctim}, true
}

func (r *runtimes) print(ctx context.Context, path string) ([]byte, error) {
	which, known := identify(path)
	if !known {
		return printFeatures(ctx, path)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.which == which {
		return r.said, nil
	}
	out, err := printFeatures(ctx, path)
	if err == nil {
		r.which, r.said = which, out
	}
	return out, err
}

// printFeatures runs `runtime features`. It is no error if a runtime has no such
// command, and nothing is printed then.
func printFeatures(ctx context.Context, path string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, "features")
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.Output()
	if ctx.Err() != nil {
		return nil, fmt.Errorf("ask for its features: %w", ctx.Err())
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Exited() {
		return nil, nil
	}
	if err != nil { // killed, perhaps for want of memory: that says nothing about the program
		return nil, fmt.Errorf("ask for its features: %w", err)
	}
	if len(out) > maxFeatures {
		return nil, fmt.Errorf("its features are %d bytes: %w", len(out), errdefs.ErrResourceExhausted)
	}
	return out, nil
}

// addNamespaces adds those that every runtime of this decade joins.
func addNamespaces(l *features.Linux) {
	known := map[string]bool{}
	for _, ns := range l.Namespaces {
		known[ns] = true
	}
	for _, ns := range []string{"cgroup", "ipc", "mount", "network", "pid", "user", "uts"} {
		if !known[ns] {
			l.Namespaces = append(l.Namespaces, ns)
		}
	}
}

// claimIDMap claims mounts with mapped ids, unless the runtime denies them.
func claimIDMap(l *features.Linux) {
	if l.MountExtensions == nil {
		l.MountExtensions = &features.MountExtensions{}
	}
	if l.MountExtensions.IDMap == nil {
		l.MountExtensions.IDMap = &features.IDMap{}
	}
	if l.MountExtensions.IDMap.Enabled == nil {
		enabled := true
		l.MountExtensions.IDMap.Enabled = &enabled
	}
}
