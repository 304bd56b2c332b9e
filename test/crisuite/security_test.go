package crisuite

import (
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestPrivileged: a privileged container may set up the network, sees the host's
// devices and has nothing hidden from it; another may and has not.
func TestPrivileged(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		p := s.pod(privilegedPod)
		mask := func(c *runtime.LinuxContainerSecurityContext) {
			c.MaskedPaths, c.ReadonlyPaths = []string{"/proc/kcore"}, []string{"/proc/sys"}
		}
		yes := p.sleeper("yes", security(mask), security(func(c *runtime.LinuxContainerSecurityContext) { c.Privileged = true }))
		no := p.sleeper("no", security(mask))

		if resp := s.exec(yes, "ip", "link", "add", "bridge0", "type", "bridge"); resp.ExitCode != 0 {
			t.Errorf("privileged: %v", resp)
		}
		s.refused(no, "Operation not permitted", "ip", "link", "add", "bridge1", "type", "bridge")
		if got := s.procField(yes, "CapEff"); got != s.hostCapabilities() {
			t.Errorf("privileged: capabilities %s, want %s", got, s.hostCapabilities())
		}
		if got := s.procField(yes, "Seccomp"); got != "0" {
			t.Errorf("privileged: seccomp %s", got)
		}
		s.expect(yes, "test -c /dev/loop-control -o -c /dev/kmsg && grep -c ' /proc/sys ' /proc/self/mountinfo || true", "0\n")
		s.expect(no, "test -e /dev/kmsg || echo hidden; grep -c ' /proc/sys ' /proc/self/mountinfo", "hidden\n1\n")
		s.matches("sysfs of the privileged", s.Shell(yes, "grep ' /sys sysfs ' /proc/mounts || grep 'sysfs /sys ' /proc/mounts"), `rw`)
		s.matches("sysfs of the other", s.Shell(no, "grep 'sysfs /sys ' /proc/mounts"), `\bro\b`)
	})
}

// hostCapabilities are those that a privileged container gets: all of the server's.
func (s *server) hostCapabilities() string {
	s.t.Helper()
	content, err := os.ReadFile("/proc/self/status")
	if err != nil {
		s.t.Fatal(err)
	}
	for line := range strings.Lines(string(content)) {
		if value, ok := strings.CutPrefix(line, "CapEff:"); ok {
			return strings.TrimSpace(value)
		}
	}
	s.t.Fatal("no CapEff in /proc/self/status")
	return ""
}

// TestPrivilegedNeedsPod: a pod that is not privileged has no privileged container.
func TestPrivilegedNeedsPod(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		p := s.pod()
		_, err := p.start(p.config("c", "exec sleep 1000", security(func(c *runtime.LinuxContainerSecurityContext) { c.Privileged = true })))
		if err == nil || !strings.Contains(err.Error(), "privileged") {
			t.Errorf("got %v, want a refusal", err)
		}
	})
}

// The bits of capabilities in /proc/PID/status.
const (
	capChown    = 1 << 0
	capNetAdmin = 1 << 12
	capNetRaw   = 1 << 13
	capSysAdmin = 1 << 21
	// capDefault are the fourteen that containers have.
	capDefault = 0xa80425fb
)

// TestCapabilities compares the bounding set of containers.
func TestCapabilities(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		p := s.pod()
		all := parseHex(t, s.hostCapabilities())
		for name, c := range map[string]struct {
			capability *runtime.Capability
			want       uint64
		}{
			"default":     {nil, capDefault},
			"add":         {&runtime.Capability{AddCapabilities: []string{"NET_ADMIN", "SYS_ADMIN"}}, capDefault | capNetAdmin | capSysAdmin},
			"drop":        {&runtime.Capability{DropCapabilities: []string{"NET_RAW"}}, capDefault &^ capNetRaw},
			"add all":     {&runtime.Capability{AddCapabilities: []string{"ALL"}}, all},
			"drop all":    {&runtime.Capability{DropCapabilities: []string{"ALL"}}, 0},
			"all but one": {&runtime.Capability{AddCapabilities: []string{"ALL"}, DropCapabilities: []string{"CHOWN"}}, all &^ capChown},
			"one alone":   {&runtime.Capability{AddCapabilities: []string{"CHOWN"}, DropCapabilities: []string{"ALL"}}, capChown},
		} {
			p.run(name, func(t *testing.T, p *pod) {
				id := p.sleeper(name, security(func(sc *runtime.LinuxContainerSecurityContext) { sc.Capabilities = c.capability }))
				for _, set := range []string{"CapBnd", "CapEff", "CapPrm"} {
					if got := parseHex(t, p.s.procField(id, set)); got != c.want {
						t.Errorf("%s is %x, want %x", set, got, c.want)
					}
				}
				resp := p.s.exec(id, "sh", "-c", "chown 5 /tmp && chown 0 /tmp")
				if may := resp.ExitCode == 0; may != (c.want&capChown != 0) {
					t.Errorf("chown: %v", resp)
				}
			})
		}
	})
}

// TestReadOnlyRoot: the root is read-only if asked, what is mounted is not.
func TestReadOnlyRoot(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		p := s.pod()
		readOnly := p.sleeper("ro", security(func(c *runtime.LinuxContainerSecurityContext) { c.ReadonlyRootfs = true }))
		s.refused(readOnly, "Read-only file system", "touch", "/tmp/a")
		s.refused(readOnly, "Read-only file system", "touch", "/etc/hosts")
		s.expect(readOnly, "echo a >/dev/shm/a && cat /dev/shm/a", "a\n")
		s.expect(p.sleeper("rw"), "echo a >/a && cat /a; echo b >>/etc/hosts && tail -n 1 /etc/hosts", "a\nb\n")
	})
}

// TestPaths: masked files are empty, masked directories too, read-only ones
// cannot be written, and nothing else is either.
func TestPaths(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		p := s.pod()
		id := p.sleeper("c", security(func(c *runtime.LinuxContainerSecurityContext) {
			c.MaskedPaths, c.ReadonlyPaths = []string{"/bin/ls", "/etc", "/not/there"}, []string{"/tmp", "/not/there"}
		}))
		resp, err := s.ExecSync(s.Host.Context(time.Minute), &runtime.ExecSyncRequest{ContainerId: id, Cmd: []string{"/bin/ls"}})
		if err == nil || !strings.Contains(err.Error(), "permission denied") {
			t.Errorf("a masked program: %v, %v", resp, err)
		}
		s.expect(id, "wc -c </bin/ls", "0\n")
		s.refused(id, "Read-only file system", "touch", "/tmp/a")
		s.expect(id, "ls /etc/marked 2>/dev/null; touch /var/tmp/a && echo written", "written\n")
		open := p.sleeper("open", security(func(c *runtime.LinuxContainerSecurityContext) {
			c.MaskedPaths, c.ReadonlyPaths = []string{}, []string{}
		}))
		s.expect(open, "cat /etc/marked; touch /tmp/a && echo written", "by the image\nwritten\n")
	})
}

// parseHex reads a set of capabilities.
func parseHex(t *testing.T, text string) uint64 {
	t.Helper()
	set, err := strconv.ParseUint(text, 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	return set
}
