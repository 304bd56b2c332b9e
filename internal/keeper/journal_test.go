package keeper

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func newTestJournal(t testing.TB) *journal {
	t.Helper()
	j, err := createJournal()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { j.f.Close() })
	return j
}

func (j *journal) reload(t testing.TB) []*slot {
	t.Helper()
	found, err := newJournal(j.f).load()
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func mustOpen(t testing.TB, j *journal, stream uint32, data []byte) *slot {
	t.Helper()
	s := j.open(stream, uint32(len(data)))
	err := j.record(s, data)
	if err == nil {
		err = j.taken(s)
	}
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestJournalKeepsOrder: what is loaded is what was not closed, by stream, whatever
// slots it was in.
func TestJournalKeepsOrder(t *testing.T) {
	j := newTestJournal(t)
	slots := map[uint32]*slot{}
	for i := range uint32(50) {
		slots[2*i+1] = mustOpen(t, j, 2*i+1, call(2*i+1, "M", nil))
	}
	var want []uint32
	for i := range uint32(50) {
		if i%3 != 0 {
			if err := j.close(slots[2*i+1]); err != nil {
				t.Fatal(err)
			}
		} else {
			want = append(want, 2*i+1)
		}
	}
	for i := uint32(50); i < 60; i++ { // they use free slots again
		mustOpen(t, j, 2*i+1, call(2*i+1, "M", nil))
		want = append(want, 2*i+1)
	}
	var got []uint32
	for _, s := range j.reload(t) {
		got = append(got, s.stream)
		if !bytes.Equal(s.frame, call(s.stream, "M", nil)) {
			t.Errorf("stream %d: %q", s.stream, s.frame)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if len(j.used) != 50 {
		t.Errorf("%d slots", len(j.used))
	}
}

func TestJournalIsBounded(t *testing.T) {
	j := newTestJournal(t)
	for i := range uint32(maxSlots) {
		if j.open(2*i+1, frameHead) == nil {
			t.Fatalf("no slot after %d", i)
		}
	}
	if j.open(math.MaxUint32, frameHead) != nil {
		t.Error("one more")
	}
	s := j.find(1)
	if err := j.setNote(s, make([]byte, 1000)); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a long note: %v", err)
	}
}

// TestNoMemory: a request waits for the memory that it needs, and not for ever.
func TestNoMemory(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Skipf("needs root: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	fill := func() (free func()) {
		path := filepath.Join(dir, "filler")
		if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
			t.Fatalf("it cannot be filled: %v", err)
		}
		return func() {
			if err := os.Remove(path); err != nil {
				t.Error(err)
			}
		}
	}
	record := func(name string) chan error {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		j, frame, done := newJournal(f), call(1, "M", nil), make(chan error, 1)
		go func() {
			err := j.record(j.open(1, uint32(len(frame))), frame)
			if s, lerr := newJournal(f).load(); err == nil && (lerr != nil || len(s) != 1 || !bytes.Equal(s[0].frame, frame)) {
				err = fmt.Errorf("recorded %+v, %w", s, lerr)
			}
			done <- errors.Join(err, f.Close())
		}()
		return done
	}
	synctest.Test(t, func(t *testing.T) {
		free := fill()
		done := record("patient")
		synctest.Wait() // until it waits
		free()
		if err := <-done; err != nil {
			t.Error(err)
		}
		defer fill()()
		begin := time.Now()
		if err := <-record("in vain"); !errors.Is(err, unix.ENOSPC) || time.Since(begin) < memoryPatience {
			t.Errorf("after %v: %v", time.Since(begin), err)
		}
	})
}

// TestHostileJournal: no content makes load take more than its bounds, or panic.
func TestHostileJournal(t *testing.T) {
	valid := func(f *os.File) {
		j := newJournal(f)
		mustOpen(t, j, 1, call(1, "A", []byte("x")))
	}
	put := func(at int64, values ...uint32) func(*os.File) {
		return func(f *os.File) {
			valid(f)
			var b []byte
			for _, v := range values {
				b = binary.LittleEndian.AppendUint32(b, v)
			}
			if _, err := f.WriteAt(b, at); err != nil {
				t.Fatal(err)
			}
		}
	}
	n := uint32(len(call(1, "A", []byte("x"))))
	for name, spoil := range map[string]func(*os.File){
		"magic number":      put(0, 1),
		"state":             put(4, 9),
		"another stream":    put(8, 3),
		"no length":         put(12, 0, 0),
		"too long":          put(12, math.MaxUint32, math.MaxUint32),
		"more than there":   put(12, maxFrame, maxFrame),
		"more than wanted":  put(16, n+1),
		"pending":           put(20, n+1),
		"note":              put(24, 1000),
		"answer of nothing": put(4, uint32(answered)),
		"answer":            put(28, 12),
		"long answer":       put(4, uint32(answered), 1, n, n, 0, 0, math.MaxUint32),
		"answer not there":  put(4, uint32(answered), 1, n, n, 0, 0, maxFrame),
		"frame of another length": func(f *os.File) {
			valid(f)
			if _, err := f.WriteAt([]byte{1}, frameOffset+3); err != nil {
				t.Fatal(err)
			}
		},
		"one stream twice": func(f *os.File) {
			j := newJournal(f)
			mustOpen(t, j, 1, call(1, "A", nil))
			mustOpen(t, j, 1, call(1, "B", nil))
		},
		"two half received": func(f *os.File) {
			j := newJournal(f)
			for _, stream := range []uint32{1, 3} {
				if err := j.record(j.open(stream, 1000), call(stream, "A", nil)); err != nil {
					t.Fatal(err)
				}
			}
		},
		"huge": func(f *os.File) {
			if err := f.Truncate(1 << 50); err != nil {
				t.Fatal(err)
			}
		},
		"too much in all": func(f *os.File) {
			j := newJournal(f)
			for i := range uint32(20) {
				mustOpen(t, j, 2*i+1, frame(2*i+1, typeRequest, make([]byte, 4<<20)))
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			j := newTestJournal(t)
			spoil(j.f)
			if found, err := newJournal(j.f).load(); !errdefs.IsDataLoss(err) {
				t.Errorf("%d requests, %v", len(found), err)
			}
		})
	}
}

// FuzzJournal loads slots whose heads and bodies are anything.
func FuzzJournal(f *testing.F) {
	content := func(j *journal) []byte {
		data, err := io.ReadAll(io.NewSectionReader(j.f, 0, 1024))
		if err != nil {
			f.Fatal(err)
		}
		return data
	}
	seed := newTestJournal(f)
	s := mustOpen(f, seed, 1, call(1, "Wait", []byte("x")))
	unanswered := content(seed)
	f.Add(unanswered, []byte{})
	if err := seed.setAnswer(s, frame(1, typeResponse, []byte("y"))); err != nil {
		f.Fatal(err)
	}
	f.Add(content(seed), unanswered)
	f.Fuzz(func(t *testing.T, one, two []byte) {
		j := newTestJournal(t)
		for i, data := range [][]byte{one, two} {
			if _, err := j.f.WriteAt(data[:min(len(data), 64<<10)], int64(i)*slotSize); err != nil {
				t.Fatal(err)
			}
		}
		found, err := newJournal(j.f).load()
		if err != nil {
			if !errdefs.IsDataLoss(err) {
				t.Fatal(err)
			}
			return
		}
		last := int64(-1)
		for _, s := range found {
			if int64(s.stream) <= last || len(s.frame) > maxFrame || len(s.answer) > maxFrame || len(s.note) > 192 {
				t.Fatalf("%+v", s)
			}
			last = int64(s.stream)
		}
	})
}

// FuzzWithID: what is added to a request changes nothing but its metadata.
func FuzzWithID(f *testing.F) {
	f.Add([]byte("payload"), "c/ns/sb/0123/1")
	f.Fuzz(func(t *testing.T, payload []byte, id string) {
		whole := withID(frame(7, typeRequest, payload), id)
		h := parseHead(whole)
		if int(h.length()) != len(whole) || h.stream != 7 || h.typ != typeRequest || !bytes.HasPrefix(whole[frameHead:], payload) {
			t.Fatalf("%x", whole)
		}
	})
}

// FuzzFrames: a client that sends anything ends its own connection, or is passed on
// frame by frame, with nothing changed but the IDs.
func FuzzFrames(f *testing.F) {
	f.Add(append(call(1, "A", []byte("x")), call(3, "B", nil)...))
	f.Add(append(frame(1, 3, []byte("data")), frame(1, typeRequest, nil)...))
	f.Add(append(call(1, "A", nil), call(1, "again", nil)...))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0, 0, 0, 1, 1, 0})
	f.Fuzz(func(t *testing.T, input []byte) {
		input = input[:min(len(input), 100<<10)]
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		client, server := os.NewFile(uintptr(fds[0]), "client"), os.NewFile(uintptr(fds[1]), "server")
		defer server.Close()
		if _, err := client.Write(input); err != nil {
			t.Fatal(err)
		}
		if err := client.Close(); err != nil {
			t.Fatal(err)
		}
		c, err := newConn(&Keeper{closing: make(chan struct{})}, "c/fuzz/x", server, newTestJournal(t))
		if err != nil {
			t.Fatal(err)
		}
		defer c.UnixConn.Close()
		out, err := io.ReadAll(onlyReader{c})
		if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, net.ErrClosed) {
			t.Fatal(err)
		}
		for len(out) >= frameHead && len(input) >= frameHead {
			got, sent := parseHead(out), parseHead(input)
			if got.stream != sent.stream || got.typ != sent.typ || got.payload < sent.payload {
				t.Fatalf("%+v became %+v", sent, got)
			}
			input, out = input[min(len(input), int(sent.length())):], out[min(len(out), int(got.length())):]
		}
	})
}
