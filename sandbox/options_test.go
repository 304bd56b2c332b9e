package sandbox

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	core "github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	api "caisson/api/caisson/sandbox/v1"
	"caisson/internal/network"
)

func TestCreateRefusesBadInputAndLeavesNothing(t *testing.T) {
	r := newRig(t)
	for name, tc := range map[string]struct {
		id   string
		opts *api.Options
		want string
	}{
		"slash":           {"a/b", &api.Options{}, "a/b"},
		"dots":            {"..", &api.Options{}, ".."},
		"empty":           {"", &api.Options{}, "ID"},
		"isolation":       {"x", &api.Options{Isolation: "wall"}, "wall"},
		"hostname":        {"x", &api.Options{Hostname: "a b"}, "hostname"},
		"host sysctl":     {"x", &api.Options{Sysctls: map[string]string{"vm.swappiness": "1"}}, "vm.swappiness"},
		"path in sysctl":  {"x", &api.Options{Sysctls: map[string]string{"net/../vm/swappiness": "1"}}, "sysctl"},
		"one mapping":     {"x", &api.Options{Namespaces: &api.Namespaces{Uids: []*api.IDMapping{{Size: 1}}}}, "user namespace"},
		"extra host":      {"x", &api.Options{ExtraHosts: map[string]string{"db": "nowhere"}}, "nowhere"},
		"line in DNS":     {"x", &api.Options{Dns: &api.DNS{Servers: []string{"1.1.1.1\noptions x"}}}, "DNS"},
		"ports, no CNI":   {"x", &api.Options{PortMappings: []*api.PortMapping{{HostPort: 1, ContainerPort: 1}}}, "port"},
		"unknown network": {"x", &api.Options{Network: 17}, "network"},
	} {
		err := r.ctl.Create(r.ctx(), core.Sandbox{ID: tc.id}, core.WithOptions(tc.opts))
		if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	err := r.ctl.Create(r.ctx(), core.Sandbox{ID: "x"}, core.WithOptions(&specs.Spec{}))
	if !errdefs.IsInvalidArgument(err) {
		t.Errorf("options of another kind: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(r.dir, "s", "*")); len(left) > 0 {
		t.Errorf("left over: %v", left)
	}
	if list, err := r.store.List(r.ctx()); err != nil || len(list) > 0 {
		t.Errorf("records left over: %v, %v", list, err)
	}
}

func TestClientsOwnRecordIsTaken(t *testing.T) {
	r := newRig(t)
	ctx := r.ctx()
	sb := core.Sandbox{ID: "sb", Labels: map[string]string{"by": "client"}, Runtime: core.RuntimeOpts{Name: runtimeType}}
	if _, err := r.store.Create(ctx, sb); err != nil {
		t.Fatal(err)
	}
	r.run("sb", &api.Options{})
	if err := r.ctl.Shutdown(ctx, "sb"); err != nil {
		t.Fatal(err)
	}
	if got, err := r.store.Get(ctx, "sb"); err != nil || got.Labels["by"] != "client" {
		t.Errorf("the client's record: %+v, %v", got, err)
	}
	if err := r.store.Delete(ctx, "sb"); err != nil {
		t.Error(err)
	}
}

func TestSharedPIDNamespace(t *testing.T) {
	r := newRig(t)
	r.run("sb", &api.Options{Namespaces: &api.Namespaces{SharePid: true}})
	r.container("sb", "a", "busybox sleep 1000")
	out := r.container("sb", "b", "busybox ps -o pid,args; busybox cat /proc/1/comm; (busybox sleep 1000 &); exit 2")
	if exit := r.wait("sb", "b"); exit.Status != 2 {
		t.Errorf("exit %+v", exit)
	}
	if got := r.output(out); !strings.Contains(got, "sleep 1000") || !strings.Contains(got, "caisson-holder") {
		t.Errorf("b saw:\n%s", got)
	}
	// What b left behind ended with it: only a's process and ours are there.
	if pids, err := r.tasks("sb").Pids(r.ctx(), "a"); err != nil || len(pids) != 1 {
		t.Errorf("pids of a: %v, %v", pids, err)
	}
}

func TestUserNamespace(t *testing.T) {
	r := newRig(t)
	ids := []*api.IDMapping{{ContainerId: 0, HostId: 100000, Size: 65536}}
	inst := r.run("sb", &api.Options{
		Namespaces: &api.Namespaces{Uids: ids, Gids: ids},
		Sysctls:    map[string]string{"net.ipv4.ip_unprivileged_port_start": "7", "kernel.shmmni": "99"},
	})
	got, err := os.ReadFile(fmt.Sprintf("/proc/%d/uid_map", inst.Pid))
	if err != nil || strings.Join(strings.Fields(string(got)), " ") != "0 100000 65536" {
		t.Errorf("uid_map %q, %v", got, err)
	}
	r.files("sb")
	for _, name := range []string{"etc/hostname", "etc/hosts", "etc/resolv.conf", "shm"} {
		var st unix.Stat_t
		if err := unix.Stat(r.path("sb", name), &st); err != nil || st.Uid != 100000 || st.Gid != 100000 {
			t.Errorf("%s belongs to %d:%d, not to the sandbox's root (%v)", name, st.Uid, st.Gid, err)
		}
	}
	spec := &specs.Spec{}
	if err := json.Unmarshal(inst.Spec.GetValue(), spec); err != nil {
		t.Fatal(err)
	}
	var kinds []string
	for _, ns := range spec.Linux.Namespaces {
		kinds = append(kinds, string(ns.Type))
	}
	slices.Sort(kinds)
	if want := []string{"ipc", "network", "user", "uts"}; !slices.Equal(kinds, want) {
		t.Errorf("namespaces %v, want %v", kinds, want)
	}
}

func TestCRIOptions(t *testing.T) {
	config := func(ns *cri.NamespaceOption) *cri.PodSandboxConfig {
		return &cri.PodSandboxConfig{
			Hostname:    "pod",
			Annotations: map[string]string{"from": "config"},
			Linux:       &cri.LinuxPodSandboxConfig{SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: ns}},
		}
	}
	create := func(ns *cri.NamespaceOption, netns string) (settings, error) {
		any, err := typeurl.MarshalAny(config(ns))
		if err != nil {
			t.Fatal(err)
		}
		return parseSettings(core.Sandbox{ID: "sb"}, core.CreateOptions{Options: any, NetNSPath: netns, Annotations: map[string]string{"from": "create", "x": "y"}}, network.None)
	}
	node, pod := cri.NamespaceMode_NODE, cri.NamespaceMode_POD
	s, err := create(&cri.NamespaceOption{Network: pod, Pid: cri.NamespaceMode_CONTAINER}, "/run/netns/x")
	if err != nil || s.HostUTS || s.SharePID || s.Sysctls["net.ipv4.ip_unprivileged_port_start"] != "0" || s.Sysctls["net.ipv4.ping_group_range"] == "" {
		t.Errorf("pod network: %+v, %v", s, err)
	}
	if s.Annotations["from"] != "config" || s.Annotations["x"] != "y" {
		t.Errorf("annotations %v", s.Annotations)
	}
	s, err = create(&cri.NamespaceOption{Network: node, Ipc: node, Pid: pod}, "")
	if err != nil || !s.HostUTS || !s.HostIPC || !s.SharePID || len(s.Sysctls) > 0 {
		t.Errorf("host network: %+v, %v", s, err)
	}
	if _, err := create(&cri.NamespaceOption{Network: pod}, ""); !errdefs.IsInvalidArgument(err) {
		t.Errorf("pod network without a namespace: %v", err)
	}
	user := func(mode cri.NamespaceMode, ids ...*cri.IDMapping) *cri.NamespaceOption {
		return &cri.NamespaceOption{Network: pod, UsernsOptions: &cri.UserNamespace{Mode: mode, Uids: ids, Gids: ids}}
	}
	s, err = create(user(pod, &cri.IDMapping{HostId: 70000, Length: 1000}), "/run/netns/x")
	if err != nil || len(s.UIDs) != 1 || s.UIDs[0].HostID != 70000 || s.Sysctls["net.ipv4.ping_group_range"] != "" {
		t.Errorf("user namespace: %+v, %v", s, err)
	}
	for _, mode := range []cri.NamespaceMode{cri.NamespaceMode_CONTAINER, cri.NamespaceMode_TARGET} {
		if _, err := create(user(mode, &cri.IDMapping{Length: 1}), "/run/netns/x"); !errdefs.IsInvalidArgument(err) {
			t.Errorf("user namespace mode %v: %v", mode, err)
		}
	}
	for name, ids := range map[string]*cri.IDMapping{"without ID 0": {ContainerId: 1, HostId: 70000, Length: 1000}, "empty": {HostId: 70000}} {
		if _, err := create(user(pod, ids), "/run/netns/x"); !errdefs.IsInvalidArgument(err) {
			t.Errorf("a mapping %s: %v", name, err)
		}
	}
}
