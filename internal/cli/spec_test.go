package cli

import (
	"context"
	"testing"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func makeSpec(t *testing.T, opts ...oci.SpecOpts) (*oci.Spec, error) {
	t.Helper()
	ctx := namespaces.WithNamespace(context.Background(), "test")
	return oci.GenerateSpec(ctx, nil, &containers.Container{ID: "web"}, opts...)
}

func TestLimitsInSpec(t *testing.T) {
	spec, err := makeSpec(t, limits{memory: 64 << 20, quota: 50_000, pids: 9}.specOpts()...)
	if err != nil {
		t.Fatal(err)
	}
	r := spec.Linux.Resources
	if *r.Memory.Limit != 64<<20 || *r.CPU.Quota != 50_000 || *r.CPU.Period != cpuPeriod || *r.Pids.Limit != 9 {
		t.Errorf("resources: %+v", r)
	}
	if spec, err = makeSpec(t, limits{}.specOpts()...); err != nil || spec.Linux.Resources.Memory != nil || spec.Linux.Resources.CPU != nil {
		t.Errorf("without limits: %+v, %v", spec.Linux.Resources, err)
	}
}

// The sandboxer joins namespaces that have no path, so none may be given one or left out.
func TestNamespacesAreLeftToTheSandboxer(t *testing.T) {
	for _, unified := range []bool{false, true} {
		spec, err := makeSpec(t, withCgroupView(unified))
		if err != nil {
			t.Fatal(err)
		}
		kinds := map[specs.LinuxNamespaceType]string{}
		for _, ns := range spec.Linux.Namespaces {
			kinds[ns.Type] = ns.Path
		}
		want := map[specs.LinuxNamespaceType]string{"pid": "", "ipc": "", "uts": "", "mount": "", "network": ""}
		if unified {
			want[specs.CgroupNamespace] = ""
		}
		if diff := cmp.Diff(want, kinds); diff != "" {
			t.Errorf("unified %v: %s", unified, diff)
		}
		if last := spec.Mounts[len(spec.Mounts)-1]; last.Destination != "/sys/fs/cgroup" || last.Type != "cgroup" {
			t.Errorf("unified %v: last mount %+v", unified, last)
		}
	}
}

// namedImage is an image of which only the name is asked.
type namedImage struct{ containerd.Image }

func (namedImage) Name() string { return "demo" }

func TestEntrypoint(t *testing.T) {
	word := func(s string) *string { return &s }
	fromImage := oci.WithProcessArgs("entry", "cmd") // as WithImageConfigArgs leaves it
	for name, c := range map[string]struct {
		entrypoint *string
		command    []string
		want       []string
	}{
		"of the image":     {nil, nil, []string{"entry", "cmd"}},
		"another":          {word("sh"), nil, []string{"sh"}},
		"another, command": {word("sh"), []string{"-c", "x"}, []string{"sh", "-c", "x"}},
		"none":             {word(""), []string{"ls"}, []string{"ls"}},
	} {
		n := newContainer{image: namedImage{}, entrypoint: c.entrypoint, command: c.command}
		spec, err := makeSpec(t, fromImage, n.withEntrypoint)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if diff := cmp.Diff(c.want, spec.Process.Args); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	n := newContainer{image: namedImage{}, entrypoint: word("")}
	_, err := makeSpec(t, fromImage, n.withEntrypoint)
	wantInvalid(t, "nothing to run", err)
}
