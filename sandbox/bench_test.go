package sandbox

import (
	"strconv"
	"testing"

	api "caisson/api/caisson/sandbox/v1"
	core "github.com/containerd/containerd/v2/core/sandbox"
)

func BenchmarkSandbox(b *testing.B) {
	r := newRig(b)
	o := &api.Options{Hostname: "bench", Network: api.Network_NETWORK_HOST}
	i := 0
	for b.Loop() {
		i++
		id := "s" + strconv.Itoa(i)
		if err := r.ctl.Create(r.ctx(), core.Sandbox{ID: id}, core.WithOptions(o)); err != nil {
			b.Fatal(err)
		}
		if _, err := r.ctl.Start(r.ctx(), id); err != nil {
			b.Fatal(err)
		}
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

func BenchmarkMetrics(b *testing.B) {
	r := newRig(b)
	r.run("s", &api.Options{Network: api.Network_NETWORK_HOST})
	for b.Loop() {
		if _, err := r.ctl.Metrics(r.ctx(), "s"); err != nil {
			b.Fatal(err)
		}
	}
}
