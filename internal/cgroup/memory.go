package cgroup

import (
	"math"
	"os"
	"sync"

	stats1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	"github.com/containerd/containerd/v2/pkg/kernelversion"
)

// unlimited is how Linux 3.19 and later, with 64 bits, write that a counter of memory has
// no limit: the most bytes that whole pages can be. Where it is written otherwise, files
// are read that need not be, no more.
var unlimited = uint64(math.MaxInt64 / os.Getpagesize() * os.Getpagesize())

func readMemory(d *controlDir, m *stats1.Metrics) {
	s := &stats1.MemoryStat{Usage: &stats1.MemoryEntry{}, Swap: &stats1.MemoryEntry{}, Kernel: &stats1.MemoryEntry{}, KernelTCP: &stats1.MemoryEntry{}}
	oom := &stats1.MemoryOomControl{}
	m.Memory, m.MemoryOomControl = s, oom
	d.pairs("memory.stat", func(key []byte) *uint64 { return memoryField(s, key) })
	d.pairs("memory.oom_control", func(key []byte) *uint64 {
		switch string(key) {
		case "oom_kill_disable":
			return &oom.OomKillDisable
		case "under_oom":
			return &oom.UnderOom
		case "oom_kill":
			return &oom.OomKill
		}
		return nil
	})
	s.Usage.Usage = d.number("memory.usage_in_bytes")
	s.Usage.Max = d.number("memory.max_usage_in_bytes")
	s.Usage.Failcnt = d.number("memory.failcnt")
	s.Usage.Limit = d.limit("memory.limit_in_bytes", s.HierarchicalMemoryLimit)
	if d.optional("memory.memsw.usage_in_bytes", &s.Swap.Usage) {
		s.Swap.Max = d.number("memory.memsw.max_usage_in_bytes")
		s.Swap.Failcnt = d.number("memory.memsw.failcnt")
		s.Swap.Limit = d.limit("memory.memsw.limit_in_bytes", s.HierarchicalSwapLimit)
	}
	if d.optional("memory.kmem.usage_in_bytes", &s.Kernel.Usage) {
		s.Kernel.Max = d.number("memory.kmem.max_usage_in_bytes")
		if s.Kernel.Limit = unlimited; kmemHasLimits() {
			s.Kernel.Failcnt = d.number("memory.kmem.failcnt")
			s.Kernel.Limit = d.number("memory.kmem.limit_in_bytes")
		}
	}
	// What never had a limit, and nothing in it, as nearly every group's, counts nothing.
	if d.optional("memory.kmem.tcp.limit_in_bytes", &s.KernelTCP.Limit) {
		if s.KernelTCP.Max = d.number("memory.kmem.tcp.max_usage_in_bytes"); s.KernelTCP.Max > 0 || s.KernelTCP.Limit != unlimited {
			s.KernelTCP.Usage = d.number("memory.kmem.tcp.usage_in_bytes")
			s.KernelTCP.Failcnt = d.number("memory.kmem.tcp.failcnt")
		}
	}
}

// limit reads a group's own limit, if there is one: lowest is that of the group and of all
// above it.
func (d *controlDir) limit(name string, lowest uint64) uint64 {
	if lowest == unlimited {
		return unlimited
	}
	return d.number(name)
}

// kmemHasLimits reports whether kernel memory can be limited by itself: since Linux 5.16
// the file for it is there, but nothing can be written to it that does anything.
var kmemHasLimits = sync.OnceValue(func() bool {
	without, err := kernelversion.GreaterEqualThan(kernelversion.KernelVersion{Kernel: 5, Major: 16})
	return err != nil || !without || math.MaxInt == math.MaxInt32
})

func memoryField(s *stats1.MemoryStat, key []byte) *uint64 {
	switch string(key) {
	case "cache":
		return &s.Cache
	case "rss":
		return &s.RSS
	case "rss_huge":
		return &s.RSSHuge
	case "mapped_file":
		return &s.MappedFile
	case "dirty":
		return &s.Dirty
	case "writeback":
		return &s.Writeback
	case "pgpgin":
		return &s.PgPgIn
	case "pgpgout":
		return &s.PgPgOut
	case "pgfault":
		return &s.PgFault
	case "pgmajfault":
		return &s.PgMajFault
	case "inactive_anon":
		return &s.InactiveAnon
	case "active_anon":
		return &s.ActiveAnon
	case "inactive_file":
		return &s.InactiveFile
	case "active_file":
		return &s.ActiveFile
	case "unevictable":
		return &s.Unevictable
	case "hierarchical_memory_limit":
		return &s.HierarchicalMemoryLimit
	case "hierarchical_memsw_limit":
		return &s.HierarchicalSwapLimit
	case "total_cache":
		return &s.TotalCache
	case "total_rss":
		return &s.TotalRSS
	case "total_rss_huge":
		return &s.TotalRSSHuge
	case "total_mapped_file":
		return &s.TotalMappedFile
	case "total_dirty":
		return &s.TotalDirty
	case "total_writeback":
		return &s.TotalWriteback
	case "total_pgpgin":
		return &s.TotalPgPgIn
	case "total_pgpgout":
		return &s.TotalPgPgOut
	case "total_pgfault":
		return &s.TotalPgFault
	case "total_pgmajfault":
		return &s.TotalPgMajFault
	case "total_inactive_anon":
		return &s.TotalInactiveAnon
	case "total_active_anon":
		return &s.TotalActiveAnon
	case "total_inactive_file":
		return &s.TotalInactiveFile
	case "total_active_file":
		return &s.TotalActiveFile
	case "total_unevictable":
		return &s.TotalUnevictable
	}
	return nil
}
