package crisuite

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// noChmod forbids to change the modes of files; noHostname, to name the host.
const (
	noChmod    = `{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["chmod", "fchmod", "fchmodat", "fchmodat2"], "action": "SCMP_ACT_ERRNO"}]}`
	noHostname = `{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["sethostname"], "action": "SCMP_ACT_ERRNO"}]}`
)

// profile is a seccomp profile on the node.
func (s *server) profile(content string) *runtime.SecurityProfile {
	s.t.Helper()
	path := filepath.Join(s.t.TempDir(), "profile.json")
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		s.t.Fatal(err)
	}
	return &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_Localhost, LocalhostRef: path}
}

// TestSeccomp: the profiles that a container can have, and none.
func TestSeccomp(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		p := s.pod()
		const filter, none = "2", "0"
		for name, c := range map[string]struct {
			profile  *runtime.SecurityProfile
			want     string
			forbids  []string // a program
			wantFail bool
		}{
			"nothing said": {nil, none, []string{"chmod", "700", "/tmp"}, false},
			"unconfined":   {&runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_Unconfined}, none, []string{"chmod", "700", "/tmp"}, false},
			"default":      {&runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_RuntimeDefault}, filter, []string{"unshare", "-U", "true"}, true},
			"localhost":    {s.profile(noChmod), filter, []string{"chmod", "700", "/tmp"}, true},
		} {
			p.run(name, func(t *testing.T, p *pod) {
				id := p.sleeper(name, security(func(sc *runtime.LinuxContainerSecurityContext) { sc.Seccomp = c.profile }))
				if got := p.s.procField(id, "Seccomp"); got != c.want {
					t.Errorf("seccomp of the first process is %s, want %s", got, c.want)
				}
				p.s.expect(id, "grep Seccomp: /proc/self/status | cut -f2", c.want+"\n")
				if resp := p.s.exec(id, c.forbids...); (resp.ExitCode != 0) != c.wantFail || c.wantFail && !strings.Contains(string(resp.Stderr), "not permitted") {
					t.Errorf("%q: %v", c.forbids, resp)
				}
			})
		}
	})
}

// TestSeccompAgainstCapabilities: a profile binds whoever has a capability, but
// not who is privileged.
func TestSeccompAgainstCapabilities(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		p := s.pod(privilegedPod)
		sysAdmin := &runtime.Capability{AddCapabilities: []string{"SYS_ADMIN"}}
		free := p.sleeper("free", security(func(c *runtime.LinuxContainerSecurityContext) {
			c.Capabilities, c.Seccomp = sysAdmin, &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_Unconfined}
		}))
		s.expect(free, "hostname by-capability && hostname", "by-capability\n")
		bound := p.sleeper("bound", security(func(c *runtime.LinuxContainerSecurityContext) {
			c.Capabilities, c.Seccomp = sysAdmin, s.profile(noHostname)
		}))
		s.refused(bound, "not permitted", "hostname", "against-the-profile")
		s.expect(bound, "hostname", "by-capability\n")
		privileged := p.sleeper("privileged", security(func(c *runtime.LinuxContainerSecurityContext) {
			c.Privileged, c.Seccomp = true, s.profile(noHostname)
		}))
		s.expect(privileged, "hostname by-privilege && hostname", "by-privilege\n")
	})
}

// TestSeccompRefused: a profile that is not there, or is none.
func TestSeccompRefused(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		p := s.pod()
		for name, profile := range map[string]*runtime.SecurityProfile{
			"absent":  {ProfileType: runtime.SecurityProfile_Localhost, LocalhostRef: filepath.Join(t.TempDir(), "absent.json")},
			"garbage": s.profile("{"),
		} {
			if id, err := p.start(p.config(name, "exec sleep 1000", security(func(c *runtime.LinuxContainerSecurityContext) { c.Seccomp = profile }))); err == nil {
				t.Errorf("%s: container %s runs", name, id)
			}
		}
	})
}

// TestAppArmor: a profile that is loaded, and one that is not.
func TestAppArmor(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		if enabled, err := os.ReadFile("/sys/module/apparmor/parameters/enabled"); err != nil || strings.TrimSpace(string(enabled)) != "Y" {
			s.lacks("the kernel has no AppArmor (/sys/module/apparmor/parameters/enabled: %q, %v)", enabled, err)
		}
		p := s.pod()
		id := p.sleeper("default", security(func(c *runtime.LinuxContainerSecurityContext) {
			c.Apparmor = &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_RuntimeDefault}
		}))
		s.matches("profile", s.proc(id, "attr/current"), `\(enforce\)`)
		id = p.sleeper("unconfined", security(func(c *runtime.LinuxContainerSecurityContext) {
			c.Apparmor = &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_Unconfined}
		}))
		s.matches("profile", s.proc(id, "attr/current"), `^unconfined`)
		if id, err := p.start(p.config("absent", "exec sleep 1000", security(func(c *runtime.LinuxContainerSecurityContext) {
			c.Apparmor = &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_Localhost, LocalhostRef: s.Host.Token}
		}))); err == nil {
			t.Errorf("container %s runs with a profile that is not loaded", id)
		}
	})
}
