package cli

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"caisson/internal/cgroup"
)

// oldestKernel has every system call that the daemon and the monitor use; the
// youngest of them is close_range.
const oldestKernel = "5.9"

func (d *doctor) checkKernel() {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		d.fail("kernel", "run caisson doctor on Linux itself, not in an emulation of it", "uname: %v", err)
		return
	}
	d.judgeKernel(unix.ByteSliceToString(uts.Release[:]))
	d.checkNamespaces("/proc")
	d.checkSyscalls()
	d.checkFilesystems("/proc")
}

func (d *doctor) judgeKernel(release string) {
	if older(release, oldestKernel) {
		d.fail("kernel", "boot Linux "+oldestKernel+" or newer", "Linux %s", release)
		return
	}
	d.ok("kernel", "Linux %s", release)
}

// older compares the first two numbers of versions; what has none is not older.
func older(version, than string) bool {
	a, b := firstNumbers(version), firstNumbers(than)
	return a != [2]int{} && (a[0] < b[0] || a[0] == b[0] && a[1] < b[1])
}

func firstNumbers(version string) (n [2]int) {
	parts := strings.FieldsFunc(version, func(r rune) bool { return r < '0' || r > '9' })
	for i := range min(len(parts), 2) {
		n[i], _ = strconv.Atoi(parts[i]) // digits; 0 for a number too long to be one
	}
	return n
}

func (d *doctor) checkNamespaces(proc string) {
	var missing []string
	for _, ns := range []string{"mnt", "net", "ipc", "uts", "pid"} {
		if !exists(proc + "/self/ns/" + ns) {
			missing = append(missing, ns)
		}
	}
	if len(missing) > 0 {
		d.fail("namespaces", "use a kernel built with them (CONFIG_NAMESPACES and what is below it)", "missing: %s", strings.Join(missing, ", "))
	} else {
		d.ok("namespaces", "mnt, net, ipc, uts, pid")
	}
	most, err := os.ReadFile(proc + "/sys/user/max_user_namespaces")
	if n := strings.TrimSpace(string(most)); err != nil || n == "0" || !exists(proc+"/self/ns/user") {
		d.warn("user namespaces", "for pods with hostUsers: false, set sysctl user.max_user_namespaces above 0 (kernel: CONFIG_USER_NS)", "not available")
	} else {
		d.ok("user namespaces", "at most %s", n)
	}
}

func (d *doctor) checkSyscalls() {
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err == nil {
		_ = unix.Close(fd) // nothing was written
	}
	d.judgeSyscall("pidfd", err, true, "processes cannot be signalled safely")
	// Nobody has descriptors up there.
	d.judgeSyscall("close_range", unix.CloseRange(1<<31-1, 1<<31-1, 0), true, "the monitor cannot start processes")
	err = unix.MountSetattr(-1, "", 0, &unix.MountAttr{})
	d.judgeSyscall("mapped mounts", err, false, "volumes cannot be given to pods with a user namespace")
}

// judgeSyscall looks whether a call is there; any error but ENOSYS says it is.
// EPERM is what a seccomp profile around this program answers.
func (d *doctor) judgeSyscall(name string, err error, needed bool, without string) {
	if !errors.Is(err, unix.ENOSYS) && (name == "mapped mounts" || !errors.Is(err, unix.EPERM)) {
		d.ok(name, "available")
		return
	}
	report := d.warn
	if needed {
		report = d.fail
	}
	report(name, "use a newer kernel, or run outside the seccomp profile that denies the call", "not available: %s", without)
}

func (d *doctor) checkFilesystems(proc string) {
	known, err := os.ReadFile(proc + "/filesystems")
	if err != nil || !strings.Contains(string(known), "\toverlay\n") {
		d.warn("overlayfs", "modprobe overlay; until then images are copied (snapshotter native), which is slow and takes space", "not registered")
	} else {
		d.ok("overlayfs", "available")
	}
}

func (d *doctor) checkCgroups() {
	missing, err := cgroup.Missing()
	d.judgeCgroups(cgroup.CurrentMode(), missing, err)
}

func (d *doctor) judgeCgroups(mode cgroup.Mode, missing []string, err error) {
	const v2 = "for cgroup v2 boot with systemd.unified_cgroup_hierarchy=1"
	switch {
	case mode == cgroup.Unavailable:
		d.fail("cgroups", "mount them: systemd does it at boot; without systemd: mount -t cgroup2 none /sys/fs/cgroup", "not mounted")
		return
	case mode == cgroup.Hybrid:
		d.warn("cgroups", v2+"; until then use runc: crun refuses this mode", "hybrid: v1 controllers beside a v2 hierarchy")
	case mode == cgroup.Legacy:
		d.warn("cgroups", v2+"; Kubernetes and containerd are about to drop v1", "v1")
	default:
		d.ok("cgroups", "v2")
	}
	switch {
	case err != nil:
		d.warn("cgroup controllers", "see that /sys/fs/cgroup is readable", "%v", err)
	case len(missing) > 0:
		d.warn("cgroup controllers", "their limits cannot be set; enable them in the kernel, or in cgroup.subtree_control of the root", "missing: %s", strings.Join(missing, ", "))
	default:
		d.ok("cgroup controllers", "all that are used")
	}
}

// capabilities that the daemon, the OCI runtime or CNI plugins use.
var capabilities = []struct {
	name  string
	value uint
}{
	{"CAP_CHOWN", unix.CAP_CHOWN}, {"CAP_DAC_OVERRIDE", unix.CAP_DAC_OVERRIDE}, {"CAP_FOWNER", unix.CAP_FOWNER},
	{"CAP_KILL", unix.CAP_KILL}, {"CAP_MKNOD", unix.CAP_MKNOD}, {"CAP_NET_ADMIN", unix.CAP_NET_ADMIN},
	{"CAP_SETGID", unix.CAP_SETGID}, {"CAP_SETUID", unix.CAP_SETUID}, {"CAP_SETPCAP", unix.CAP_SETPCAP},
	{"CAP_SYS_ADMIN", unix.CAP_SYS_ADMIN}, {"CAP_SYS_CHROOT", unix.CAP_SYS_CHROOT}, {"CAP_SYS_PTRACE", unix.CAP_SYS_PTRACE},
}

func (d *doctor) checkCapabilities() {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		d.warn("capabilities", "look at CapEff in /proc/self/status", "capget: %v", err)
		return
	}
	d.judgeCapabilities(os.Geteuid(), func(c uint) bool { return data[c/32].Effective&(1<<(c%32)) != 0 })
}

func (d *doctor) judgeCapabilities(uid int, has func(uint) bool) {
	if uid != 0 {
		d.fail("capabilities", "run it as root: what follows may be wrong, too", "you are user %d; caissond runs as root", uid)
		return
	}
	var missing []string
	for _, c := range capabilities {
		if !has(c.value) {
			missing = append(missing, c.name)
		}
	}
	if len(missing) > 0 {
		d.fail("capabilities", "give them to whatever this shell runs in (for a container: --privileged)", "missing: %s", strings.Join(missing, ", "))
		return
	}
	if !has(unix.CAP_SYS_RESOURCE) {
		d.warn("capabilities",
			fmt.Sprintf("give it CAP_SYS_RESOURCE, or set restrict_oom_score_adj = true in [plugins.%q] of a stock containerd (caissond's own engine does it itself)", criRuntimePlugin),
			"CAP_SYS_RESOURCE is missing: OOM scores cannot be lowered, nor hard limits raised")
		return
	}
	d.ok("capabilities", "all that are used")
}

const criRuntimePlugin = "io.containerd.cri.v1.runtime"
