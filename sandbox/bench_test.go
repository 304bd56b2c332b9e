package sandbox

import (
	"strconv"
	"testing"

	"github.com/containerd/typeurl/v2"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	api "caisson/api/caisson/sandbox/v1"
	"caisson/internal/ceiling"
	"caisson/internal/task"
)

// BenchmarkSandbox times Create and Start; what it allocates is that of a whole life.
func BenchmarkSandbox(b *testing.B) {
	r := newRig(b)
	defer ceiling.Allocs(b, 1600)()
	i := 0
	for b.Loop() {
		i++
		id := "s" + strconv.Itoa(i)
		r.run(id, &api.Options{Hostname: "bench", Network: api.Network_NETWORK_HOST})
		b.StopTimer()
		if err := r.ctl.Stop(r.ctx(), id); err != nil {
			b.Fatal(err)
		}
		if err := r.ctl.Shutdown(r.ctx(), id); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

// BenchmarkStatus is what CRI asks a sandbox for.
func BenchmarkStatus(b *testing.B) {
	r := newRig(b)
	r.run("s", &api.Options{Network: api.Network_NETWORK_HOST})
	b.Run("Metrics", func(b *testing.B) {
		defer ceiling.Allocs(b, 80)()
		for b.Loop() {
			if _, err := r.ctl.Metrics(r.ctx(), "s"); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("Status", func(b *testing.B) {
		defer ceiling.Allocs(b, 20)()
		for b.Loop() {
			if _, err := r.ctl.Status(r.ctx(), "s", false); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkTask is of one container: what CRI asks for every second, and an exec.
func BenchmarkTask(b *testing.B) {
	r := newRig(b)
	r.run("s", &api.Options{Network: api.Network_NETWORK_HOST})
	r.container("s", "c", "busybox sleep 100000")
	tasks := r.tasks("s")
	b.Run("Stats", func(b *testing.B) {
		defer ceiling.Allocs(b, 80)()
		for b.Loop() {
			if _, err := tasks.Stats(r.ctx(), "c"); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("State", func(b *testing.B) {
		defer ceiling.Allocs(b, 20)()
		for b.Loop() {
			if _, err := tasks.State(r.ctx(), "c", ""); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("Exec", func(b *testing.B) {
		process, err := typeurl.MarshalAny(&specs.Process{Args: []string{"/bin/busybox", "true"}, Cwd: "/"})
		if err != nil {
			b.Fatal(err)
		}
		defer ceiling.Allocs(b, 620)()
		for b.Loop() {
			if err := tasks.Exec(r.ctx(), task.ExecRequest{ID: "c", ExecID: "x", Spec: process}); err != nil {
				b.Fatal(err)
			}
			if _, err := tasks.Start(r.ctx(), "c", "x"); err != nil {
				b.Fatal(err)
			}
			if _, err := tasks.Wait(r.ctx(), "c", "x"); err != nil {
				b.Fatal(err)
			}
			if _, err := tasks.Delete(r.ctx(), "c", "x"); err != nil {
				b.Fatal(err)
			}
		}
	})
}
