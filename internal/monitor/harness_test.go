package monitor

import (
	"debug/elf"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// corpus is where script/fuzz has libFuzzer's first inputs from.
var corpus = flag.String("corpus", "", "leave the inputs of TestHarness in this new directory")

// outside matches what the harness may call of the C library: nothing that does
// anything to this machine. replay.c reads files.
var outside = regexp.MustCompile(`^(__\w+|_ITM_\w+|_?longjmp|_setjmp|abort|[cm]alloc|free|mem\w+|str\w+|sig\w+set|sprintf|perror|f(open|read|error|close|write|printf|putc))$`)

// TestHarness runs the corpus of the C fuzz test (c/fuzz) without libFuzzer, which
// wants clang: the whole monitor with sanitizers, on a kernel that is not there.
func TestHarness(t *testing.T) {
	bin := makeMonitor(t, t.TempDir(), []string{"replay"})
	program, err := elf.Open(bin)
	if err != nil {
		t.Fatal(err)
	}
	defer program.Close()
	symbols, err := program.ImportedSymbols()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range symbols {
		if !outside.MatchString(s.Name) {
			t.Errorf("%s is called: c/fuzz/kernel.h must stand in for it", s.Name)
		}
	}
	if t.Failed() {
		return // it might do harm
	}
	dir := *corpus
	if dir == "" {
		dir = filepath.Join(t.TempDir(), "corpus")
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	var paths []string
	for name, input := range harnessInputs(t) {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, input, 0o644); err != nil {
			t.Fatal(err)
		}
		paths = append(paths, path)
	}
	cmd := exec.Command(bin, paths...)
	cmd.Env = append(os.Environ(), "UBSAN_OPTIONS=print_stacktrace=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out[max(0, len(out)-8<<10):])
	}
}

// The events in c/fuzz/fuzz.c.
const (
	evPacket = iota
	evConnect
	evHangUp
	evFull
	evExited
	evOrphan
	evClient
	evContent
	evFail

	evFIFOs   = 0x80 // with a packet
	evTooLong = 254
)

// events is an input of the harness. It begins with a connection of root's.
type events []byte

func newEvents() *events { return new(events).add(evConnect, 0, "") }

func (e *events) add(what, n int, data string) *events {
	*e = append(append(*e, byte(what), byte(n), byte(len(data)>>8), byte(len(data))), data...)
	return e
}

// request is a request with n descriptors, listening sockets.
func (e *events) request(typ uint16, flags uint32, n int, body []byte) *events {
	h := header{version: protocolVersion, typ: typ, id: 1, flags: flags, fds: uint16(n)}
	return e.add(evPacket, n, string(append(newEncoder(h).buf, body...)))
}

// fifos is a request whose descriptors are FIFOs.
func (e *events) fifos(typ uint16, flags uint32, n int, body []byte) *events {
	at := len(*e)
	e.request(typ, flags, n, body)
	(*e)[at] |= evFIFOs
	return e
}

func (e *events) body(typ uint16) *events { return e.request(typ, 0, 0, valid()[typ]) }

func body(fill func(*encoder)) []byte {
	e := new(encoder)
	fill(e)
	return e.buf
}

func stringsBody(list ...string) []byte {
	return body(func(e *encoder) {
		for _, s := range list {
			e.string("", s, maxMessage)
		}
	})
}

// harnessInputs are FuzzMonitor's inputs, which are packets; sequences with what else
// happens; and what libFuzzer has found, in testdata/harness.
func harnessInputs(t *testing.T) map[string][]byte {
	inputs := map[string][]byte{}
	for typ, body := range valid() {
		inputs[fmt.Sprintf("request-%d", typ)] = *newEvents().request(typ, 0, 0, body).request(typ, 0, 1, body)
		for i, data := range cut(typ, body) {
			inputs[fmt.Sprintf("request-%d-cut-%d", typ, i)] = *newEvents().add(evPacket, 0, string(data))
		}
	}
	for name, text := range readAll(t, "testdata/fuzz/FuzzMonitor/*") {
		quoted := text[strings.Index(text, `"`) : strings.LastIndex(text, `"`)+1]
		packets, err := strconv.Unquote(quoted)
		if err != nil {
			t.Fatal(name, err)
		}
		e := newEvents()
		for len(packets) >= 3 {
			n := min(int(packets[1])<<8|int(packets[2]), len(packets)-3)
			e.add(evPacket, int(packets[0]), packets[3:3+n])
			packets = packets[3+n:]
		}
		inputs["packets-"+name] = *e
	}
	for name, e := range harnessSequences() {
		inputs[name] = *e
		// The same, with one of its system calls refused.
		if len(*e) < 1<<10 {
			for n := 1; n < 60; n++ {
				inputs[fmt.Sprintf("%s-fail-%d", name, n)] = append(*new(events).add(evFail, n, "\x17"), *e...)
			}
		}
	}
	for name, text := range readAll(t, "testdata/harness/*") {
		inputs["found-"+name] = []byte(text)
	}
	return inputs
}

func harnessSequences() map[string]*events {
	const first, stat = "2000\n", "1 (a) b) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 77 20"
	serial := body(func(e *encoder) { e.u64(1) })
	signal := body(func(e *encoder) { e.u64(1); e.u32(15) })
	once := append(signal, serial...)
	runtime := body(func(e *encoder) {
		for _, s := range []string{"tag", "", "/pid"} {
			e.string("", s, maxTag)
		}
		e.strings("", []string{"/bin/runtime"})
		e.strings("", nil)
	})
	hold := body(func(e *encoder) {
		e.string("", "host", 64)
		e.u16(1)
		e.string("", "net/key", 200)
		e.string("", "1", 200)
	})
	const all = flagHoldUser | flagHoldNet | flagHoldNewIPC | flagHoldNewUTS | flagHoldNewPID
	greet := valid()[msgGreet]
	list := map[string]*events{
		"life": newEvents().add(evContent, 0, stat).request(msgHello, 0, 0, nil).request(msgSubscribe, 0, 0, nil).
			request(msgSubscribe, 0, 0, nil).fifos(msgSpawn, 0, 3, valid()[msgSpawn]).body(msgList).
			request(msgSignal, 0, 0, signal).request(msgSignal, flagSignalOnce, 0, once).request(msgSignal, flagSignalOnce, 0, once).
			request(msgEnd, 0, 0, nil).request(msgAck, 0, 0, serial).add(evExited, 0, "\x01").request(msgSignal, 0, 0, signal).
			request(msgAck, 0, 0, serial).request(msgAck, 0, 0, serial).request(msgEnd, 0, 0, nil),
		"adopt": newEvents().request(msgSpawn, flagSpawnAdopt, 0, runtime).add(evOrphan, 0, "").add(evOrphan, 0, "").
			add(evExited, 1, "").add(evContent, 0, "2001\n").add(evExited, 0, "").body(msgList).add(evExited, 2, ""),
		"adopt-itself":  newEvents().add(evContent, 0, first).request(msgSpawn, flagSpawnAdopt, 0, runtime).add(evExited, 0, ""),
		"runtime-fails": newEvents().request(msgSpawn, flagSpawnAdopt, 0, runtime).add(evExited, 0, "\x01"),
		"hold": newEvents().request(msgHold, all, 2, hold).request(msgHold, 0, 0, valid()[msgHold]).
			add(evExited, 1, "").body(msgList).request(msgEnd, 0, 0, nil),
		"hold-plain": newEvents().body(msgHold).request(msgEnd, 0, 0, nil),
		"hold-wrong": newEvents().request(msgHold, 0, 0, hold).request(msgHold, 0, 0, append([]byte{0, 0, 0, 1, 0}, stringsBody("a/../b", "")...)).
			request(msgHold, 0, 0, append([]byte{0, 0, 0, 1, 0}, stringsBody("a/", "")...)),
		"end": newEvents().body(msgHold).body(msgSpawn).add(evOrphan, 0, "").request(msgEnd, 0, 0, nil).
			request(msgEnd, flagEndForce, 0, nil).body(msgSpawn).add(evContent, 0, "Name:\tx\nPPid:\t1000\n").request(msgHello, 0, 0, nil),
		"end-alone": newEvents().body(msgSpawn).request(msgEnd, flagEndForce, 0, nil).add(evHangUp, 0, "").
			add(evContent, 0, "\nPPid:\t1000\n").add(evClient, 0, ""),
		"parent-of-many-digits": newEvents().body(msgSpawn).add(evContent, 0, "\nPPid:\t"+strings.Repeat("9", 30)).
			request(msgEnd, flagEndForce, 0, nil),
		"keep": newEvents().request(msgKeep, 0, 8, stringsBody("name")).request(msgKeep, 0, 1, stringsBody("name")).
			fifos(msgKeep, flagKeepOpen, 2, stringsBody("fifo")).request(msgKeep, flagKeepOpen, 2, stringsBody("fifo")).
			request(msgFetch, 0, 0, stringsBody("fifo")).request(msgFetch, 0, 0, stringsBody("none")).body(msgKept).
			request(msgDrop, flagDropPrefix, 0, stringsBody("f")).request(msgDrop, 0, 0, stringsBody("name")),
		"accept": newEvents().request(msgKeep, 0, 1, stringsBody("name")).body(msgAccept).add(evClient, 0, "").
			fifos(msgAccept, 0, 7, valid()[msgAccept]).request(msgAccept, 0, 0, stringsBody("none", "a")).
			request(msgAccept, 0, 0, stringsBody("name", "name")).request(msgAccept, 0, 8, valid()[msgAccept]).
			request(msgAccept, 0, 0, stringsBody("other", "a")),
		"greet": newEvents().request(msgKeep, 0, 1, stringsBody("name")).request(msgGreet, 0, 0, greet).add(evClient, 0, "").
			add(evHangUp, 0, "").add(evClient, 0, "").add(evClient, 1, "").add(evClient, 0, "").add(evClient, 0, "").
			add(evConnect, 0, "").body(msgKept),
		"greet-file": newEvents().fifos(msgKeep, 0, 1, stringsBody("name")).request(msgGreet, 0, 0, greet).add(evHangUp, 0, "").add(evClient, 0, ""),
		"full": newEvents().request(msgSubscribe, 0, 0, nil).body(msgSpawn).body(msgSpawn).add(evFull, 1, "").
			add(evExited, 0, "").add(evExited, 1, "").add(evFull, 0, ""),
		"too-long":  newEvents().add(evPacket, evTooLong, "\x02\x00\x01\x00\x07\x00\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00"),
		"empty":     newEvents().add(evPacket, 0, "").add(evPacket, 3, ""),
		"strangers": newEvents().add(evConnect, 1, ""),
	}
	crowd, spawns, keeps := newEvents(), newEvents(), newEvents()
	for i := range 28 { // more than the harness's monitor takes of each
		long := fmt.Sprintf("%d%s", i, strings.Repeat("x", 198))
		crowd.add(evConnect, 0, "")
		spawns.request(msgSpawn, 0, 0, body(func(e *encoder) {
			for _, s := range []string{long, "", ""} {
				e.string("", s, maxTag)
			}
			e.strings("", []string{"/x"})
			e.strings("", nil)
		}))
		keeps.request(msgKeep, 0, 1+i/26*7, stringsBody(long))
	}
	spawns.body(msgList).body(msgHold)
	keeps.body(msgKept)
	for i := range 28 {
		spawns.add(evExited, i, "")
	}
	for i := range 28 {
		spawns.request(msgAck, 0, 0, body(func(e *encoder) { e.u64(uint64(i + 1)) }))
	}
	keeps.request(msgDrop, flagDropPrefix, 0, stringsBody("1"))
	maps.Copy(list, map[string]*events{"crowd": crowd, "many-records": spawns, "many-kept": keeps})
	return list
}

func readAll(t *testing.T, pattern string) map[string]string {
	t.Helper()
	paths, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	texts := map[string]string{}
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		texts[filepath.Base(path)] = string(b)
	}
	return texts
}
