package cgroup

import (
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/moby/sys/mountinfo"
)

func TestResolve(t *testing.T) {
	for in, want := range map[string]string{
		"/kubepods/pod1":         "/kubepods/pod1",
		"kubepods//pod1/":        "/kubepods/pod1",
		"/":                      "/",
		"/a:b/c":                 "/a:b/c",
		"system.slice:runc:1234": "/system.slice/runc-1234.scope",
		":cri:x":                 "/system.slice/cri-x.scope",
		"kubepods-burstable-pod1.slice:cri-containerd:x": "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-containerd-x.scope",
		"a.slice::a-b.slice":                             "/a.slice/a-b.slice",
		"-.slice:p:n":                                    "/p-n.scope",
		"kubepods-besteffort.slice":                      "/kubepods.slice/kubepods-besteffort.slice",
		"/kubepods.slice/x.slice":                        "/kubepods.slice/x.slice",
		"...":                                            "/...",
	} {
		got, err := Resolve(in)
		if err != nil || got != want {
			t.Errorf("%q: %q, %v; want %q", in, got, err, want)
		}
	}
	for _, in := range []string{"", "/a/../b", "..", "a/..", "x:y", "a:b:c:d", "a:b:", "a/b.slice:p:n", "a--b.slice:p:n", "nodot:p:n", "..:a:b", "a.slice:p/q:n", "/a\nb"} {
		if got, err := Resolve(in); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
}

func TestScope(t *testing.T) {
	for dir, want := range map[string]string{
		"/kubepods.slice/kubepods-pod1.slice": "kubepods-pod1.slice:p:n",
		"/a.slice":                            "a.slice:p:n",
		"/caisson/x":                          "system.slice:p:n",
		"/b.slice/a.slice":                    "system.slice:p:n", // not where systemd keeps a.slice
		"":                                    "system.slice:p:n",
	} {
		got := Scope(dir, "p", "n")
		if got != want {
			t.Errorf("%q: %q, want %q", dir, got, want)
		}
		if at, err := Resolve(got); err != nil || want != "system.slice:p:n" && at != dir+"/p-n.scope" {
			t.Errorf("%q is at %q, %v", got, at, err)
		}
	}
}

func TestSubslice(t *testing.T) {
	for parent, want := range map[string]string{
		"caisson.slice":                       "/caisson.slice/caisson-x.slice",
		"/caisson.slice":                      "/caisson.slice/caisson-x.slice",
		"/kubepods.slice/kubepods-pod1.slice": "/kubepods.slice/kubepods-pod1.slice/kubepods-pod1-x.slice",
		"kubepods-pod1.slice":                 "/kubepods.slice/kubepods-pod1.slice/kubepods-pod1-x.slice",
	} {
		if got, err := Subslice(parent, "x"); err != nil || got != want {
			t.Errorf("%q: %q, %v; want %q", parent, got, err, want)
		}
	}
	for _, parent := range []string{"", "/caisson", "/b.slice/a.slice", "a.slice:p:n", "../a.slice"} {
		if got, err := Subslice(parent, "x"); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %q, %v", parent, got, err)
		}
	}
}

func FuzzResolve(f *testing.F) {
	for _, s := range []string{"/a", "a.slice:b:c", "a-b.slice", "../x", "::"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		got, err := Resolve(in)
		if err != nil {
			return
		}
		// What was resolved stays as it is, so it has no ".." either.
		if again, err := Resolve(got); err != nil || again != got {
			t.Errorf("%q: %q, then %q, %v", in, got, again, err)
		}
	})
}

func TestHostFromMounts(t *testing.T) {
	v1 := func(dir, opts string) *mountinfo.Info {
		return &mountinfo.Info{FSType: "cgroup", Root: "/", Mountpoint: dir, VFSOptions: opts}
	}
	v2 := func(dir string) *mountinfo.Info {
		return &mountinfo.Info{FSType: "cgroup2", Root: "/", Mountpoint: dir, VFSOptions: "rw,nsdelegate"}
	}
	type result struct {
		Mode    Mode
		Dirs    []string
		Unified string
	}
	for name, tt := range map[string]struct {
		mounts []*mountinfo.Info
		want   result
	}{
		"none":    {nil, result{Unavailable, []string{}, ""}},
		"unified": {[]*mountinfo.Info{v2("/sys/fs/cgroup")}, result{Unified, []string{"/sys/fs/cgroup/p"}, "/sys/fs/cgroup"}},
		"hybrid": {
			[]*mountinfo.Info{v1("/sys/fs/cgroup/cpu,cpuacct", "rw,cpu,cpuacct"), v1("/sys/fs/cgroup/systemd", "rw,xattr,name=systemd"), v2("/sys/fs/cgroup/unified")},
			result{Hybrid, []string{"/sys/fs/cgroup/cpu,cpuacct/p", "/sys/fs/cgroup/systemd/p", "/sys/fs/cgroup/unified/p"}, "/sys/fs/cgroup/unified"},
		},
		"legacy, a copy elsewhere": {
			[]*mountinfo.Info{v1("/srv/root/sys/fs/cgroup/pids", "rw,pids"), v1("/sys/fs/cgroup/pids", "rw,pids")},
			result{Legacy, []string{"/sys/fs/cgroup/pids/p"}, ""},
		},
		"unified, elsewhere": {[]*mountinfo.Info{v2("/cg")}, result{Unified, []string{"/cg/p"}, "/cg"}},
	} {
		t.Run(name, func(t *testing.T) {
			h := hostFromMounts(tt.mounts)
			if diff := cmp.Diff(tt.want, result{h.mode, h.dirs("/p"), h.unified}); diff != "" {
				t.Error(diff)
			}
		})
	}
}
