package crisuite

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// someone is an identity that a container has.
type someone struct {
	uid, gid int64
	groups   []int64 // sorted
}

func value(v int64) *runtime.Int64Value { return &runtime.Int64Value{Value: v} }

// TestIdentity: who a container's processes are, by the pod's wish and by that
// of the image. In suiteImage, app is 1000 and also in the group staff, 50.
func TestIdentity(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		p := s.pod()
		for name, c := range map[string]struct {
			image  string
			change func(*runtime.LinuxContainerSecurityContext)
			want   someone
		}{
			"nothing said": {suiteImage, func(*runtime.LinuxContainerSecurityContext) {}, someone{0, 0, []int64{0}}},
			"user": {suiteImage, func(c *runtime.LinuxContainerSecurityContext) {
				c.RunAsUser = value(1001)
			}, someone{1001, 0, []int64{0}}},
			"user by name": {suiteImage, func(c *runtime.LinuxContainerSecurityContext) {
				c.RunAsUsername = "app"
			}, someone{1000, 1000, []int64{50, 1000}}},
			"user and group": {suiteImage, func(c *runtime.LinuxContainerSecurityContext) {
				c.RunAsUser, c.RunAsGroup = value(1001), value(1002)
			}, someone{1001, 1002, []int64{1002}}},
			"supplemental groups": {suiteImage, func(c *runtime.LinuxContainerSecurityContext) {
				c.SupplementalGroups = []int64{1234, 5678}
			}, someone{0, 0, []int64{0, 1234, 5678}}},
			"groups of the image too": {suiteImage, func(c *runtime.LinuxContainerSecurityContext) {
				c.RunAsUser, c.SupplementalGroups = value(1000), []int64{1234}
				c.SupplementalGroupsPolicy = runtime.SupplementalGroupsPolicy_Merge
			}, someone{1000, 1000, []int64{50, 1000, 1234}}},
			"no groups of the image": {suiteImage, func(c *runtime.LinuxContainerSecurityContext) {
				c.RunAsUser, c.SupplementalGroups = value(1000), []int64{1234}
				c.SupplementalGroupsPolicy = runtime.SupplementalGroupsPolicy_Strict
			}, someone{1000, 1000, []int64{1000, 1234}}},
			"user of the image": {userImage, func(*runtime.LinuxContainerSecurityContext) {}, someone{1000, 1003, []int64{50, 1003}}},
			"user against the image's": {userImage, func(c *runtime.LinuxContainerSecurityContext) {
				c.RunAsUser, c.RunAsGroup = value(7), value(8)
			}, someone{7, 8, []int64{8}}},
		} {
			p.run(name, func(t *testing.T, p *pod) {
				p.s.pull(c.image)
				id := p.sleeper(name, security(c.change), func(cfg *runtime.ContainerConfig) { cfg.Image.Image = c.image })
				p.s.expectIdentity(id, c.want)
			})
		}
	})
}

// expectIdentity looks at the status, the first process and another one.
func (s *server) expectIdentity(id string, want someone) {
	s.t.Helper()
	user := s.status(id).User.GetLinux()
	slices.Sort(user.GetSupplementalGroups())
	got := someone{user.GetUid(), user.GetGid(), user.GetSupplementalGroups()}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(someone{})); diff != "" {
		s.t.Errorf("user of the status (-want +got):\n%s", diff)
	}
	ids := func(id int64) string { return strings.Repeat(fmt.Sprintf("%d\t", id), 3) + fmt.Sprint(id) }
	if got, want := s.procField(id, "Uid")+"; "+s.procField(id, "Gid"), ids(want.uid)+"; "+ids(want.gid); got != want {
		s.t.Errorf("first process: %q, want %q", got, want)
	}
	groups := strings.Trim(fmt.Sprint(want.groups), "[]")
	if got := s.procField(id, "Groups"); got != groups {
		s.t.Errorf("groups of the first process: %q, want %q", got, groups)
	}
	s.expect(id, "id -u; id -g; grep Groups /proc/self/status", fmt.Sprintf("%d\n%d\nGroups:\t%s \n", want.uid, want.gid, groups))
}

// TestIdentityRefused: a group without a user, and a name that the image lacks.
func TestIdentityRefused(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		p := s.pod()
		for name, change := range map[string]func(*runtime.LinuxContainerSecurityContext){
			"group":    func(c *runtime.LinuxContainerSecurityContext) { c.RunAsGroup = value(5) },
			"stranger": func(c *runtime.LinuxContainerSecurityContext) { c.RunAsUsername = "stranger" },
		} {
			if _, err := p.start(p.config(name, "exec sleep 1000", security(change))); err == nil || !strings.Contains(err.Error(), "user") {
				t.Errorf("%s: got %v, want a refusal", name, err)
			}
		}
	})
}

// TestNoNewPrivileges: su, which is root's and setuid, gives or gives not.
func TestNoNewPrivileges(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		p := s.pod()
		s.pull(setuidImage)
		for name, c := range map[string]struct {
			no       bool
			bit      string
			complain string // what su says
		}{
			"granted": {false, "0", "incorrect password"},
			"refused": {true, "1", "must be suid"},
		} {
			p.run(name, func(t *testing.T, p *pod) {
				id := p.sleeper(name, security(func(sc *runtime.LinuxContainerSecurityContext) {
					sc.NoNewPrivs, sc.RunAsUser, sc.RunAsGroup = c.no, value(1000), value(1000)
				}), func(cfg *runtime.ContainerConfig) { cfg.Image.Image = setuidImage })
				if got := p.s.procField(id, "NoNewPrivs"); got != c.bit {
					t.Errorf("first process: NoNewPrivs %s", got)
				}
				p.s.expect(id, "grep NoNewPrivs /proc/self/status | cut -f2", c.bit+"\n")
				p.s.refused(id, c.complain, "/suid/su", "-c", "true", "root")
			})
		}
	})
}
