package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/containerd/cgroups/v3/cgroup1"
	stats1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	"golang.org/x/sys/unix"
)

// statsV1 reads the v1 counters. Controllers that are not there, or vanish
// while being read, leave their part of the result empty.
//
// The library does the same in four times the time: of each of these thirty files it
// tells the poller, it copies their lines into maps, and it starts a goroutine for each
// controller. Kubernetes asks for all of them every few seconds. The controllers that
// few hosts have are still the library's to read.
func (g *Group) statsV1() (*stats1.Metrics, error) {
	m := &stats1.Metrics{CPU: &stats1.CPUStat{Throttling: &stats1.Throttle{}, Usage: &stats1.CPUUsage{}}}
	missing := false
	for _, s := range g.host.v1 {
		path, err := g.controllerPath(s.Name())
		if errors.Is(err, cgroup1.ErrControllerNotActive) {
			continue
		}
		if err != nil {
			return nil, err
		}
		switch read := readersV1[s.Name()]; {
		case read != nil:
			err = readDir(g.host.dirOf(string(s.Name()), path), func(d *controlDir) { read(d, m) })
		default:
			if other, ok := s.(interface {
				Stat(string, *stats1.Metrics) error
			}); ok {
				err = other.Stat(path, m)
			}
		}
		if gone(err) {
			missing, err = true, nil
		}
		if err != nil {
			return nil, err
		}
	}
	if missing && !g.exists() {
		return nil, fs.ErrNotExist
	}
	return m, nil
}

var readersV1 = map[cgroup1.Name]func(*controlDir, *stats1.Metrics){
	cgroup1.Pids:    readPids,
	cgroup1.Cpu:     readCPU,
	cgroup1.Cpuacct: readCPUAcct,
	cgroup1.Memory:  readMemory,
	cgroup1.Blkio:   readBlkio,
}

func readPids(d *controlDir, m *stats1.Metrics) {
	m.Pids = &stats1.PidsStat{Current: d.number("pids.current"), Limit: d.number("pids.max")}
}

func readCPU(d *controlDir, m *stats1.Metrics) {
	t := m.CPU.Throttling
	d.pairs("cpu.stat", func(key string) *uint64 {
		switch key {
		case "nr_periods":
			return &t.Periods
		case "nr_throttled":
			return &t.ThrottledPeriods
		case "throttled_time":
			return &t.ThrottledTime
		}
		return nil
	})
}

// tick is the unit of cpuacct.stat in nanoseconds.
const tick = 10_000_000

func readCPUAcct(d *controlDir, m *stats1.Metrics) {
	u := m.CPU.Usage
	d.pairs("cpuacct.stat", func(key string) *uint64 {
		switch key {
		case "user":
			return &u.User
		case "system":
			return &u.Kernel
		}
		return nil
	})
	u.User *= tick
	u.Kernel *= tick
	u.Total = d.number("cpuacct.usage")
	for word := range bytes.FieldsSeq(d.file("cpuacct.usage_percpu")) {
		u.PerCPU = append(u.PerCPU, d.parse(word))
	}
}

func readMemory(d *controlDir, m *stats1.Metrics) {
	s := &stats1.MemoryStat{Usage: &stats1.MemoryEntry{}, Swap: &stats1.MemoryEntry{}, Kernel: &stats1.MemoryEntry{}, KernelTCP: &stats1.MemoryEntry{}}
	oom := &stats1.MemoryOomControl{}
	m.Memory, m.MemoryOomControl = s, oom
	d.pairs("memory.stat", func(key string) *uint64 { return memoryField(s, key) })
	d.pairs("memory.oom_control", func(key string) *uint64 {
		switch key {
		case "oom_kill_disable":
			return &oom.OomKillDisable
		case "under_oom":
			return &oom.UnderOom
		case "oom_kill":
			return &oom.OomKill
		}
		return nil
	})
	d.entry(s.Usage, "memory.usage_in_bytes", "memory.max_usage_in_bytes", "memory.failcnt", "memory.limit_in_bytes")
	d.entry(s.Kernel, "memory.kmem.usage_in_bytes", "memory.kmem.max_usage_in_bytes", "memory.kmem.failcnt", "memory.kmem.limit_in_bytes")
	d.entry(s.KernelTCP, "memory.kmem.tcp.usage_in_bytes", "memory.kmem.tcp.max_usage_in_bytes", "memory.kmem.tcp.failcnt", "memory.kmem.tcp.limit_in_bytes")
	d.entry(s.Swap, "memory.memsw.usage_in_bytes", "memory.memsw.max_usage_in_bytes", "memory.memsw.failcnt", "memory.memsw.limit_in_bytes")
}

// entry reads four files, of which a host without swap accounting has none for swap.
func (d *controlDir) entry(e *stats1.MemoryEntry, usage, highest, failures, limit string) {
	d.optional = true
	e.Usage, e.Max, e.Failcnt, e.Limit = d.number(usage), d.number(highest), d.number(failures), d.number(limit)
	d.optional = false
}

func memoryField(s *stats1.MemoryStat, key string) *uint64 {
	switch key {
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

// readBlkio reads what the throttling layer counts, for all devices; the other counters
// went with the CFQ scheduler, in Linux 5.0.
func readBlkio(d *controlDir, m *stats1.Metrics) {
	m.Blkio = &stats1.BlkIOStat{}
	names := map[string]string{}
	for _, f := range []struct {
		name    string
		entries *[]*stats1.BlkIOEntry
	}{
		{"blkio.throttle.io_serviced", &m.Blkio.IoServicedRecursive},
		{"blkio.throttle.io_service_bytes", &m.Blkio.IoServiceBytesRecursive},
	} {
		for line := range bytes.Lines(d.file(f.name)) { // "8:0 Read 4096", at the end "Total 4096"
			words := bytes.Fields(line)
			if len(words) != 3 {
				continue
			}
			major, minor, _ := bytes.Cut(words[0], []byte(":"))
			e := &stats1.BlkIOEntry{Op: string(words[1]), Major: d.parse(major), Minor: d.parse(minor), Value: d.parse(words[2])}
			name, known := names[string(words[0])]
			if !known {
				name = blockDevice(string(words[0]))
				names[string(words[0])] = name
			}
			e.Device = name
			*f.entries = append(*f.entries, e)
		}
	}
}

// blockDevice is the path of the device with those numbers, "8:0", as far as it can be had.
func blockDevice(numbers string) string {
	link, err := os.Readlink("/sys/dev/block/" + numbers)
	if err != nil {
		return ""
	}
	return "/dev/" + strings.ReplaceAll(filepath.Base(link), "!", "/")
}

// controlDir reads a group's files in one hierarchy. The first failure is kept, and
// everything is empty from then on.
type controlDir struct {
	fd       int
	buf      []byte
	optional bool // a file that is missing is empty
	err      error
}

var controlBuffers = sync.Pool{New: func() any { b := make([]byte, 8<<10); return &b }}

// readDir calls read with a group's directory, and returns its first failure.
func readDir(dir string, read func(*controlDir)) error {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(fd)
	buf := controlBuffers.Get().(*[]byte)
	d := &controlDir{fd: fd, buf: *buf}
	read(d)
	*buf = d.buf
	controlBuffers.Put(buf)
	if d.err != nil {
		return fmt.Errorf("%s: %w", dir, d.err)
	}
	return nil
}

// file is the content of a file until the next one is read.
func (d *controlDir) file(name string) []byte {
	if d.err != nil {
		return nil
	}
	fd, err := unix.Openat(d.fd, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		if !d.optional || !gone(err) {
			d.err = &fs.PathError{Op: "open", Path: name, Err: err}
		}
		return nil
	}
	defer unix.Close(fd)
	for used := 0; ; {
		n, err := unix.Read(fd, d.buf[used:])
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			d.err = &fs.PathError{Op: "read", Path: name, Err: err}
			return nil
		}
		if used += n; n == 0 || used < len(d.buf) { // what the kernel had fits
			return d.buf[:used]
		}
		d.buf = append(d.buf, make([]byte, len(d.buf))...)
	}
}

func (d *controlDir) number(name string) uint64 {
	text := bytes.TrimSpace(d.file(name))
	if d.err != nil || len(text) == 0 || string(text) == "max" { // 0, as the library has it
		return 0
	}
	return d.parse(text)
}

// pairs reads lines of a key and a value into the fields that are known.
func (d *controlDir) pairs(name string, field func(key string) *uint64) {
	for line := range bytes.Lines(d.file(name)) {
		key, value, ok := bytes.Cut(bytes.TrimSpace(line), []byte(" "))
		if !ok {
			continue
		}
		if to := field(string(key)); to != nil {
			*to = d.parse(value)
		}
	}
}

func (d *controlDir) parse(text []byte) uint64 {
	n, err := strconv.ParseUint(string(text), 10, 64)
	if err != nil && d.err == nil {
		d.err = fmt.Errorf("number %q: %w", text, err)
	}
	return n
}
