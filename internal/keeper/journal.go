package keeper

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"caisson/internal/fault"
	"caisson/internal/request"
)

// A journal is the memory of one connection: a file without a name (memfd), which
// the keeper keeps beside the connection. It is a row of slots, one per request
// that is not answered, far enough apart that each can hold the largest request
// and the largest answer; the file is sparse, so that a slot takes the pages that
// it needs, which is one for nearly all.
//
//	slot = head (64 bytes), note (192 bytes), request frame, answer frame
//	head = u32 magic, state, stream, want, got, pending, note, answer; little-endian
//
// want is the length of the request frame, got what was recorded of it. pending
// are the last bytes of got that may still be in the socket: it is set with got,
// and cleared when they were taken out of there. note and answer are lengths. What
// is pointed to is written before the head that points to it, and a head is
// written in one piece, so a daemon may be killed at any moment.
type journal struct {
	f *os.File

	mu    sync.Mutex // guards what follows
	used  []bool     // slots in use
	slots map[uint32]*slot
}

const (
	slotSize    = 16 << 20
	headSize    = 64
	frameOffset = headSize + request.MaxNote
	maxSlots    = 4096
	slotMagic   = 0x314a5343 // "CSJ1"
	// maxReplay bounds the requests that one connection can leave to the next daemon.
	maxReplay = 64 << 20
)

// state of a slot.
type state uint32

const (
	free      state = iota
	receiving       // the request is not complete
	received        // it is, and has no answer
	answered        // it has one, which may have been sent
)

// slot is one request.
type slot struct {
	index   int
	state   state
	stream  uint32
	want    uint32
	pending uint32
	note    []byte
	frame   []byte // what was recorded of the request; nil once it was passed on
	got     uint32
	answer  []byte
	again   bool
}

func newJournal(f *os.File) *journal { return &journal{f: f, slots: map[uint32]*slot{}} }

// createJournal makes an empty one.
func createJournal() (*journal, error) {
	fd, err := unix.MemfdCreate("caisson-requests", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memory of a connection: %w", err)
	}
	return newJournal(os.NewFile(uintptr(fd), "caisson-requests")), nil
}

func (s *slot) offset() int64 { return int64(s.index) * slotSize }

func (j *journal) writeHead(s *slot) error {
	var head [headSize]byte
	for i, v := range []uint32{slotMagic, uint32(s.state), s.stream, s.want, s.got, s.pending, uint32(len(s.note)), uint32(len(s.answer))} {
		binary.LittleEndian.PutUint32(head[4*i:], v)
	}
	return j.write(head[:], s.offset())
}

// memoryPatience is how long a request or an answer may wait for memory: without, its
// connection ends, and the client's task with it.
const memoryPatience = 5 * time.Second

func (j *journal) write(data []byte, at int64) error {
	for begin, pause := time.Now(), time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		err := fault.Fail("request:record", unix.ENOSPC, unix.ENOMEM)
		if err == nil {
			_, err = j.f.WriteAt(data, at)
		}
		if err == nil {
			return nil
		}
		short := errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.ENOMEM)
		if !short || time.Since(begin) > memoryPatience {
			return fmt.Errorf("record a request: %w", err)
		}
		time.Sleep(pause) // nobody tells when there is memory
	}
}

// open takes a slot for a request of which nothing was recorded yet; nil: there is
// none.
func (j *journal) open(stream, want uint32) *slot {
	j.mu.Lock()
	defer j.mu.Unlock()
	i := slices.Index(j.used, false)
	if i < 0 {
		if len(j.used) == maxSlots {
			return nil
		}
		i = len(j.used)
		j.used = append(j.used, false)
	}
	j.used[i] = true
	s := &slot{index: i, state: receiving, stream: stream, want: want}
	j.slots[stream] = s
	return s
}

func (j *journal) find(stream uint32) *slot {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.slots[stream]
}

// record adds a part of the request, which is still in the socket.
func (j *journal) record(s *slot, part []byte) error {
	if err := j.write(part, s.offset()+frameOffset+int64(s.got)); err != nil {
		return err
	}
	s.frame = append(s.frame, part...)
	s.got += uint32(len(part))
	s.pending = uint32(len(part))
	if s.got == s.want {
		s.state = received
	}
	return j.writeHead(s)
}

// taken notes that nothing of what was recorded is in the socket any more.
func (j *journal) taken(s *slot) error {
	s.pending = 0
	return j.writeHead(s)
}

// setNote is called by handlers, at most one per request at a time, before it is
// answered. A note is replaced in place: one of another length only if nobody minds
// that a kill leaves a part of the one and a part of the other.
func (j *journal) setNote(s *slot, note []byte) error {
	if len(note) > request.MaxNote {
		return fmt.Errorf("note of %d bytes, limit %d: %w", len(note), request.MaxNote, errdefs.ErrInvalidArgument)
	}
	if err := j.write(note, s.offset()+headSize); err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if s.state != received {
		return nil // It was answered meanwhile.
	}
	s.note = slices.Clone(note)
	return j.writeHead(s)
}

// setAnswer records what is about to be sent.
func (j *journal) setAnswer(s *slot, frame []byte) error {
	if err := j.write(frame, s.offset()+frameOffset+int64(s.want)); err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	s.answer, s.state = frame, answered
	return j.writeHead(s)
}

// close frees a slot whose answer was sent.
func (j *journal) close(s *slot) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	size := frameOffset + int64(s.want) + int64(len(s.answer))
	s.state, s.answer = free, nil
	err := j.writeHead(s)
	if page := int64(os.Getpagesize()); size > page {
		// Only what is beyond the first page: that one is used again soon.
		err = errors.Join(err, unix.Fallocate(int(j.f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, s.offset()+page, size-page))
	}
	delete(j.slots, s.stream)
	j.used[s.index] = false
	return err
}

// load reads what an earlier daemon left, in the order of the streams. Whatever
// the file holds, the work is bounded.
func (j *journal) load() (found []*slot, err error) {
	st, err := j.f.Stat()
	if err != nil {
		return nil, fmt.Errorf("memory of a connection: %w", err)
	}
	n := (st.Size() + slotSize - 1) / slotSize
	if n > maxSlots {
		return nil, corrupt("size", st.Size())
	}
	j.used = make([]bool, n)
	var total int64
	for i := range int(n) {
		s := &slot{index: i, again: true}
		lengths, err := j.readHead(s)
		if err != nil {
			return nil, err
		}
		if s.state == free {
			continue
		}
		if total += int64(s.got) + int64(lengths.answer); total > maxReplay {
			return nil, corrupt("bytes in all", total)
		}
		if _, ok := j.slots[s.stream]; ok {
			return nil, corrupt("second request of stream", s.stream)
		}
		if err := j.readBody(s, lengths); err != nil {
			return nil, err
		}
		j.used[i], j.slots[s.stream] = true, s
		found = append(found, s)
	}
	slices.SortFunc(found, func(a, b *slot) int { return int(int64(a.stream) - int64(b.stream)) })
	return found, checkPending(found)
}

// checkPending holds that at most one request was being received.
func checkPending(found []*slot) error {
	busy := 0
	for _, s := range found {
		if s.state == receiving || s.pending > 0 {
			busy++
		}
	}
	if busy > 1 {
		return corrupt("requests half received", busy)
	}
	return nil
}

type lengths struct{ note, answer uint32 }

func (j *journal) readHead(s *slot) (l lengths, err error) {
	var head [headSize]byte
	if _, err := j.f.ReadAt(head[:], s.offset()); err != nil && !errors.Is(err, io.EOF) {
		return l, fmt.Errorf("memory of a connection: %w", err)
	}
	var v [8]uint32
	for i := range v {
		v[i] = binary.LittleEndian.Uint32(head[4*i:])
	}
	if v == [8]uint32{} {
		return l, nil // nothing was ever recorded there
	}
	s.state, s.stream, s.want, s.got, s.pending = state(v[1]), v[2], v[3], v[4], v[5]
	l = lengths{v[6], v[7]}
	switch {
	case v[0] != slotMagic:
		return l, corrupt("magic number", v[0])
	case s.state > answered:
		return l, corrupt("state", s.state)
	case s.want < frameHead || s.want > maxFrame:
		return l, corrupt("length of a request", s.want)
	case s.got > s.want || s.pending > s.got || (s.got == s.want) == (s.state == receiving):
		return l, corrupt("received bytes", s.got)
	case l.note > request.MaxNote:
		return l, corrupt("length of a note", l.note)
	case l.answer > maxFrame || (l.answer < frameHead) == (s.state == answered):
		return l, corrupt("length of an answer", l.answer)
	}
	return l, nil
}

func (j *journal) readBody(s *slot, l lengths) error {
	s.note, s.frame, s.answer = make([]byte, l.note), make([]byte, s.got), make([]byte, l.answer)
	for at, part := range map[int64][]byte{headSize: s.note, frameOffset: s.frame, frameOffset + int64(s.want): s.answer} {
		if _, err := io.ReadFull(io.NewSectionReader(j.f, s.offset()+at, int64(len(part))), part); err != nil {
			return corrupt("end of the file in the request of stream", s.stream)
		}
	}
	for _, frame := range [][]byte{s.frame, s.answer} {
		if len(frame) < frameHead {
			continue
		}
		if h := parseHead(frame); h.stream != s.stream {
			return corrupt("frame of stream", h.stream)
		}
	}
	if len(s.frame) >= frameHead && parseHead(s.frame).length() != s.want {
		return corrupt("frame length", s.want)
	}
	return nil
}

func corrupt(what string, value any) error {
	return fmt.Errorf("memory of a connection: %s %v: %w", what, value, errdefs.ErrDataLoss)
}
