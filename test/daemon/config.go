package daemon

import (
	"cmp"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"

	"caisson/test/leak"
)

// CNIBinDir is where Debian's containernetworking-plugins are.
const CNIBinDir = "/usr/lib/cni"

// runtimeEnv names another OCI runtime than runc.
const runtimeEnv = "CAISSON_TEST_RUNTIME"

// config is caissond's own part. The directories are here, not on its command
// line, for daemons that a shim binary starts.
const config = `version = 3
root = %[3]q
state = %[4]q

[network]
cni_conf_dir = %[1]q
cni_bin_dirs = [%[2]q]
`

// isolated keeps everything that containerd would put into shared directories
// in the daemon's own.
const isolated = `
[plugins."io.containerd.cri.v1.runtime"]
netns_mounts_under_state_dir = true
[plugins."io.containerd.cri.v1.runtime".cni]
conf_dir = %[1]q
bin_dirs = [%[2]q]
[plugins."io.containerd.internal.v1.opt"]
path = %[3]q
[plugins."io.containerd.nri.v1.nri"]
disable = %[4]t
socket_path = %[5]q
`

func (d *Daemon) isolation() string {
	return fmt.Sprintf(isolated, d.CNIDir(), CNIBinDir, filepath.Join(d.Dir, "opt"), !d.opts.NRI, filepath.Join(d.State, "nri.sock"))
}

// bridge gives the containers of one daemon a network of their own. Its
// leases lie in the daemon's directory; no rule of iptables is made without
// portMap behind it.
const (
	bridge = `{"cniVersion": "1.0.0", "name": %[1]q, "plugins": [{
	"type": "bridge", "bridge": %[1]q, "isDefaultGateway": true, "ipMasq": %[5]t, "hairpinMode": true,
	"ipam": {"type": "host-local", "dataDir": %[2]q, "ranges": [[{"subnet": %[3]q}]]}
}%[4]s]}
`
	portMap = `, {"type": "portmap", "capabilities": {"portMappings": true}}`
)

// CNIDir is where the daemon looks for its networks.
func (d *Daemon) CNIDir() string { return filepath.Join(d.Dir, "cni") }

// runtime is empty for the server's default.
func (d *Daemon) runtime() string { return cmp.Or(d.opts.Runtime, os.Getenv(runtimeEnv)) }

func (d *Daemon) writeConfig() error {
	if err := os.Mkdir(d.CNIDir(), 0o700); err != nil {
		return err
	}
	text := fmt.Sprintf(config, d.CNIDir(), CNIBinDir, d.Root, d.State)
	switch d.opts.Engine {
	case EngineStock:
		if err := d.writeStockConfig(); err != nil {
			return err
		}
	case EngineEmbedded:
		text += d.isolation() + d.opts.EngineConfig
	}
	text += fmt.Sprintf("[runtime]\nsystemd_cgroup = %t\ncgroup_parent = %q\n", d.opts.SystemdCgroup, d.cgroupParent())
	if runtime := d.runtime(); runtime != "" {
		text += fmt.Sprintf("default = %q\n", runtime)
	}
	if err := os.WriteFile(d.ConfigFile, []byte(text+d.opts.Config), 0o600); err != nil {
		return err
	}
	more := ""
	if d.opts.HostPorts {
		more = portMap
	}
	network := fmt.Sprintf(bridge, d.Token, filepath.Join(d.Dir, "ipam"), d.subnet(), more, d.opts.HostPorts)
	return os.WriteFile(filepath.Join(d.CNIDir(), "10-bridge.conflist"), []byte(network), 0o600)
}

// cgroupParent holds the cgroups of sandboxes for which the test names no other.
func (d *Daemon) cgroupParent() string {
	if d.opts.SystemdCgroup {
		return "/" + d.Token + ".slice"
	}
	return "/" + d.Token
}

// subnet is one of 16384 small networks, told by the token, so that daemons
// side by side rarely share one.
func (d *Daemon) subnet() string {
	sum := fnv.New32a()
	_, _ = sum.Write([]byte(d.Token)) // never fails
	n := sum.Sum32()
	return fmt.Sprintf("10.%d.%d.0/24", 64+n%64, n>>8%256)
}

// removeBridge removes the bridge, which the CNI plugin makes and never
// removes, unless something is still plugged in: that is a leak to be seen.
func (d *Daemon) removeBridge() error {
	br, err := netlink.LinkByName(d.Token)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err != nil {
		return err
	}
	links, err := leak.Links()
	if err != nil {
		return err
	}
	for _, l := range links {
		if l.Attrs().MasterIndex == br.Attrs().Index {
			return nil
		}
	}
	return netlink.LinkDel(br)
}
