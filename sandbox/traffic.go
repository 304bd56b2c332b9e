package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"

	cgroup1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	cgroup2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	"github.com/prometheus/procfs"
)

// addTraffic puts what the interfaces of a sandbox have received and sent into the
// metrics of its cgroup. A sandbox in the host's network has no traffic of its own, and
// loopback carries nothing in or out. /proc shows the holder's network, so that no
// thread has to enter it.
func (b *box) addTraffic(stats any) error {
	inst := b.instance()
	if inst == nil || b.snapshot().NetNSPath == "" {
		return nil
	}
	devices, err := devicesOf(inst.Pid())
	if errors.Is(err, fs.ErrNotExist) {
		return nil // the holder has just ended
	}
	if err != nil {
		return fmt.Errorf("traffic: %w", err)
	}
	delete(devices, "lo")
	for _, name := range slices.Sorted(maps.Keys(devices)) {
		d := devices[name]
		switch m := stats.(type) {
		case *cgroup1.Metrics:
			m.Network = append(m.Network, &cgroup1.NetworkStat{
				Name: name, RxBytes: d.RxBytes, RxPackets: d.RxPackets, RxErrors: d.RxErrors, RxDropped: d.RxDropped,
				TxBytes: d.TxBytes, TxPackets: d.TxPackets, TxErrors: d.TxErrors, TxDropped: d.TxDropped,
			})
		case *cgroup2.Metrics:
			m.Network = append(m.Network, &cgroup2.NetworkStat{
				Name: name, RxBytes: d.RxBytes, RxPackets: d.RxPackets, RxErrors: d.RxErrors, RxDropped: d.RxDropped,
				TxBytes: d.TxBytes, TxPackets: d.TxPackets, TxErrors: d.TxErrors, TxDropped: d.TxDropped,
			})
		}
	}
	return nil
}

func devicesOf(pid int) (procfs.NetDev, error) {
	proc, err := procfs.NewProc(pid)
	if err != nil {
		return nil, err
	}
	return proc.NetDev()
}
