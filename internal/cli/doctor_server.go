package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	introspection "github.com/containerd/containerd/api/services/introspection/v1"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/plugins"
	"google.golang.org/grpc"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const shimName = "containerd-shim-caisson-v2"

// checkDaemon asks whether caissond runs, with its own engine or without. Of its
// sockets, only the shim binary's always ends with it.
func (d *doctor) checkDaemon(ctx context.Context) {
	socket := filepath.Join(d.cfg.State, "shim.sock")
	switch err := dialUnix(ctx, socket); {
	case err == nil:
		d.ok("caissond", "answers at %s", socket)
	case errors.Is(err, fs.ErrPermission):
		d.fail("caissond", "run caisson doctor as root", "%s: no permission", socket)
	default:
		d.warn("caissond", "start it: `caissond`, or `caissond --engine none` beside a containerd; the shim binary does so when containerd first needs it", "does not run: nothing answers at %s", socket)
	}
	path := strings.TrimPrefix(d.app.address, "unix://")
	if dialUnix(ctx, path) != nil {
		return // it has no engine, or it does not run
	}
	client, err := containerd.New(path, containerd.WithTimeout(dialTimeout))
	if err != nil {
		d.fail("engine", "see the daemon's log", "%s: %v", path, err)
		return
	}
	defer client.Close()
	if v, err := client.Version(ctx); err != nil {
		d.fail("engine", "see the daemon's log", "%s: %v", path, err)
	} else {
		d.ok("engine", "containerd %s at %s", v.Version, path)
	}
}

func dialUnix(ctx context.Context, path string) error {
	dialer := net.Dialer{Timeout: dialTimeout}
	conn, err := dialer.DialContext(ctx, "unix", path)
	if err != nil {
		return err
	}
	return conn.Close()
}

// checkContainerd looks at the containerd beside caissond. That there is none is
// no fault: the daemon may have its own engine.
func (d *doctor) checkContainerd(ctx context.Context) {
	address := d.cfg.Containerd.Address
	if err := dialUnix(ctx, address); err != nil {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
			d.ok("containerd", "none at %s; caissond has one in it, unless it runs with --engine none", address)
			return
		}
		d.fail("containerd", "run caisson doctor as root", "%s: %v", address, err)
		return
	}
	client, err := containerd.New(address, containerd.WithTimeout(dialTimeout))
	if err != nil {
		d.fail("containerd", "see its log", "%s: %v", address, err)
		return
	}
	defer client.Close()
	v, err := client.Version(ctx)
	if err != nil {
		d.fail("containerd", "see its log", "%s: %v", address, err)
		return
	}
	d.judgeContainerd(v.Version, address)
	resp, err := client.IntrospectionService().Plugins(ctx)
	if err != nil {
		d.warn("containerd plugins", "see containerd's log", "%v", err)
	} else {
		d.judgePlugins(resp.GetPlugins())
	}
	d.checkCRI(ctx, client)
	if server, err := client.IntrospectionService().Server(ctx); err == nil {
		d.checkShim(int(server.GetPid()))
	}
}

func (d *doctor) judgeContainerd(version, address string) {
	switch {
	case older(version, "2.0"):
		d.fail("containerd", "install containerd 2.x: the sandbox API of older ones is not what Caisson implements", "%s at %s", version, address)
	case firstNumbers(version) == [2]int{2, 3}:
		d.warn("containerd", `let [plugins."io.containerd.cri.v1.images".pinned_images] sandbox name an image that this host has, or install containerd 2.4`,
			"%s at %s; it pulls a pause image, which nothing runs", version, address)
	default:
		d.ok("containerd", "%s at %s", version, address)
	}
}

func (d *doctor) judgePlugins(all []*introspection.Plugin) {
	i := slices.IndexFunc(all, func(p *introspection.Plugin) bool {
		return p.GetType() == plugins.SandboxControllerPlugin.String() && p.GetID() == sandboxer
	})
	switch {
	case i < 0:
		d.warn("containerd plugin", "add what `caisson config containerd` prints to its configuration and restart it", "containerd has no sandboxer %q; only `ctr run` and the sandboxer \"shim\" can use Caisson", sandboxer)
	case all[i].GetInitErr() != nil:
		d.fail("containerd plugin", "see containerd's log", "sandboxer %q: %s", sandboxer, all[i].GetInitErr().GetMessage())
	case all[i].GetExports()["address"] != "" && all[i].GetExports()["address"] != filepath.Join(d.cfg.State, "sandboxer.sock"):
		d.fail("containerd plugin", "print it again: caisson config containerd --state "+d.cfg.State,
			"sandboxer %q is expected at %s, caissond has it in %s", sandboxer, all[i].GetExports()["address"], d.cfg.State)
	default:
		d.ok("containerd plugin", "sandboxer %q", sandboxer)
	}
}

// criConfig is what CRI tells of its configuration.
type criConfig struct {
	Containerd struct {
		Runtimes map[string]criRuntime `json:"runtimes"`
	} `json:"containerd"`
}

type criRuntime struct {
	Type      string         `json:"runtimeType"`
	Sandboxer string         `json:"sandboxer"`
	Options   map[string]any `json:"options"`
}

func (d *doctor) checkCRI(ctx context.Context, client *containerd.Client) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	conn := client.Conn().(grpc.ClientConnInterface) // containerd keeps the type out of its API
	resp, err := runtime.NewRuntimeServiceClient(conn).Status(ctx, &runtime.StatusRequest{Verbose: true})
	if err != nil {
		d.warn("CRI", "enable it (disabled_plugins in containerd's configuration), if this is a node of Kubernetes", "does not answer: %s", clean(err.Error()))
		return
	}
	for _, c := range resp.GetStatus().GetConditions() {
		if !c.GetStatus() && (c.GetType() == runtime.RuntimeReady || c.GetType() == runtime.NetworkReady) {
			d.warn("CRI", "see containerd's log", "%s is false: %s", c.GetType(), c.GetMessage())
		}
	}
	var cfg criConfig
	if err := json.Unmarshal([]byte(resp.GetInfo()["config"]), &cfg); err != nil {
		d.warn("CRI handler", "compare containerd's configuration with `caisson config containerd`", "its configuration cannot be read: %v", err)
		return
	}
	d.judgeHandler(cfg)
}

// judgeHandler looks at the runtimes of ours.
func (d *doctor) judgeHandler(cfg criConfig) {
	found := 0
	for name, r := range cfg.Containerd.Runtimes {
		if r.Type != runtimeName && r.Sandboxer != sandboxer {
			continue
		}
		found++
		const printed = "make it as `caisson config containerd` prints it, and restart containerd"
		switch {
		case r.Type != runtimeName:
			d.fail("CRI handler "+name, printed, "sandboxer %q with runtime_type %q", r.Sandboxer, r.Type)
		case r.Sandboxer != sandboxer && r.Sandboxer != "shim":
			d.fail("CRI handler "+name, printed, "runtime_type %q with sandboxer %q", r.Type, r.Sandboxer)
		case len(r.Options) > 0:
			d.fail("CRI handler "+name, "remove the options table: settings belong into caissond's configuration", "it has options, with which pods with a user namespace fail")
		default:
			d.ok("CRI handler "+name, "sandboxer %q", r.Sandboxer)
		}
	}
	if found == 0 {
		d.warn("CRI handler", "add what `caisson config containerd` prints to containerd's configuration and restart it", "no runtime handler uses Caisson")
	}
}

// checkShim looks for the shim binary where containerd does: in its PATH and
// beside its program.
func (d *doctor) checkShim(pid int) {
	proc := fmt.Sprintf("/proc/%d", pid)
	environ, err := os.ReadFile(proc + "/environ")
	if err != nil {
		d.warn("shim binary", "run caisson doctor as root, on the host of containerd", "containerd's environment cannot be read: %v", err)
		return
	}
	dirs := []string{}
	for _, v := range strings.Split(string(environ), "\x00") {
		if path, isPath := strings.CutPrefix(v, "PATH="); isPath {
			dirs = filepath.SplitList(path)
		}
	}
	if exe, err := os.Readlink(proc + "/exe"); err == nil {
		dirs = append(dirs, filepath.Dir(exe))
	}
	for _, dir := range dirs {
		if exists(filepath.Join(dir, shimName)) {
			d.ok("shim binary", "%s", filepath.Join(dir, shimName))
			return
		}
	}
	d.fail("shim binary", "put "+shimName+" into a directory of its PATH, or beside it: without it no container starts", "containerd (pid %d) does not find %s", pid, shimName)
}
