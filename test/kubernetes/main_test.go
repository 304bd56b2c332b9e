package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"caisson/test/apart"
	"caisson/test/daemon"
)

// programsEnv names the directory of Kubernetes' programs.
const programsEnv = "CAISSON_TEST_KUBERNETES"

// engines are what the tests run on.
var engines = []string{daemon.EngineEmbedded, daemon.EngineStock}

func TestMain(m *testing.M) {
	if os.Getenv(programsEnv) == "" {
		os.Exit(m.Run()) // the tests say what they lack
	}
	apart.Main(m, func(context.Context) (func(context.Context, bool) error, error) {
		restore, err := prepareHost()
		if err != nil {
			return nil, err
		}
		return func(context.Context, bool) error { return restore() }, nil
	})
}

func needPrograms(t *testing.T) {
	if os.Getenv(programsEnv) == "" {
		t.Skip("no Kubernetes: run make test-kubernetes")
	}
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
}

// nodeIP is the node's address: an API server takes none of loopback.
const nodeIP = "192.0.2.1"

// directories are empty here, and end with the mount namespace.
var directories = []string{"/run", "/var/lib", "/var/log"}

// others are made by kubelet, and by the mount(8) that it runs, wherever kubelet
// is told to work. They belong to no pod.
var others = []string{"/run/mount", "/var/lib/kubelet", "/var/log/containers"}

// sysctls are those that kubelet sets. They belong to no namespace.
var sysctls = []string{
	"vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops",
	"kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes",
}

// prepareHost gives the node an address and directories of its own. What it
// returns undoes the changes of a kubelet that the namespaces do not.
func prepareHost() (restore func() error, err error) {
	// One run at a time, until this process ends: a second one would take what the
	// first one's kubelet has set for the host's.
	lock, err := os.Open(os.Getenv(programsEnv))
	if err == nil {
		err = unix.Flock(int(lock.Fd()), unix.LOCK_EX)
	}
	if err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	values := map[string]string{}
	for _, name := range sysctls {
		if value, err := os.ReadFile("/proc/sys/" + name); err == nil { // a kernel without it has nothing to restore
			values[name] = string(value)
		}
	}
	for _, dir := range directories {
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
			return nil, fmt.Errorf("mount tmpfs on %s: %w", dir, err)
		}
	}
	for _, dir := range others {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return nil, err
		}
	}
	return func() error { return errors.Join(restoreSysctls(values), lock.Close()) }, addNodeIP()
}

func restoreSysctls(values map[string]string) error {
	var errs []error
	for name, value := range values {
		path := "/proc/sys/" + name
		if now, err := os.ReadFile(path); err == nil && string(now) == value {
			continue
		}
		errs = append(errs, os.WriteFile(path, []byte(value), 0))
	}
	return errors.Join(errs...)
}

func addNodeIP() error {
	link := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "node"}}
	addr, err := netlink.ParseAddr(nodeIP + "/24")
	if err == nil {
		err = netlink.LinkAdd(link)
	}
	if err == nil {
		err = netlink.AddrAdd(link, addr)
	}
	if err == nil {
		err = netlink.LinkSetUp(link)
	}
	if err != nil {
		return fmt.Errorf("address of the node: %w", err)
	}
	return nil
}
