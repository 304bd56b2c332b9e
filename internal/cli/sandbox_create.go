package cli

import (
	"context"
	"fmt"
	"regexp"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	sandboxapi "caisson/api/caisson/sandbox/v1"
)

// sandboxFlags describe a sandbox; `sandbox create` has all of them, `run` some.
type sandboxFlags struct {
	name, network, hostname, runtime, isolation, cgroupParent, shmSize string

	dns, dnsSearch, dnsOption    []string
	sysctls, labels, annotations []string
	ports, hosts                 []string
	sharePID, hostIPC, hostPID   bool
	limits                       limitFlags
}

func (a *app) sandboxCreateCommand() *cobra.Command {
	var f sandboxFlags
	cmd := &cobra.Command{
		Use:     "create [flags] [ID]",
		Short:   "Make a sandbox, without starting it",
		Example: "  caisson sandbox create pod1\n  caisson sandbox create --net cni --dns 10.0.0.53 -m 256m --cpus 0.5 pod2",
		Args:    atMost(1, "one ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := f.id(args)
			if err != nil {
				return err
			}
			n, err := f.newSandbox(id)
			if err != nil {
				return err
			}
			ctx, c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer c.Close()
			if err := c.createSandbox(ctx, n); err != nil {
				return err
			}
			_, err = fmt.Fprintln(a.sys.Stdout, id)
			return err
		},
	}
	f.add(cmd)
	return cmd
}

func (f *sandboxFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.name, "name", "", "ID of the sandbox (default: 12 random hex digits)")
	flags.StringVar(&f.network, "net", "", "network: none (loopback only), host, or cni (as the daemon configures it); the daemon's default if not given")
	flags.StringVar(&f.hostname, "hostname", "", "host name inside (default: the ID)")
	flags.StringArrayVar(&f.dns, "dns", nil, "address of a name server")
	flags.StringArrayVar(&f.dnsSearch, "dns-search", nil, "search domain")
	flags.StringArrayVar(&f.dnsOption, "dns-option", nil, "resolver option, such as ndots:2")
	flags.StringArrayVar(&f.sysctls, "sysctl", nil, "kernel parameter of the sandbox, name=value")
	flags.StringArrayVar(&f.labels, "label", nil, "label of the record, name=value")
	flags.StringArrayVar(&f.annotations, "annotation", nil, "annotation for the sandboxer, name=value")
	flags.StringArrayVarP(&f.ports, "publish", "p", nil, "port of the host that leads in, host:container (with --net cni)")
	flags.StringArrayVar(&f.hosts, "add-host", nil, "line of /etc/hosts, name:address")
	flags.StringVar(&f.shmSize, "shm-size", "", "size of /dev/shm, such as 128m (default 64m)")
	flags.StringVarP(&f.limits.memory, "memory", "m", "", "memory of all containers together, such as 256m")
	flags.StringVar(&f.limits.cpus, "cpus", "", "CPUs for all containers together, such as 0.5")
	flags.Int64Var(&f.limits.pids, "pids-limit", 0, "processes of all containers together")
	flags.BoolVar(&f.sharePID, "share-pid", false, "one PID namespace for all containers")
	flags.BoolVar(&f.hostIPC, "host-ipc", false, "use the host's IPC namespace")
	flags.BoolVar(&f.hostPID, "host-pid", false, "use the host's PID namespace")
	flags.StringVar(&f.cgroupParent, "cgroup-parent", "", "cgroup that the sandbox's own is made in")
	flags.StringVar(&f.isolation, "isolation", "", "how the sandbox is walled off (default: namespace)")
	flags.StringVar(&f.runtime, "runtime", runtimeName, "runtime of the record")
}

// id takes the ID from the argument or --name, or makes one.
func (f *sandboxFlags) id(args []string) (string, error) {
	id := f.name
	if len(args) == 1 {
		if id != "" && id != args[0] {
			return "", advise(errdefs.ErrInvalidArgument, "--name %s and the argument %s differ: give one of them", id, args[0])
		}
		id = args[0]
	} else if id == "" {
		id = newID()
	}
	return id, checkID("sandbox", id)
}

func (f *sandboxFlags) newSandbox(id string) (newSandbox, error) {
	n := newSandbox{id: id, runtime: f.runtime}
	var err error
	if n.labels, err = parsePairs("label", f.labels); err != nil {
		return n, err
	}
	if n.annotations, err = parsePairs("annotation", f.annotations); err != nil {
		return n, err
	}
	n.options, err = f.options()
	return n, err
}

func (f *sandboxFlags) options() (*sandboxapi.Options, error) {
	o := &sandboxapi.Options{Hostname: f.hostname, Isolation: f.isolation, CgroupParent: f.cgroupParent}
	if err := checkHostname(f.hostname); err != nil {
		return nil, err
	}
	var err error
	if o.Network, err = parseNetwork(f.network); err != nil {
		return nil, err
	}
	if o.Sysctls, err = parsePairs("sysctl", f.sysctls); err != nil {
		return nil, err
	}
	if o.Dns, err = f.resolver(); err != nil {
		return nil, err
	}
	l, err := f.limits.parse()
	if err != nil {
		return nil, err
	}
	o.Resources = l.proto()
	if f.sharePID && f.hostPID {
		return nil, advise(errdefs.ErrInvalidArgument, "--share-pid and --host-pid exclude each other: give one of them")
	}
	if f.sharePID || f.hostIPC || f.hostPID {
		o.Namespaces = &sandboxapi.Namespaces{SharePid: f.sharePID, HostIpc: f.hostIPC, HostPid: f.hostPID}
	}
	if len(f.ports) > 0 && o.Network != sandboxapi.Network_NETWORK_CNI {
		return nil, advise(errdefs.ErrInvalidArgument, "--publish needs --net cni: no other network has a way in from a port of the host")
	}
	for _, s := range f.ports {
		m, err := parsePort(s)
		if err != nil {
			return nil, err
		}
		o.PortMappings = append(o.PortMappings, m)
	}
	if o.ExtraHosts, err = parseHosts(f.hosts); err != nil {
		return nil, err
	}
	if f.shmSize != "" {
		n, err := units.RAMInBytes(f.shmSize)
		if err != nil || n <= 0 {
			return nil, advise(errdefs.ErrInvalidArgument, "--shm-size %q is not a size: write it like 128m", f.shmSize)
		}
		o.ShmSize = uint64(n)
	}
	return o, nil
}

func (f *sandboxFlags) resolver() (*sandboxapi.DNS, error) {
	if len(f.dns)+len(f.dnsSearch)+len(f.dnsOption) == 0 {
		return nil, nil
	}
	for _, s := range f.dns {
		if err := checkIP("dns", s); err != nil {
			return nil, err
		}
	}
	// Each becomes a word of resolv.conf.
	for _, s := range append(append([]string{}, f.dnsSearch...), f.dnsOption...) {
		if s == "" || strings.ContainsAny(s, " \t\r\n\x00") {
			return nil, advise(errdefs.ErrInvalidArgument, "%q is not one word for resolv.conf: give --dns-search and --dns-option once for each", s)
		}
	}
	return &sandboxapi.DNS{Servers: f.dns, Searches: f.dnsSearch, Options: f.dnsOption}, nil
}

func parseHosts(list []string) (map[string]string, error) {
	if len(list) == 0 {
		return nil, nil
	}
	hosts := make(map[string]string, len(list))
	for _, s := range list {
		name, address, ok := strings.Cut(s, ":")
		if !ok || name == "" || strings.ContainsAny(name, " \t\r\n\x00") {
			return nil, advise(errdefs.ErrInvalidArgument, "--add-host %q is not a host: write it like name:10.0.0.1", s)
		}
		if err := checkIP("add-host", address); err != nil {
			return nil, err
		}
		hosts[name] = address
	}
	return hosts, nil
}

var hostnameRe = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?$`)

func checkHostname(s string) error {
	const maxHostname = 63 // of sethostname(2) on Linux, one less than its buffer
	if s == "" || (len(s) <= maxHostname && hostnameRe.MatchString(s)) {
		return nil
	}
	return advise(errdefs.ErrInvalidArgument, "%q is not a host name: use up to 63 letters, digits, dots and dashes", s)
}

func (a *app) sandboxStartCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "start ID...",
		Short:   "Start sandboxes that were created",
		Example: "  caisson sandbox start pod1",
		Args:    atLeast(1, "the ID of a sandbox"),
		RunE: a.forEach(func(ctx context.Context, c *client, id string) error {
			if _, err := c.sandboxRecord(ctx, id); err != nil {
				return err
			}
			if st, err := c.controller().Status(ctx, id, false); err == nil && sandboxState(st.State) == stateReady {
				return nil
			}
			err := c.startSandbox(ctx, id)
			if errdefs.IsNotFound(err) {
				return advise(err, "sandbox %q has a record and nothing behind it (its start failed, or the machine was restarted): remove it with `caisson sandbox rm %s` and create it again", id, id)
			}
			return err
		}),
	}
}
