package sandbox

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/mount"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"caisson/internal/fault"
	"caisson/internal/oci"
)

// memberFiles are the sandbox's files that containers see.
func (b *box) memberFiles() []oci.File {
	files := []oci.File{
		{Source: b.path("etc/hostname"), Target: "/etc/hostname", FollowRoot: true},
		{Source: b.path("etc/hosts"), Target: "/etc/hosts", FollowRoot: true},
		{Source: b.path("etc/resolv.conf"), Target: "/etc/resolv.conf", FollowRoot: true},
	}
	shm := oci.File{Source: b.path("shm"), Target: "/dev/shm", Default: "tmpfs"}
	if b.snapshot().Settings.HostIPC {
		shm.Source = "/dev/shm"
	}
	return append(files, shm)
}

// namespaces are what members join, by path, the host's with an empty one.
func (b *box) namespaces() map[specs.LinuxNamespaceType]string {
	inst := b.instance()
	if inst == nil {
		return nil
	}
	own := inst.Namespaces()
	shared := map[specs.LinuxNamespaceType]string{
		specs.NetworkNamespace: own[specs.NetworkNamespace],
		specs.IPCNamespace:     own[specs.IPCNamespace],
		specs.UTSNamespace:     own[specs.UTSNamespace],
	}
	s := b.snapshot().Settings
	if s.SharePID || s.HostPID {
		shared[specs.PIDNamespace] = own[specs.PIDNamespace]
	}
	if s.userNS() {
		shared[specs.UserNamespace] = own[specs.UserNamespace]
	}
	return shared
}

// writeFiles makes hostname, hosts and resolv.conf, readable for everybody: the
// directory around them is not, but containers see the files themselves.
func (b *box) writeFiles() error {
	s := b.snapshot().Settings
	if err := b.writeFile("etc/hostname", s.Hostname+"\n"); err != nil {
		return err
	}
	if err := b.writeHosts(); err != nil {
		return err
	}
	resolv, err := resolvConf(s.DNS)
	if err != nil {
		return fmt.Errorf("sandbox %q: %w", b.k.id, err)
	}
	return b.writeFile("etc/resolv.conf", resolv)
}

// writeHosts makes /etc/hosts: the host's own for CRI, whose kubelet mounts a
// better one, and else one that knows the sandbox's name.
func (b *box) writeHosts() error {
	rec := b.snapshot()
	if rec.Settings.CRI {
		text, err := hostFile("/etc/hosts")
		if err != nil {
			return fmt.Errorf("sandbox %q: %w", rec.ID, err)
		}
		return b.writeFile("etc/hosts", text)
	}
	var text strings.Builder
	text.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n")
	addresses := []string{"127.0.1.1"}
	if rec.Network != nil && len(rec.Network.Addresses) > 0 {
		addresses = rec.Network.Addresses
	}
	for _, address := range addresses {
		fmt.Fprintf(&text, "%s\t%s\n", address, rec.Settings.Hostname)
	}
	names := make([]string, 0, len(rec.Settings.ExtraHosts))
	for name := range rec.Settings.ExtraHosts {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		fmt.Fprintf(&text, "%s\t%s\n", rec.Settings.ExtraHosts[name], name)
	}
	return b.writeFile("etc/hosts", text.String())
}

// writeFile writes in place, so that a container that has the file mounted sees
// the change. The file is the sandbox's root's, who may change it as well.
func (b *box) writeFile(name, text string) error {
	err := fault.Fail("sandbox:file", unix.ENOSPC, unix.EMFILE)
	if err == nil {
		err = b.putFile(b.path(name), text)
	}
	if err != nil {
		return fmt.Errorf("sandbox %q: %w", b.k.id, err)
	}
	return nil
}

// putFile is writeFile's work. The file descriptor is none of Go's: the poller would be
// told of it, which costs more than the rest.
func (b *box) putFile(path, text string) error {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	n, err := unix.Write(fd, []byte(text))
	if err == nil && n < len(text) {
		err = io.ErrShortWrite // no tmpfs does that but a full one
	}
	if err == nil {
		err = unix.Fchmod(fd, 0o644) // whatever the umask
	}
	if uid, gid, _ := b.snapshot().Settings.root(); err == nil && uid|gid != 0 {
		err = unix.Fchown(fd, uid, gid)
	}
	if err = errors.Join(err, unix.Close(fd)); err != nil {
		return &os.PathError{Op: "write", Path: path, Err: err}
	}
	return nil
}

func resolvConf(d *dns) (string, error) {
	if d == nil {
		return hostFile("/etc/resolv.conf")
	}
	var text strings.Builder
	if len(d.Searches) > 0 {
		fmt.Fprintf(&text, "search %s\n", strings.Join(d.Searches, " "))
	}
	for _, server := range d.Servers {
		fmt.Fprintf(&text, "nameserver %s\n", server)
	}
	if len(d.Options) > 0 {
		fmt.Fprintf(&text, "options %s\n", strings.Join(d.Options, " "))
	}
	return text.String(), nil
}

// maxHostFile bounds what is copied of the host's files.
const maxHostFile = 1 << 20

// hostFile reads a file of the host; one that is missing is empty.
func hostFile(path string) (string, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxHostFile))
	return string(data), err
}

// mountEtc gives the sandbox a place for its files: a container may write to
// them, and must not fill the host's /run with that.
func (b *box) mountEtc() error {
	return b.mountTmpfs("etc", "mode=0755,size=4m,nr_inodes=16")
}

// mountShm gives the sandbox its /dev/shm.
func (b *box) mountShm() error {
	s := b.snapshot().Settings
	if s.HostIPC {
		return nil
	}
	size := s.ShmSize
	if size == 0 {
		size = defaultShmSize
	}
	uid, gid, _ := s.root()
	return b.mountTmpfs("shm", fmt.Sprintf("mode=1777,size=%d,uid=%d,gid=%d", size, uid, gid))
}

func (b *box) mountTmpfs(name, options string) error {
	if err := os.Mkdir(b.path(name), 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("sandbox %q: %w", b.k.id, err)
	}
	if err := fault.Fail("sandbox:mount", unix.ENOMEM, unix.ENOSPC); err != nil {
		return fmt.Errorf("sandbox %q: mount %s: %w", b.k.id, b.path(name), err)
	}
	if err := unix.Mount(name, b.path(name), "tmpfs", unix.MS_NOEXEC|unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		return fmt.Errorf("sandbox %q: mount %s: %w", b.k.id, b.path(name), err)
	}
	return nil
}

// mountRootfs mounts the sandbox's root filesystem, if its client gave one: no
// process of the isolation "namespace" lives there, but the client finds it.
func (b *box) mountRootfs() error {
	rootfs := b.snapshot().Rootfs
	if len(rootfs) == 0 {
		return nil
	}
	if err := os.Mkdir(b.path("rootfs"), 0o711); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("sandbox %q: %w", b.k.id, err)
	}
	err := fault.Fail("sandbox:mount:rootfs", unix.ENOMEM, unix.ENOSPC)
	if err == nil {
		err = mount.All(rootfs, b.path("rootfs"))
	}
	if err != nil {
		return fmt.Errorf("sandbox %q: mount root filesystem: %w", b.k.id, err)
	}
	return nil
}

// unmountFiles unmounts what is mounted in the sandbox's directory. It may be
// repeated.
func (b *box) unmountFiles() error {
	b.files.mu.Lock()
	defer b.files.mu.Unlock()
	b.files.stay()
	names := []string{"etc", "shm", "rootfs"}
	errs := make([]error, len(names))
	var work sync.WaitGroup
	for i, name := range names {
		work.Go(func() { errs[i] = b.unmountFile(name) })
	}
	work.Wait()
	return errors.Join(errs...)
}

func (b *box) unmountFile(name string) error {
	path := b.path(name)
	err := fault.Fail("sandbox:unmount", unix.EBUSY)
	if err == nil {
		err = mount.UnmountAll(path, unix.UMOUNT_NOFOLLOW)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		// Somebody is in there. The mount goes when they do.
		if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("sandbox %q: unmount %s: %w", b.k.id, path, err)
		}
	}
	// Not RemoveAll: what is still mounted must not be emptied.
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("sandbox %q: %w", b.k.id, err)
	}
	return nil
}

// removeFiles removes the sandbox's directory, the record last. It may be
// repeated.
func (b *box) removeFiles() error {
	if err := b.unmountFiles(); err != nil {
		return err
	}
	entries, err := os.ReadDir(b.dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("sandbox %q: %w", b.k.id, err)
	}
	for _, e := range entries {
		if e.Name() == recordName {
			continue
		}
		fault.Point("sandbox:remove:file")
		if err := os.RemoveAll(b.path(e.Name())); err != nil {
			return fmt.Errorf("sandbox %q: %w", b.k.id, err)
		}
	}
	fault.Point("sandbox:remove:dir")
	if err := os.RemoveAll(b.dir); err != nil {
		return fmt.Errorf("sandbox %q: %w", b.k.id, err)
	}
	return nil
}
