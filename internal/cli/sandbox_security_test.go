package cli

import (
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"caisson/internal/manifest"
)

// podSpec is what podOpts make of a specification of an image's user.
func podSpec(t *testing.T, uid uint32, ctr manifest.Container) (*oci.Spec, error) {
	t.Helper()
	caps := []string{"CAP_CHOWN", "CAP_KILL"}
	spec := &oci.Spec{
		Root: &specs.Root{}, Linux: &specs.Linux{},
		Process: &specs.Process{
			NoNewPrivileges: true, User: specs.User{UID: uid, GID: uid, AdditionalGids: []uint32{7}},
			Capabilities: &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
		},
	}
	return spec, oci.Compose(podOpts(ctr)...)(t.Context(), nil, &containers.Container{ID: "web-c"}, spec)
}

func TestPodOpts(t *testing.T) {
	group := int64(3000)
	spec, err := podSpec(t, 1000, manifest.Container{
		Resources: manifest.Resources{CPUShares: 512},
		Security: manifest.Security{
			Group: &group, Groups: []int64{7, 2000}, NonRoot: true, ReadOnlyRoot: true,
			AddCapabilities: []string{"CAP_NET_ADMIN"}, DropCapabilities: []string{"CAP_KILL"},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(specs.User{UID: 1000, GID: 3000, AdditionalGids: []uint32{7, 2000}}, spec.Process.User); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"CAP_CHOWN", "CAP_NET_ADMIN"}, spec.Process.Capabilities.Bounding); diff != "" {
		t.Error(diff)
	}
	if !spec.Root.Readonly || spec.Process.NoNewPrivileges || *spec.Linux.Resources.CPU.Shares != 512 {
		t.Errorf("%+v, %+v, %+v", spec.Root, spec.Process, spec.Linux.Resources)
	}
}

func TestPodOptsDropAll(t *testing.T) {
	for name, tc := range map[string]struct {
		security manifest.Security
		want     []string
	}{
		"all but one":          {manifest.Security{DropCapabilities: []string{"ALL"}, AddCapabilities: []string{"CAP_CHOWN"}}, []string{"CAP_CHOWN"}},
		"all":                  {manifest.Security{DropCapabilities: []string{"ALL"}}, nil},
		"added and dropped":    {manifest.Security{DropCapabilities: []string{"CAP_SYS_TIME"}, AddCapabilities: []string{"CAP_SYS_TIME"}}, []string{"CAP_CHOWN", "CAP_KILL"}},
		"nothing of either":    {manifest.Security{}, []string{"CAP_CHOWN", "CAP_KILL"}},
		"no new privileges":    {manifest.Security{NoNewPrivileges: true}, []string{"CAP_CHOWN", "CAP_KILL"}},
		"dropped what is none": {manifest.Security{DropCapabilities: []string{"CAP_BPF"}}, []string{"CAP_CHOWN", "CAP_KILL"}},
	} {
		spec, err := podSpec(t, 0, manifest.Container{Security: tc.security})
		if err != nil {
			t.Fatal(err)
		}
		if got := spec.Process.Capabilities.Bounding; strings.Join(got, " ") != strings.Join(tc.want, " ") {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
		if spec.Process.NoNewPrivileges != tc.security.NoNewPrivileges {
			t.Errorf("%s: no new privileges: %v", name, spec.Process.NoNewPrivileges)
		}
	}
}

func TestRunAsNonRoot(t *testing.T) {
	_, err := podSpec(t, 0, manifest.Container{Security: manifest.Security{NonRoot: true}})
	if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), `"web-c" would run as root`) {
		t.Errorf("an image whose user is root: %v", err)
	}
}
