package bench

import (
	"bytes"
	"slices"
	"testing"
	"time"
)

// benchCalls times each call of a pod's life, on one side after the other.
func benchCalls(t *testing.T, r *recorder) {
	sides := startSides(t, runtimes...)
	input := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	for _, network := range networks {
		what := group("CRI calls, one after the other", network.name)
		for round := range *rounds + 2 {
			into := r
			if round < 2 {
				into = &recorder{} // the first ones are others' costs: a bridge, caches
			}
			// Another one begins each time; the first that counts is that of the report.
			first := max(round-2, 0) % len(sides)
			for _, s := range slices.Concat(sides[first:], sides[:first]) {
				cfg := s.cri.PodConfig(network.mode)
				begin := time.Now()
				pod := s.runPod(t, cfg)
				at := into.took(what, "RunPodSandbox", s.name, begin)
				id := s.createContainer(t, pod, cfg, waits)
				at = into.took(what, "CreateContainer", s.name, at)
				s.startContainer(t, id)
				at = into.took(what, "StartContainer", s.name, at)
				into.took(what, "pod up", s.name, begin)
				for range 2 {
					at = time.Now()
					s.exec(t, id, "/bin/true")
					at = into.took(what, "ExecSync true", s.name, at)
				}
				s.execStdin(t, id, input)
				at = into.took(what, "Exec, 1 MiB of stdin", s.name, at)
				s.stopContainer(t, id)
				stopping := at
				at = into.took(what, "StopContainer", s.name, at)
				s.stopPod(t, pod)
				into.took(what, "StopPodSandbox", s.name, at)
				into.took(what, "StopContainer + StopPodSandbox", s.name, stopping)
				at = time.Now()
				s.removePod(t, pod)
				into.took(what, "RemovePodSandbox", s.name, at)
			}
		}
	}
	execTimes(t, r, sides)
}

// execTimes measures what execs cost in processor time: of the whole machine, the
// kernel's and everybody else's included; of the side's processes and all that they ran,
// the OCI runtime and /bin/true; and of the side's processes alone.
func execTimes(t *testing.T, r *recorder, sides []side) {
	const execs, turns = 40, 5
	for range turns {
		for _, s := range sides {
			cfg := s.cri.PodConfig(networks[0].mode)
			pod := s.runPod(t, cfg)
			id := s.createContainer(t, pod, cfg, waits)
			s.startContainer(t, id)
			s.exec(t, id, "/bin/true")
			machine, ran, own := machineTime(t), s.childTime(t), s.spending(t)
			for range execs {
				s.exec(t, id, "/bin/true")
			}
			machine, ran = machineTime(t)-machine, s.childTime(t)-ran
			servers := own().sum()
			const what = "processor time of an exec"
			r.add(what, "ExecSync true, the whole machine", "ms", s.name, machine/execs)
			r.add(what, "ExecSync true, with what was run for it", "ms", s.name, (servers+ran)/execs)
			r.add(what, "ExecSync true, servers and shims alone", "ms", s.name, servers/execs)
			s.stopPod(t, pod)
			s.removePod(t, pod)
		}
	}
}
