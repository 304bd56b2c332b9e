package integration

import (
	"bufio"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"caisson/test/daemon"
	"caisson/test/harness"
)

// overheadPods is how many pods BenchmarkOverhead makes at a time.
const overheadPods = 100

// BenchmarkOverhead reports what a pod without containers costs, in KiB: its
// monitor and holder, what the daemon grows by, and what the kernel of the whole
// machine does, which should do nothing else meanwhile. The RuntimeClass of
// `caisson config kubernetes` has its overhead from here.
//
//	go test -run '^$' -bench Overhead -benchtime 1x ./test/integration
func BenchmarkOverhead(b *testing.B) {
	for _, engine := range []string{daemon.EngineEmbedded, daemon.EngineStock} {
		for name, mode := range modes {
			b.Run(engine+"/"+name, func(b *testing.B) { overhead(b, engine, mode) })
		}
	}
}

func overhead(b *testing.B, engine string, mode runtime.NamespaceMode) {
	h := harness.Start(b, daemon.Options{Engine: engine})
	cri := h.CRI()
	cri.Remove(cri.RunPod(cri.PodConfig(mode))) // what the first one costs, such as the bridge
	daemonBefore, kernelBefore := pss(b, h.Pid()), kernelMemory(b)
	monitors := 0
	for range overheadPods {
		cfg := cri.PodConfig(mode)
		resp, err := cri.RunPodSandbox(h.Context(time.Minute), &runtime.RunPodSandboxRequest{Config: cfg, RuntimeHandler: cri.Handler})
		if err != nil {
			b.Fatal(err)
		}
		defer cri.Remove(resp.PodSandboxId)
	}
	for _, pid := range programs(b, h)["caisson-monitor"] {
		monitors += pss(b, pid)
	}
	b.ReportMetric(float64(monitors)/overheadPods, "processes-KiB")
	b.ReportMetric(float64(pss(b, h.Pid())-daemonBefore)/overheadPods, "daemon-KiB")
	b.ReportMetric(float64(kernelMemory(b)-kernelBefore)/overheadPods, "kernel-KiB")
	b.ReportMetric(0, "ns/op") // says nothing
}

func pss(b testing.TB, pid int) int {
	b.Helper()
	return kibibytes(b, fmt.Sprintf("/proc/%d/smaps_rollup", pid), "Pss")
}

// kernelMemory is what the kernel has for itself and does not give back when
// somebody wants it.
func kernelMemory(b *testing.B) int {
	b.Helper()
	return kibibytes(b, "/proc/meminfo", "SUnreclaim", "KernelStack", "PageTables", "SecPageTables", "Percpu")
}

// kibibytes adds lines of a file of /proc.
func kibibytes(b testing.TB, path string, names ...string) int {
	b.Helper()
	f, err := os.Open(path)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	sum := 0
	for lines := bufio.NewScanner(f); lines.Scan(); {
		name, rest, _ := strings.Cut(lines.Text(), ":")
		for _, wanted := range names {
			var n int
			if name != wanted {
				continue
			}
			if _, err := fmt.Sscan(rest, &n); err != nil {
				b.Fatal(err)
			}
			sum += n
		}
	}
	return sum
}
