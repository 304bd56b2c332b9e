package task

import (
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"caisson/internal/oci"
)

// TestPlace: where a container's cgroup is said to be after it has joined its
// sandbox, in what form.
func TestPlace(t *testing.T) {
	const (
		podSlice = "/kubepods.slice/kubepods-pod1.slice"
		byCRI    = "kubepods-pod1.slice:cri-containerd:c"
	)
	for name, tt := range map[string]struct {
		systemd   bool
		own, path string // of the sandbox, if the daemon made one; what the client wrote
		want      string
	}{
		"nobody chose":                         {false, "/caisson/ns--sb", "/ns/c", "/caisson/ns--sb/c"},
		"nobody wrote anything":                {false, "/caisson/ns--sb", "", "/caisson/ns--sb/c"},
		"a pod of kubelet":                     {false, "", "/kubepods/pod1/c", "/kubepods/pod1/c"},
		"the slice of a pod, without systemd":  {false, "", byCRI, podSlice + "/cri-containerd-c.scope"},
		"a single container":                   {false, "", "/ns/c", "/ns/c"},
		"nonsense":                             {false, "", "a:b", "a:b"},
		"systemd: nobody chose":                {true, "/caisson.slice/caisson-0123.slice", "/ns/c", "caisson-0123.slice:caisson:ns--c"},
		"systemd: nobody wrote anything":       {true, "/caisson.slice/caisson-0123.slice", "", "caisson-0123.slice:caisson:ns--c"},
		"systemd: a pod of kubelet":            {true, "", byCRI, byCRI},
		"systemd: a single container":          {true, "", "/ns/c", "system.slice:caisson:ns--c"},
		"systemd for this container alone":     {true, "/caisson/ns--sb", "/ns/c", "system.slice:caisson:ns--c"},
		"systemd: the client's choice":         {true, "/caisson.slice/caisson-0123.slice", "a.slice:b:c", "a.slice:b:c"},
		"systemd: the client's choice, a path": {true, "/caisson.slice/caisson-0123.slice", "/mine", "/mine"}, // runc says what it wants
	} {
		t.Run(name, func(t *testing.T) {
			c := newContainer(newTestSet(t), containerRecord{ID: "c", Runtime: oci.Runtime{SystemdCgroup: tt.systemd}})
			m := oci.Membership{DefaultCgroup: "/ns/c"}
			if tt.own != "" {
				m.Cgroup = tt.own + "/c"
			}
			spec := &specs.Spec{Linux: &specs.Linux{CgroupsPath: tt.path}}
			changed := c.place(m, spec)
			changed = m.Join(spec) || changed
			if got := spec.Linux.CgroupsPath; got != tt.want || changed != (tt.want != tt.path) {
				t.Errorf("%q, changed %v; want %q", got, changed, tt.want)
			}
		})
	}
}
