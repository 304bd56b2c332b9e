package chaos

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ending is how a container ends if nobody kills it.
type ending string

const (
	byItself ending = "by itself" // with its code
	byTerm   ending = "by term"   // StopContainer, with its code
	byKill   ending = "by kill"   // StopContainer without patience
	byPod    ending = "by pod"    // StopPodSandbox
)

// plan is what a worker does with a pod. It is made of the seed before anything
// happens.
type plan struct {
	name       string
	worker     int
	network    runtime.NamespaceMode
	containers []containerPlan
}

type containerPlan struct {
	name  string
	lines []string
	pause time.Duration // between two lines
	end   ending
	code  int32
	execs []execPlan
}

type execPlan struct {
	text string
	code int32
}

func (c *chaos) plan(worker, n int) plan {
	r := c.rand(uint64(worker), uint64(n))
	p := plan{name: fmt.Sprintf("w%d-%d", worker, n), worker: worker, network: runtime.NamespaceMode_NODE}
	if r.IntN(4) == 0 {
		p.network = runtime.NamespaceMode_POD
	}
	for i := range 1 + r.IntN(3) {
		k := containerPlan{
			name:  fmt.Sprintf("c%d", i),
			lines: lines(r, 1+r.IntN(60), 1200),
			pause: time.Duration(r.IntN(40)) * time.Millisecond,
			end:   []ending{byItself, byItself, byTerm, byTerm, byKill, byPod}[r.IntN(6)],
			code:  1 + r.Int32N(100),
		}
		if r.IntN(4) == 0 {
			k.pause = 0
		}
		for range r.IntN(4) {
			k.execs = append(k.execs, execPlan{text: strings.Join(lines(r, r.IntN(30), 400), ""), code: r.Int32N(100)})
		}
		p.containers = append(p.containers, k)
		if k.end == byPod {
			break // it stays until then
		}
	}
	return p
}

const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789 \t$'\"`~*?[]{}()<>|&;#!%^=+-_.,:@/"

// lines are what is written, each of another content and length.
func lines(r *rand.Rand, n, longest int) []string {
	all := make([]string, n)
	for i := range all {
		text := make([]byte, r.IntN(longest))
		for j := range text {
			text[j] = letters[r.IntN(len(letters))]
		}
		all[i] = fmt.Sprintf("%d:%s\n", i, text)
	}
	return all
}

// script writes each line that it reads to the copy first, then to its log, until a
// line says to end, or SIGTERM does between two lines. It forks nothing, so that it
// does not mind if process IDs run out.
const script = `trap 'stop=1' TERM
exec 4>/vol/copy
while [ -z "$stop" ] && IFS= read -r line; do
	[ "$line" != end ] || break
	printf '%%s\n' "$line" >&4
	printf '%%s\n' "$line"
done </vol/in
echo %[1]d >/vol/code
exit %[1]d`

// execScript writes a file of the volume.
const execScript = `while IFS= read -r line; do printf '%%s\n' "$line"; done </vol/exec%d; echo done >&2; exit %d`
