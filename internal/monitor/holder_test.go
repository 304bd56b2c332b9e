package monitor

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// startIn starts a process in new namespaces and opens some of them.
func startIn(t testing.TB, attr *syscall.SysProcAttr, namespaces ...string) (pid int, files []*os.File) {
	t.Helper()
	cmd := exec.Command("/bin/sleep", "1000")
	cmd.SysProcAttr = attr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cmd.Process.Kill(); err != nil {
			t.Error(err)
		}
		_ = cmd.Wait() // killed
	})
	for _, ns := range namespaces {
		f, err := os.Open(fmt.Sprintf("/proc/%d/ns/%s", cmd.Process.Pid, ns))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		files = append(files, f)
	}
	return cmd.Process.Pid, files
}

// newNetNS returns a network namespace and a function that reads a sysctl in it.
func newNetNS(t testing.TB) (ns *os.File, read func(key string) string) {
	t.Helper()
	pid, files := startIn(t, &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}, "net")
	return files[0], func(key string) string {
		b, err := exec.Command("nsenter", "-t", fmt.Sprint(pid), "-n", "cat", "/proc/sys/"+key).Output()
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(b))
	}
}

func status(t testing.TB, pid int) map[string]string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	m := make(map[string]string)
	for _, line := range strings.Split(string(b), "\n") {
		k, v, _ := strings.Cut(line, ":")
		m[k] = strings.Join(strings.Fields(v), " ")
	}
	return m
}

// checkBare checks that a holder has no privileges and descriptors.
func checkBare(t *testing.T, pid int, name string) {
	t.Helper()
	st := status(t, pid)
	for _, set := range []string{"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"} {
		if strings.Trim(st[set], "0") != "" {
			t.Errorf("%s is %s", set, st[set])
		}
	}
	if st["NoNewPrivs"] != "1" || st["Seccomp"] != "2" || st["Name"] != "caisson-holder" {
		t.Errorf("no_new_privs %s, seccomp %s, name %s", st["NoNewPrivs"], st["Seccomp"], st["Name"])
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || !strings.HasPrefix(string(b), "caisson-holder\x00"+name+"\x00") {
		t.Errorf("cmdline %q, %v", b, err)
	}
	if fds := openFDs(fmt.Sprint(pid)); len(fds) != 0 {
		t.Errorf("descriptors %v", fds)
	}
}

// checkNoFiles checks that a holder that containers see leads them to no file.
func checkNoFiles(t *testing.T, pid int) {
	t.Helper()
	root := fmt.Sprintf("/proc/%d/root", pid)
	for _, dir := range []string{root, root + "/..", fmt.Sprintf("/proc/%d/cwd/..", pid)} {
		if files, err := os.ReadDir(dir); err != nil || len(files) > 0 {
			t.Errorf("%s has %v, %v", dir, files, err)
		}
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if mounts := strings.Split(strings.TrimSpace(string(b)), "\n"); err != nil || len(mounts) != 1 || !strings.Contains(mounts[0], " / / ro,nosuid,nodev,noexec,relatime - tmpfs caisson-holder ro,") {
		t.Errorf("mounts %q, %v", mounts, err)
	}
}

func TestHold(t *testing.T) {
	c := startMonitor(t)
	ctx := testContext(t)
	netns, read := newNetNS(t)
	base := openFDs(fmt.Sprint(c.Pid()))
	p, err := c.Hold(ctx, HoldRequest{
		Net: netns, NewIPC: true, NewUTS: true, Hostname: "box",
		Sysctls: []Sysctl{
			{"net/ipv4/ip_unprivileged_port_start", "0"},
			{"net/ipv4/ping_group_range", "0 2147483647"},
			{"kernel/shm_rmid_forced", "1"},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	for ns, same := range map[string]bool{"net": false, "ipc": false, "uts": false, "pid": true, "mnt": true, "user": true, "cgroup": true} {
		if (link(t, p.Pid, ns) == link(t, os.Getpid(), ns)) != same {
			t.Errorf("%s: same must be %v", ns, same)
		}
		if link(t, c.Pid(), ns) != link(t, os.Getpid(), ns) {
			t.Errorf("%s: the monitor left the host's", ns)
		}
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(netns.Fd()), &st); err != nil || link(t, p.Pid, "net") != fmt.Sprintf("net:[%d]", st.Ino) {
		t.Errorf("net is %s", link(t, p.Pid, "net"))
	}
	if v := read("net/ipv4/ip_unprivileged_port_start"); v != "0" {
		t.Errorf("port start %s", v)
	}
	out, err := exec.Command("nsenter", "-t", fmt.Sprint(p.Pid), "-u", "-i", "sh", "-c", "hostname; cat /proc/sys/kernel/shm_rmid_forced").Output()
	if err != nil || string(out) != "box\n1\n" {
		t.Errorf("in the namespaces: %q, %v", out, err)
	}
	if b, err := os.ReadFile("/proc/sys/kernel/shm_rmid_forced"); err != nil || string(b) != "0\n" {
		t.Errorf("the host's setting: %q %v", b, err)
	}
	checkBare(t, p.Pid, t.Name())
	if diff := cmp.Diff(base, openFDs(fmt.Sprint(c.Pid()))); diff != "" {
		t.Error(diff)
	}
	if _, err := c.Hold(ctx, HoldRequest{}); !errdefs.IsAlreadyExists(err) {
		t.Errorf("second holder: %v", err)
	}
	exits := mustSubscribe(t, c)
	if err := c.Signal(ctx, p.Serial, unix.SIGTERM); err != nil {
		t.Error(err)
	}
	if err := c.Signal(ctx, p.Serial, unix.SIGKILL); err != nil {
		t.Error(err)
	}
	if e := nextExit(t, exits); e.Process != p || e.Kind != Holder || e.Status.Signal() != unix.SIGKILL {
		t.Errorf("exit %+v", e)
	}
	if _, err := c.Hold(ctx, HoldRequest{}); err != nil {
		t.Errorf("a new holder: %v", err)
	}
}

func TestHoldPidNamespace(t *testing.T) {
	c := startMonitor(t)
	ctx := testContext(t)
	p, err := c.Hold(ctx, HoldRequest{NewPID: true})
	if err != nil {
		t.Fatal(err)
	}
	st := status(t, p.Pid)
	if st["NSpid"] != fmt.Sprintf("%d 1", p.Pid) || st["PPid"] != fmt.Sprint(c.Pid()) {
		t.Errorf("NSpid %s, PPid %s", st["NSpid"], st["PPid"])
	}
	checkBare(t, p.Pid, t.Name())
	checkNoFiles(t, p.Pid)
	if n := len(childrenOf(c.Pid())); n != 1 {
		t.Errorf("%d children of the monitor", n)
	}
	// An orphan in the namespace goes to its pid 1, which reaps it.
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	exits := mustSubscribe(t, c)
	mustSpawn(t, c, SpawnRequest{
		Args:  []string{"/usr/bin/nsenter", "-t", fmt.Sprint(p.Pid), "-p", "/bin/sh", "-c", "(read x <&3; exit 0) & exit 0"},
		Files: []*os.File{nil, nil, nil, r},
	})
	if e := nextExit(t, exits); e.Status != 0 {
		t.Errorf("nsenter: %#x", e.Status)
	}
	if n := len(childrenOf(p.Pid)); n != 1 {
		t.Errorf("%d children of the holder", n)
	}
	w.Close()
	eventually(t, "the holder reaps", func() bool { return len(childrenOf(p.Pid)) == 0 })
	// What is still in the namespace dies with it.
	mustSpawn(t, c, SpawnRequest{Args: []string{"/usr/bin/nsenter", "-t", fmt.Sprint(p.Pid), "-p", "/bin/sleep", "1000"}})
	if err := c.Signal(ctx, p.Serial, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	kinds := map[Kind]bool{nextExit(t, exits).Kind: true, nextExit(t, exits).Kind: true}
	if !kinds[Holder] || !kinds[Spawned] {
		t.Errorf("exits of %v", kinds)
	}
}

func TestHoldUserNamespace(t *testing.T) {
	c := startMonitor(t)
	ctx := testContext(t)
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 100000, Size: 65536}}
	pid, files := startIn(t, &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET, UidMappings: ids, GidMappings: ids,
	}, "user", "net")
	p, err := c.Hold(ctx, HoldRequest{
		User: files[0], Net: files[1], NewIPC: true, NewUTS: true, NewPID: true, Hostname: "mapped",
		Sysctls: []Sysctl{{"net/ipv4/ip_unprivileged_port_start", "80"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, ns := range []string{"user", "net"} {
		if link(t, p.Pid, ns) != link(t, pid, ns) {
			t.Errorf("%s is another", ns)
		}
	}
	st := status(t, p.Pid)
	if st["Uid"] != "100000 100000 100000 100000" || st["Gid"] != "100000 100000 100000 100000" || st["Groups"] != "" {
		t.Errorf("uid %s, gid %s, groups %s", st["Uid"], st["Gid"], st["Groups"])
	}
	checkBare(t, p.Pid, t.Name())
	checkNoFiles(t, p.Pid)
}

func TestHoldErrors(t *testing.T) {
	c := startMonitor(t)
	netns, _ := newNetNS(t)
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	sysctl := func(k, v string) HoldRequest {
		return HoldRequest{Net: netns, NewPID: true, Sysctls: []Sysctl{{k, v}}}
	}
	for name, tc := range map[string]struct {
		r     HoldRequest
		class error
		text  string
	}{
		"not a net ns":     {HoldRequest{Net: null}, errdefs.ErrInvalidArgument, "setns net"},
		"not a user ns":    {HoldRequest{User: netns}, errdefs.ErrInvalidArgument, "setns user"},
		"unknown sysctl":   {sysctl("net/nonexistent", "1"), errdefs.ErrNotFound, "sysctl net/nonexistent"},
		"bad value":        {sysctl("net/ipv4/ip_forward", "many"), errdefs.ErrInvalidArgument, "sysctl net/ipv4/ip_forward"},
		"a directory":      {sysctl("net/ipv4", "1"), nil, "sysctl net/ipv4"},
		"parent":           {sysctl("net/../kernel/x", "1"), errdefs.ErrInvalidArgument, "sysctl net/../kernel/x"},
		"dot":              {sysctl("./net/x", "1"), errdefs.ErrInvalidArgument, "sysctl"},
		"absolute":         {sysctl("/net/x", "1"), errdefs.ErrInvalidArgument, "sysctl"},
		"slash at the end": {sysctl("net/ipv4/ip_forward/", "1"), errdefs.ErrInvalidArgument, "sysctl"},
		"empty":            {sysctl("", "1"), errdefs.ErrInvalidArgument, "sysctl"},
		"host's hostname":  {HoldRequest{Hostname: "x"}, errdefs.ErrInvalidArgument, "uts"},
		"long hostname":    {HoldRequest{NewUTS: true, Hostname: strings.Repeat("x", 65)}, errdefs.ErrInvalidArgument, "hostname"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := c.Hold(testContext(t), tc.r)
			var me *Error
			if !errors.As(err, &me) || tc.class != nil && !errors.Is(err, tc.class) || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("got %v", err)
			}
		})
	}
	if left := childrenOf(c.Pid()); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
	if fds := openFDs(fmt.Sprint(c.Pid())); len(fds) != 6 {
		t.Errorf("descriptors %v", fds)
	}
}
