package cli

import (
	"fmt"
	"strings"

	cgroup1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	cgroup2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
)

// usage is what the metrics of a cgroup say, whatever its version.
type usage struct {
	cpu         uint64 // nanoseconds since the beginning
	memory      uint64 // bytes, with all of the page cache
	inactive    uint64 // bytes of memory that are page cache nobody has used for a while
	memoryLimit uint64
	pids        uint64
	pidsLimit   uint64
	read, wrote uint64 // bytes of block devices
	// Bytes of all interfaces; nil without any of its own.
	received, sent *uint64
}

func usageOf(m *types.Metric) (usage, error) {
	if m.GetData() == nil {
		return usage{}, fmt.Errorf("the daemon sent none: %w", errdefs.ErrUnavailable)
	}
	data, err := typeurl.UnmarshalAny(m.GetData())
	if err != nil {
		return usage{}, err
	}
	var u usage
	switch v := data.(type) {
	case *cgroup1.Metrics:
		u.cpu = v.GetCPU().GetUsage().GetTotal()
		u.memory, u.memoryLimit = v.GetMemory().GetUsage().GetUsage(), v.GetMemory().GetUsage().GetLimit()
		u.inactive = v.GetMemory().GetTotalInactiveFile()
		u.pids, u.pidsLimit = v.GetPids().GetCurrent(), v.GetPids().GetLimit()
		for _, e := range v.GetBlkio().GetIoServiceBytesRecursive() {
			switch strings.ToLower(e.GetOp()) {
			case "read":
				u.read += e.GetValue()
			case "write":
				u.wrote += e.GetValue()
			}
		}
		u.received, u.sent = traffic(v.GetNetwork())
	case *cgroup2.Metrics:
		u.cpu = v.GetCPU().GetUsageUsec() * 1000
		u.memory, u.memoryLimit = v.GetMemory().GetUsage(), v.GetMemory().GetUsageLimit()
		u.inactive = v.GetMemory().GetInactiveFile()
		u.pids, u.pidsLimit = v.GetPids().GetCurrent(), v.GetPids().GetLimit()
		for _, e := range v.GetIo().GetUsage() {
			u.read += e.GetRbytes()
			u.wrote += e.GetWbytes()
		}
		u.received, u.sent = traffic(v.GetNetwork())
	default:
		return usage{}, fmt.Errorf("unknown type %q: %w", m.GetData().GetTypeUrl(), errdefs.ErrNotImplemented)
	}
	return u, nil
}

// traffic adds up interfaces, in the message of either version.
func traffic[I interface {
	GetRxBytes() uint64
	GetTxBytes() uint64
}](interfaces []I) (received, sent *uint64) {
	if len(interfaces) == 0 {
		return nil, nil
	}
	received, sent = new(uint64), new(uint64)
	for _, i := range interfaces {
		*received += i.GetRxBytes()
		*sent += i.GetTxBytes()
	}
	return received, sent
}

// inUse is the memory as `docker stats` counts it: without what the kernel would
// drop first.
func (u usage) inUse() uint64 {
	if u.inactive > u.memory {
		return 0
	}
	return u.memory - u.inactive
}
