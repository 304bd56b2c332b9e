package cli

import (
	"testing"
	"time"

	cgroup1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	cgroup2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
)

func TestStatsRows(t *testing.T) {
	metric := func(seconds int, m proto.Message) *types.Metric {
		data, err := typeurl.MarshalAnyToProto(m)
		if err != nil {
			t.Fatal(err)
		}
		return &types.Metric{Timestamp: timestamppb.New(now.Add(time.Duration(seconds) * time.Second)), Data: data}
	}
	sample := func(seconds int) []statsRow {
		v1, err := newStatsRow(kindContainer, "web", "pod1", metric(seconds, &cgroup1.Metrics{
			CPU:    &cgroup1.CPUStat{Usage: &cgroup1.CPUUsage{Total: uint64(1_500_000_000 * seconds)}},
			Memory: &cgroup1.MemoryStat{Usage: &cgroup1.MemoryEntry{Usage: 12 << 20, Limit: 0x7ffffffffffff000}, TotalInactiveFile: 4 << 20},
			Pids:   &cgroup1.PidsStat{Current: 3},
			Blkio: &cgroup1.BlkIOStat{IoServiceBytesRecursive: []*cgroup1.BlkIOEntry{
				{Op: "Read", Value: 1 << 20}, {Op: "Write", Value: 2 << 20}, {Op: "Total", Value: 3 << 20}, {Op: "read", Value: 1 << 20},
			}},
		}))
		if err != nil {
			t.Fatal(err)
		}
		v2, err := newStatsRow(kindSandbox, "pod1", "pod1", metric(seconds, &cgroup2.Metrics{
			CPU:     &cgroup2.CPUStat{UsageUsec: uint64(250_000 * seconds)},
			Memory:  &cgroup2.MemoryStat{Usage: 1 << 20, UsageLimit: 64 << 20, InactiveFile: 2 << 20},
			Pids:    &cgroup2.PidsStat{Current: 1},
			Io:      &cgroup2.IOStat{Usage: []*cgroup2.IOEntry{{Rbytes: 1 << 20}, {Rbytes: 1 << 20, Wbytes: 5}}},
			Network: []*cgroup2.NetworkStat{{RxBytes: 1 << 10, TxBytes: 7}, {RxBytes: 2 << 10}},
		}))
		if err != nil {
			t.Fatal(err)
		}
		return []statsRow{v2, v1}
	}
	var s sampler
	rows := sample(1)
	s.shares(rows)
	if rows[0].CPUPercent != 0 {
		t.Errorf("the first sample has a share: %+v", rows[0])
	}
	rows = sample(3)
	s.shares(rows)
	show(t, "stats", statsHeader, rows)

	again := sample(2) // less than before: made again
	s.shares(again)
	if again[1].CPUPercent != 0 {
		t.Errorf("of a container made again: %+v", again[1])
	}
	if _, err := newStatsRow(kindContainer, "web", "", nil); err == nil {
		t.Error("no metrics: no error")
	}
}

func TestStatsOfNothing(t *testing.T) {
	d := startFake(t)
	d.addContainer("job", "", task.Status_STOPPED, nil)
	if out := d.must(t, "stats", "--no-stream"); out != "SANDBOX   CONTAINER   CPU %   MEMORY   LIMIT   PIDS   NET RX   NET TX   BLOCK READ   WRITTEN\n" {
		t.Errorf("stats: %q", out)
	}
	if out := d.must(t, "stats", "--no-stream", "--format", "json", "job"); out != "[]\n" {
		t.Errorf("stats of one that does not run: %q", out)
	}
	d.refused(t, `no container or sandbox "nowhere"`, "stats", "nowhere")
	d.refused(t, "cannot name", "stats", "a/b")
	d.refused(t, "unknown format", "stats", "--format", "yaml")
}
