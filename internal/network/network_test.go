package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// The tests need root and the CNI plugins of Debian. They run in a network
// namespace that stands for the host's: bridges and firewall rules made here
// are real, but not the machine's. What the namespace would hide is checked in
// it at the end.

const pluginDir = "/usr/lib/cni"

const innerEnv = "CAISSON_NETWORK_TEST_INNER"

func TestMain(m *testing.M) {
	if dir := os.Getenv(daemonEnv); dir != "" {
		os.Exit(playDaemon(dir))
	}
	if os.Getenv(innerEnv) != "" {
		os.Exit(inner(m))
	}
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "internal/network: these tests need root")
		os.Exit(1)
	}
	_, statErr := os.Stat("/var/lib/cni")
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), innerEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	if errors.Is(statErr, os.ErrNotExist) {
		// The CNI library made it; it has no setting for another place.
		for _, dir := range []string{cniCache, "/var/lib/cni"} {
			_ = os.Remove(dir) // somebody else may have begun to use it
		}
	}
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		os.Exit(exit.ExitCode())
	case err != nil:
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func inner(m *testing.M) int {
	if err := loopbackUp(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	code := m.Run()
	complain := func(what string, found ...string) {
		if len(found) > 0 {
			fmt.Fprintln(os.Stderr, "left behind:", what, found)
			code = 1
		}
	}
	links, err := net.Interfaces()
	if err != nil {
		complain(err.Error())
	}
	for _, l := range links {
		if l.Name != "lo" {
			complain("link", l.Name)
		}
	}
	rules, err := exec.Command("iptables-save").Output()
	if err != nil {
		complain("iptables-save", err.Error())
	}
	for line := range strings.Lines(string(rules)) {
		// portmap keeps chains and rules of its own for all containers.
		if strings.Contains(line, "caisson-") {
			complain("rule", line)
		}
	}
	cache, err := filepath.Glob(filepath.Join(cniCache, "*-caisson-test*"))
	if err != nil {
		complain(err.Error())
	}
	complain("cached result", cache...)
	return code
}

// host is a Manager with directories of its own and a CNI network on a bridge
// of its own.
type host struct {
	*Manager
	dir, bridge, leases string
	noMasq              bool
}

func newHost(t *testing.T) *host {
	t.Helper()
	h := &host{dir: t.TempDir(), bridge: "cst" + fmt.Sprint(os.Getpid()%10000)}
	h.leases = filepath.Join(h.dir, "leases")
	for _, d := range []string{"conf", "leases"} {
		if err := os.Mkdir(filepath.Join(h.dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	h.Manager, err = New(Config{
		NetNSDir:   filepath.Join(h.dir, "netns"),
		CNIConfDir: filepath.Join(h.dir, "conf"),
		CNIBinDirs: []string{pluginDir},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = exec.Command("ip", "link", "del", h.bridge).Run() // not made by every test
		h.checkEmpty(t)
	})
	return h
}

// configure writes a CNI configuration; extra plugins are JSON objects.
func (h *host) configure(t *testing.T, extra ...string) {
	t.Helper()
	list := append([]string{fmt.Sprintf(`{"type": "bridge", "bridge": %q, "isGateway": true, "ipMasq": %t,
		"ipam": {"type": "host-local", "subnet": "10.213.7.0/24", "dataDir": %q, "routes": [{"dst": "0.0.0.0/0"}]}}`, h.bridge, !h.noMasq, h.leases)}, extra...)
	conf := `{"cniVersion": "0.4.0", "name": "caissontest", "plugins": [` + strings.Join(list, ",") + `]}`
	if err := os.WriteFile(filepath.Join(h.dir, "conf", "10-test.conflist"), []byte(conf), 0o644); err != nil {
		t.Fatal(err)
	}
}

const portmap = `{"type": "portmap", "capabilities": {"portMappings": true}}`

// checkEmpty looks for what a sandbox could leave.
func (h *host) checkEmpty(t *testing.T) {
	t.Helper()
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(h.dir))
	if err != nil {
		t.Error(err)
	}
	for _, m := range mounts {
		t.Errorf("mount left: %s", m.Mountpoint)
		_ = unix.Unmount(m.Mountpoint, unix.MNT_DETACH)
	}
	files, err := filepath.Glob(filepath.Join(h.dir, "netns", "*"))
	if err != nil || len(files) > 0 {
		t.Errorf("files left: %v, %v", files, err)
	}
	if leases := h.leased(t); len(leases) > 0 {
		t.Errorf("addresses left: %v", leases)
	}
	links, err := net.Interfaces()
	if err != nil {
		t.Error(err)
	}
	for _, l := range links {
		if strings.HasPrefix(l.Name, "veth") {
			t.Errorf("link left: %s", l.Name)
		}
	}
}

func (h *host) leased(t *testing.T) []string {
	t.Helper()
	leases, err := filepath.Glob(filepath.Join(h.leases, "caissontest", "10.*"))
	if err != nil {
		t.Error(err)
	}
	return leases
}

// listenIn answers every connection to an address inside a namespace.
func listenIn(t *testing.T, path, addr string) {
	t.Helper()
	var l net.Listener
	err := inNetNS(path, func() (err error) {
		l, err = net.Listen("tcp", addr)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprint(c, "hello")
			c.Close()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
	})
}

func dial(t *testing.T, addr string) {
	t.Helper()
	var d net.Dialer
	c, err := d.DialContext(t.Context(), "tcp", addr)
	if err != nil {
		t.Error(err)
		return
	}
	defer c.Close()
	buf := make([]byte, 5)
	if _, err := c.Read(buf); err != nil || string(buf) != "hello" {
		t.Errorf("%s said %q, %v", addr, buf, err)
	}
}

func TestNone(t *testing.T) {
	h := newHost(t)
	req := Request{ID: "default/a", Name: "testnone", Mode: None}
	before := hostNetNS(t)
	res, err := h.Setup(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	if !isNetNS(res.NetNSPath) || len(res.Addresses) != 0 {
		t.Errorf("result %+v", res)
	}
	listenIn(t, res.NetNSPath, "127.0.0.1:80")
	err = inNetNS(res.NetNSPath, func() error {
		c, err := net.Dial("tcp", "127.0.0.1:80") // loopback is up
		if err != nil {
			return err
		}
		return c.Close()
	})
	if err != nil {
		t.Error(err)
	}
	if hostNetNS(t) != before {
		t.Error("the process changed its network namespace")
	}
	if _, err := h.Setup(t.Context(), req); !errdefs.IsAlreadyExists(err) {
		t.Errorf("set up again: %v", err)
	}
	if !isNetNS(res.NetNSPath) {
		t.Error("the refused second set-up took the first one down")
	}
	for range 2 {
		if err := h.Teardown(t.Context(), req); err != nil {
			t.Error(err)
		}
	}
}

func hostNetNS(t *testing.T) string {
	t.Helper()
	l, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestManyAtOnce(t *testing.T) {
	h, before := newHost(t), hostNetNS(t)
	done := make(chan error)
	const n = 20
	for i := range n {
		go func() {
			req := Request{ID: "default/a", Name: fmt.Sprint("testmany", i), Mode: None}
			_, err := h.Setup(t.Context(), req)
			done <- errors.Join(err, h.Teardown(t.Context(), req))
		}()
	}
	for range n {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if hostNetNS(t) != before {
		t.Error("the process changed its network namespace")
	}
}

func TestHostAndGivenDoNothing(t *testing.T) {
	h := newHost(t)
	for _, mode := range []Mode{Host, Given} {
		req := Request{ID: "default/a", Name: "testhost", Mode: mode}
		if res, err := h.Setup(t.Context(), req); err != nil || res.NetNSPath != "" {
			t.Errorf("%s: %+v, %v", mode, res, err)
		}
		if err := h.Teardown(t.Context(), req); err != nil {
			t.Errorf("%s: %v", mode, err)
		}
	}
	if _, err := os.Stat(filepath.Join(h.dir, "netns")); err == nil {
		t.Error("a directory was made for nothing")
	}
}

func TestCNI(t *testing.T) {
	h := newHost(t)
	h.configure(t, portmap)
	req := Request{
		ID: "default/a", Name: "testcni", Mode: CNI, Hostname: "a", Labels: map[string]string{"app": "x", "odd": "a=b;c"},
		Ports: []PortMapping{{HostPort: 18080, ContainerPort: 80}},
	}
	res, err := h.Setup(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	if len(res.Addresses) != 1 || !strings.HasPrefix(res.Addresses[0], "10.213.7.") || len(res.Interfaces) != 1 ||
		res.Interfaces[0].Name != "eth0" || res.Interfaces[0].MAC == "" ||
		!slices.Equal(res.Interfaces[0].Addresses, []string{res.Addresses[0] + "/24"}) ||
		!slices.Equal(res.Interfaces[0].Gateways, []string{"10.213.7.1"}) || len(res.Raw) == 0 {
		t.Errorf("result %+v", res)
	}
	listenIn(t, res.NetNSPath, res.Addresses[0]+":80")
	dial(t, res.Addresses[0]+":80")
	dial(t, "10.213.7.1:18080") // the host's side of the port mapping
	// A daemon that starts anew knows only its directories; meanwhile the
	// configuration has changed.
	if err := os.Remove(filepath.Join(h.dir, "conf", "10-test.conflist")); err != nil {
		t.Fatal(err)
	}
	again, err := New(h.cfg)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := again.Teardown(t.Context(), Request{ID: req.ID, Name: req.Name, Mode: CNI}); err != nil {
			t.Error(err)
		}
	}
}

// TestTeardownOfRemains takes down what is left after the namespace, or it and
// the record, are gone: after somebody's umount, and after a reboot.
func TestTeardownOfRemains(t *testing.T) {
	for name, record := range map[string]bool{"namespace gone": true, "rebooted": false} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			// The bridge plugin cannot remove its rules without the namespace.
			h.noMasq = true
			h.configure(t, portmap)
			req := Request{ID: "default/a", Name: "testremains", Mode: CNI, Ports: []PortMapping{{HostPort: 18080, ContainerPort: 80}}}
			res, err := h.Setup(t.Context(), req)
			if err != nil {
				t.Fatal(err)
			}
			if err := removeNetNS(res.NetNSPath); err != nil {
				t.Fatal(err)
			}
			if !record {
				if err := h.removeRecord(req.Name); err != nil {
					t.Fatal(err)
				}
			}
			if len(h.leased(t)) != 1 {
				t.Fatal("nothing to take down")
			}
			if err := h.Teardown(t.Context(), req); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestSetupFailures(t *testing.T) {
	h := newHost(t)
	req := Request{ID: "default/a", Name: "testfail", Mode: CNI}
	fails := func(what string, is func(error) bool, words ...string) {
		t.Helper()
		_, err := h.Setup(t.Context(), req)
		if err == nil || !is(err) {
			t.Errorf("%s: %v", what, err)
			return
		}
		for _, w := range words {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%s: %q is missing in: %v", what, w, err)
			}
		}
		h.checkEmpty(t)
	}
	any := func(error) bool { return true }
	conf := filepath.Join(h.dir, "conf")
	fails("no configuration", errdefs.IsFailedPrecondition, conf, ".conflist")
	if err := os.WriteFile(filepath.Join(conf, "10-test.conflist"), []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	fails("broken configuration", errdefs.IsFailedPrecondition, conf)
	h.configure(t)
	req.Ports = []PortMapping{{HostPort: 1, ContainerPort: 1}}
	fails("ports without portmap", errdefs.IsFailedPrecondition, "portMappings")
	req.Ports = nil
	h.configure(t, `{"type": "no-such-plugin"}`)
	fails("missing plugin", errdefs.IsFailedPrecondition, "no-such-plugin", pluginDir)
	// Fails after the bridge plugin has done its part, which must be undone.
	h.configure(t, `{"type": "tuning", "sysctl": {"net.core.no_such_thing": "1"}}`)
	fails("failing plugin", any)
	if err := os.Remove(conf + "/10-test.conflist"); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(conf); err != nil {
		t.Fatal(err)
	}
	fails("no configuration directory", errdefs.IsFailedPrecondition, conf)
	for _, bad := range []Request{
		{Name: "", Mode: None}, {Name: "../x", Mode: None}, {Name: "a.cni", Mode: None}, {Name: "a", Mode: "magic"},
		{Name: "a", Mode: None, Ports: []PortMapping{{HostPort: 1, ContainerPort: 1}}},
		{Name: "a", Mode: CNI, Ports: []PortMapping{{HostPort: 0, ContainerPort: 1}}},
		{Name: "a", Mode: CNI, Ports: []PortMapping{{HostPort: 1, ContainerPort: 1, Protocol: "icmp"}}},
		{Name: "a", Mode: CNI, Ports: []PortMapping{{HostPort: 1, ContainerPort: 1, HostIP: "here"}}},
		{Name: "a", Mode: None, UIDs: []specs.LinuxIDMapping{{Size: 1}}},
	} {
		req = bad
		fails(fmt.Sprintf("%+v", bad), errdefs.IsInvalidArgument)
	}
}

func TestSetupCancelled(t *testing.T) {
	h := newHost(t)
	h.configure(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := h.Setup(ctx, Request{ID: "default/a", Name: "testcancel", Mode: CNI}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestNew(t *testing.T) {
	for _, cfg := range []Config{
		{}, {NetNSDir: "a", CNIConfDir: "/b", CNIBinDirs: []string{"/c"}}, {NetNSDir: "/a", CNIConfDir: "/b"},
		{NetNSDir: "/a", CNIConfDir: "/b", CNIBinDirs: []string{"c"}},
	} {
		if _, err := New(cfg); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%+v: %v", cfg, err)
		}
	}
}

func BenchmarkNone(b *testing.B) {
	m, err := New(Config{NetNSDir: b.TempDir(), CNIConfDir: "/none", CNIBinDirs: []string{pluginDir}})
	if err != nil {
		b.Fatal(err)
	}
	req := Request{ID: "default/a", Name: "testbench", Mode: None}
	for b.Loop() {
		if _, err := m.Setup(b.Context(), req); err != nil {
			b.Fatal(err)
		}
		if err := m.Teardown(b.Context(), req); err != nil {
			b.Fatal(err)
		}
	}
}
