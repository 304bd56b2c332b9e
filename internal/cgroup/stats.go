package cgroup

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/cgroups/v3/cgroup1"
	stats1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	"golang.org/x/sys/unix"
)

// statsV1 reads the v1 counters. Controllers that are not there, or vanish
// while being read, leave their part of the result empty.
//
// Kubernetes asks for them every few seconds, of every group. Nearly all the time goes to
// opening files, reading them and closing them again, about 2 µs for each if all it takes is
// in the processor's caches and twice as much if not. So a file is left out where others
// have told what is in it.
func (g *Group) statsV1() (*stats1.Metrics, error) {
	m := &stats1.Metrics{CPU: &stats1.CPUStat{Throttling: &stats1.Throttle{}, Usage: &stats1.CPUUsage{}}}
	d := controlDirs.Get().(*controlDir)
	defer controlDirs.Put(d)
	missing := false
	for _, s := range g.host.sources {
		path, err := g.controllerPath(s.controller)
		if errors.Is(err, cgroup1.ErrControllerNotActive) {
			continue
		}
		if err == nil {
			err = s.read(d, path, m)
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

// source is a v1 controller that counts.
type source struct {
	controller cgroup1.Name
	read       func(*controlDir, string, *stats1.Metrics) error // the string is the group's path
}

// openSources finds what counts on this host. Of the hierarchies that are read here the
// mount points stay open, lest each file's path is walked from the root; those of the
// controllers that few hosts have are the library's to read.
func (h *host) openSources() (err error) {
	readers := map[cgroup1.Name]func(*controlDir, *stats1.Metrics){
		cgroup1.Pids:    readPids,
		cgroup1.Cpu:     readCPU,
		cgroup1.Cpuacct: readCPUAcct,
		cgroup1.Memory:  readMemory,
		cgroup1.Blkio:   readBlkio,
	}
	var roots []int
	defer func() {
		if err != nil {
			for _, fd := range roots {
				_ = unix.Close(fd) // nothing was written
			}
		}
	}()
	for _, s := range h.v1 {
		dir, read := h.dirOf(string(s.Name()), "/"), readers[s.Name()]
		if read != nil && dir != "" {
			root, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			if err != nil {
				return &fs.PathError{Op: "open", Path: dir, Err: err}
			}
			roots = append(roots, root)
			// Below the directory a name is found in half the time, but to open that takes
			// as long as three names.
			many := s.Name() == cgroup1.Memory
			h.sources = append(h.sources, source{s.Name(), func(d *controlDir, path string, m *stats1.Metrics) error {
				return d.readGroup(root, path, many, func() { read(d, m) })
			}})
		} else if other, ok := s.(interface {
			Stat(string, *stats1.Metrics) error
		}); ok {
			h.sources = append(h.sources, source{s.Name(), func(_ *controlDir, path string, m *stats1.Metrics) error {
				return other.Stat(path, m)
			}})
		}
	}
	return nil
}

func readPids(d *controlDir, m *stats1.Metrics) {
	m.Pids = &stats1.PidsStat{Current: d.number("pids.current"), Limit: d.number("pids.max")}
}

func readCPU(d *controlDir, m *stats1.Metrics) {
	t := m.CPU.Throttling
	d.pairs("cpu.stat", func(key []byte) *uint64 {
		switch string(key) {
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
	d.pairs("cpuacct.stat", func(key []byte) *uint64 {
		switch string(key) {
		case "user":
			return &u.User
		case "system":
			return &u.Kernel
		}
		return nil
	})
	u.User *= tick
	u.Kernel *= tick
	for word := range bytes.FieldsSeq(d.file("cpuacct.usage_percpu")) {
		n := d.parse(word)
		u.PerCPU = append(u.PerCPU, n)
		u.Total += n // cpuacct.usage is nothing but this sum
	}
}

// readBlkio reads what the throttling layer counts, for all devices; the other counters
// went with the CFQ scheduler, in Linux 5.0. It counts operations and bytes of the same
// devices, on newer kernels of none before one is throttled.
func readBlkio(d *controlDir, m *stats1.Metrics) {
	m.Blkio = &stats1.BlkIOStat{}
	if m.Blkio.IoServicedRecursive = d.blkio("blkio.throttle.io_serviced"); len(m.Blkio.IoServicedRecursive) > 0 {
		m.Blkio.IoServiceBytesRecursive = d.blkio("blkio.throttle.io_service_bytes")
	}
}

// blkio reads lines of a device, what it does and a number, "8:0 Read 4096"; the last
// one is a sum, "Total 4096".
func (d *controlDir) blkio(name string) (entries []*stats1.BlkIOEntry) {
	var numbers, device string // of the last line
	for line := range bytes.Lines(d.file(name)) {
		words := bytes.Fields(line)
		if len(words) != 3 {
			continue
		}
		if string(words[0]) != numbers {
			numbers = string(words[0])
			device = blockDevice(numbers)
		}
		major, minor, _ := bytes.Cut(words[0], []byte(":"))
		entries = append(entries, &stats1.BlkIOEntry{
			Op: string(words[1]), Device: device, Major: d.parse(major), Minor: d.parse(minor), Value: d.parse(words[2]),
		})
	}
	return entries
}

// blockDevice is the path of the device with those numbers, "8:0", as far as it can be had.
func blockDevice(numbers string) string {
	link, err := os.Readlink("/sys/dev/block/" + numbers)
	if err != nil {
		return ""
	}
	return "/dev/" + strings.ReplaceAll(filepath.Base(link), "!", "/")
}
