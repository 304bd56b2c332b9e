package chaos

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// buffered is how much of a log the containerd that writes it may have read and not
// yet written when it is killed. That is lost; containerd has it so.
const buffered = 4096

// account compares a container's exit code and log with what it says itself.
func (w *container) account(st *runtime.ContainerStatus) error {
	var noted int32 = -1
	text, err := os.ReadFile(filepath.Join(w.volume, "code"))
	switch {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		return err
	default:
		n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 32)
		if err != nil && len(text) > 0 { // empty: killed while it wrote that
			return err
		} else if err == nil {
			noted = int32(n)
		}
	}
	killed := w.life.c.book.killer(w.life.pod, w.id)
	if err := w.checkCode(st, noted, killed); err != nil {
		return err
	}
	return w.checkLog(killed, noted == -1)
}

func (w *container) checkCode(st *runtime.ContainerStatus, noted int32, killed string) error {
	planned := w.code
	if w.end == byKill || w.end == byPod {
		planned = 137
	}
	ok := st.ExitCode == planned && (noted == planned || planned == 137 && noted == -1)
	if killed != "" { // it may have been too late, and nobody may be there to tell the code
		ok = ok || st.ExitCode == 137 || st.ExitCode == 255 && killed == "monitor" || st.ExitCode == noted
	}
	if st.ExitCode == 255 && st.Reason == "Unknown" && w.life.c.book.writerKills(w.since) > 0 {
		// containerd deletes a task first and then writes down how it ended.
		w.life.c.book.forgot()
		ok = true
	}
	if !ok {
		return fmt.Errorf("exit code %d (%s %s), it noted %d, planned was %d (%s), killed: %q",
			st.ExitCode, st.Reason, st.Message, noted, planned, w.end, killed)
	}
	return nil
}

// checkLog: the log is what the container has written. A container that was killed
// may have been between the two places that it writes a line to.
func (w *container) checkLog(killed string, cut bool) error {
	copied, err := os.ReadFile(filepath.Join(w.volume, "copy"))
	if err != nil && (killed == "" || !errors.Is(err, os.ErrNotExist)) { // it may not have come to that
		return err
	}
	text, err := os.ReadFile(filepath.Join(w.life.logs, w.logName))
	if err != nil {
		return err
	}
	logged, err := unwrap(text)
	if err != nil {
		return err
	}
	w.life.c.bytes.Add(int64(len(logged)))
	tail := 0
	if cut || killed != "" {
		tail = len(copied) - bytes.LastIndexByte(bytes.TrimSuffix(copied, []byte("\n")), '\n') - 1
	}
	if err := same(copied, logged, w.life.c.book.writerKills(w.since), tail); err != nil {
		return fmt.Errorf("log (killed: %q, %s): %w", killed, w.end, err)
	}
	return nil
}

var logLine = regexp.MustCompile(`^\S+ stdout ([FP]) `)

// unwrap takes the payload out of a log of CRI.
func unwrap(log []byte) ([]byte, error) {
	var payload []byte
	for line := range bytes.Lines(log) {
		head := logLine.FindSubmatch(line)
		if head == nil || line[len(line)-1] != '\n' {
			return nil, fmt.Errorf("line %.100q is none of CRI's for stdout", line)
		}
		line = line[len(head[0]):]
		if head[1][0] == 'P' {
			line = line[:len(line)-1]
		}
		payload = append(payload, line...)
	}
	return payload, nil
}

// same compares what was logged with what was written. As many pieces as given may
// be missing, each as long as a buffer, and at the end as many bytes as tail.
func same(written, logged []byte, gaps, tail int) error {
	at := 0
	for {
		n := prefix(written[at:], logged)
		at, logged = at+n, logged[n:]
		rest := len(written) - at
		if len(logged) == 0 && rest <= tail {
			return nil
		}
		if gaps == 0 {
			return fmt.Errorf("differs from byte %d on; %d written and %d logged bytes follow: %.60q and %.60q", at, rest, len(logged), written[at:], logged)
		}
		gaps--
		if len(logged) == 0 {
			tail += buffered
			continue
		}
		next := logged[:min(len(logged), 64)]
		gap := bytes.Index(written[at:min(len(written), at+buffered+len(next))], next)
		if gap < 0 {
			return fmt.Errorf("from byte %d on, %.60q was logged, but neither there nor within a buffer after it written: %.60q", at, next, written[at:])
		}
		at += gap
	}
}

func prefix(a, b []byte) (n int) {
	for n < len(a) && n < len(b) && a[n] == b[n] {
		n++
	}
	return n
}

// TestSame: what is excused, and nothing else is.
func TestSame(t *testing.T) {
	written := []byte(strings.Join(lines((&chaos{}).rand(1), 40, 500), ""))
	cut := func(from, to int) []byte { return append(bytes.Clone(written[:from]), written[to:]...) }
	changed := bytes.Clone(written)
	changed[2000] ^= 1
	for name, c := range map[string]struct {
		logged     []byte
		gaps, tail int
		ok         bool
	}{
		"all":                {written, 0, 0, true},
		"twice a byte":       {cut(100, 99), 1, 0, false},
		"a gap":              {cut(100, 200), 1, 0, true},
		"a gap too many":     {cut(100, 200), 0, 0, false},
		"a gap too large":    {cut(100, 200+buffered), 1, 0, false},
		"another byte":       {changed, 1, 0, false},
		"no end":             {written[:len(written)-10], 0, 0, false},
		"no end, excused":    {written[:len(written)-10], 0, 10, true},
		"no end, in a gap":   {written[:len(written)-buffered], 1, 0, true},
		"nothing of much":    {nil, 1, 0, false},
		"more than written":  {append(bytes.Clone(written), 'x'), 1, 10, false},
		"order":              {append(bytes.Clone(written[300:]), written[:300]...), 1, 10, false},
		"gap before the end": {cut(1000, 1500)[:len(written)-510], 1, 10, true},
	} {
		if err := same(written, c.logged, c.gaps, c.tail); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestUnwrap reads both kinds of lines, and nothing else.
func TestUnwrap(t *testing.T) {
	got, err := unwrap([]byte("2026-01-01T00:00:00Z stdout P a b\n2026-01-01T00:00:00Z stdout F c\n2026-01-01T00:00:00Z stdout F \n"))
	if err != nil || string(got) != "a bc\n\n" {
		t.Errorf("%q, %v", got, err)
	}
	for _, bad := range []string{"2026-01-01T00:00:00Z stderr F x\n", "2026-01-01T00:00:00Z stdout F x", "x\n"} {
		if got, err := unwrap([]byte(bad)); err == nil {
			t.Errorf("%q became %q", bad, got)
		}
	}
}
