package monitor

import (
	"encoding/binary"
	"fmt"
	"math"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The numbers of c/protocol.h, which describes the protocol.
const (
	protocolVersion = 2
	headerSize      = 16
	maxMessage      = 64 << 10
	maxFDs          = 253
	maxTag          = 200
	maxKeepFDs      = 8

	msgHello     = 1
	msgHold      = 2
	msgSpawn     = 3
	msgSignal    = 4
	msgList      = 5
	msgSubscribe = 6
	msgAck       = 7
	msgKeep      = 8
	msgFetch     = 9
	msgDrop      = 10
	msgKept      = 11
	msgEnd       = 12
	msgAccept    = 13
	msgGreet     = 14
	msgTitle     = 15

	msgExit  = 0x4001
	msgError = 0x7fff
	msgReply = 0x8000

	flagHoldUser   = 1
	flagHoldNet    = 2
	flagHoldNewIPC = 4
	flagHoldNewUTS = 8
	flagHoldNewPID = 16
	flagSpawnAdopt = 1
	flagSignalOnce = 1
	flagKeepOpen   = 1
	flagDropPrefix = 1
	flagEndForce   = 1
	flagMore       = 1
)

// spans are the names of requests in traces.
var spans = map[uint16]string{
	msgHello:     "monitor.hello",
	msgHold:      "monitor.hold",
	msgSpawn:     "monitor.spawn",
	msgSignal:    "monitor.signal",
	msgList:      "monitor.list",
	msgSubscribe: "monitor.subscribe",
	msgAck:       "monitor.ack",
	msgKeep:      "monitor.keep",
	msgFetch:     "monitor.fetch",
	msgDrop:      "monitor.drop",
	msgKept:      "monitor.kept",
	msgEnd:       "monitor.end",
	msgAccept:    "monitor.accept",
	msgGreet:     "monitor.greet",
	msgTitle:     "monitor.title",
}

type header struct {
	version, typ uint16
	id, flags    uint32
	fds          uint16
}

// encoder builds a message; what the format cannot hold makes it fail as a whole.
type encoder struct {
	buf []byte
	err error
}

func newEncoder(h header) *encoder {
	e := &encoder{buf: make([]byte, 0, 256)}
	e.u16(h.version)
	e.u16(h.typ)
	e.u32(h.id)
	e.u32(h.flags)
	e.u16(h.fds)
	e.u16(0)
	return e
}

func (e *encoder) u16(v uint16) { e.buf = binary.LittleEndian.AppendUint16(e.buf, v) }
func (e *encoder) u32(v uint32) { e.buf = binary.LittleEndian.AppendUint32(e.buf, v) }
func (e *encoder) u64(v uint64) { e.buf = binary.LittleEndian.AppendUint64(e.buf, v) }

func (e *encoder) string(what, s string, limit int) {
	switch {
	case len(s) > limit || len(s) > math.MaxUint16:
		e.fail(unix.ENAMETOOLONG, what)
	case strings.IndexByte(s, 0) >= 0:
		e.fail(unix.EINVAL, what+" holds a NUL byte")
	default:
		e.u16(uint16(len(s)))
		e.buf = append(append(e.buf, s...), 0)
	}
}

func (e *encoder) strings(what string, list []string) {
	if len(list) > math.MaxUint16 {
		e.fail(unix.E2BIG, what)
		return
	}
	e.u16(uint16(len(list)))
	for _, s := range list {
		e.string(what, s, maxMessage)
	}
}

func (e *encoder) fail(errno unix.Errno, step string) {
	if e.err == nil {
		e.err = &Error{Step: step, Errno: errno}
	}
}

// bytes returns the finished message.
func (e *encoder) bytes() ([]byte, error) {
	if e.err == nil && len(e.buf) > maxMessage {
		e.fail(unix.EMSGSIZE, fmt.Sprintf("request of %d bytes, limit %d", len(e.buf), maxMessage))
	}
	return e.buf, e.err
}

// decoder reads a message; a read past its end makes it bad and returns zeros.
type decoder struct {
	buf []byte
	bad bool
}

func (d *decoder) take(n int) []byte {
	if d.bad || len(d.buf) < n {
		d.bad = true
		return make([]byte, n)
	}
	b := d.buf[:n]
	d.buf = d.buf[n:]
	return b
}

func (d *decoder) u8() uint8   { return d.take(1)[0] }
func (d *decoder) u16() uint16 { return binary.LittleEndian.Uint16(d.take(2)) }
func (d *decoder) u32() uint32 { return binary.LittleEndian.Uint32(d.take(4)) }
func (d *decoder) u64() uint64 { return binary.LittleEndian.Uint64(d.take(8)) }

func (d *decoder) string() string {
	s := string(d.take(int(d.u16())))
	if d.u8() != 0 {
		d.bad = true
	}
	return s
}

func (d *decoder) header() header {
	h := header{version: d.u16(), typ: d.u16(), id: d.u32(), flags: d.u32(), fds: d.u16()}
	d.u16()
	return h
}

func (d *decoder) process() Process {
	p := Process{Serial: d.u64(), StartTime: d.u64(), Pid: int(d.u32())}
	d.u32()
	return p
}

func (d *decoder) record() Record {
	r := Record{Exit: Exit{Process: d.process(), Kind: Kind(d.u8())}}
	r.Running = d.u8() == 0
	d.u16()
	r.Status = unix.WaitStatus(d.u32())
	r.order = d.u64()
	if ns := d.u64(); !r.Running {
		r.ExitedAt = time.Unix(0, int64(ns))
	}
	r.User = time.Duration(d.u64()) * time.Microsecond
	r.System = time.Duration(d.u64()) * time.Microsecond
	r.MaxRSS = d.u64() << 10
	if p := d.process(); p.Serial != 0 {
		r.Adopted = &p
	}
	r.Tag = d.string()
	return r
}
