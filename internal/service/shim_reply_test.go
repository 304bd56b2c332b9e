package service

import (
	"bytes"
	"encoding/binary"
	"net"
	"os/exec"
	"testing"
	"time"
)

// printed is what the binary is to print for a reply, and the code it is to exit with.
// whole is false if the reply is none: then only the beginning of an output may have
// been printed, and standard error ends with the reason.
func printed(reply []byte) (out shimReply, whole bool) {
	rest, ok := bytes.CutPrefix(reply, []byte(shimReplyMagic))
	if !ok || len(rest) < 4 {
		return out, false
	}
	out.code = binary.BigEndian.Uint32(rest)
	rest = rest[4:]
	for _, output := range []*[]byte{&out.stdout, &out.stderr} {
		if len(rest) < 4 {
			return out, false
		}
		n := binary.BigEndian.Uint32(rest)
		rest = rest[4:]
		if n > maxShimBody {
			return out, false
		}
		*output = rest[:min(int(n), len(rest))]
		if int(n) > len(rest) {
			return out, false
		}
		rest = rest[n:]
	}
	if out.code > 255 {
		out.code = 1
	}
	return out, true
}

// answer gives whoever connects a reply in two pieces, and hangs up.
func answer(l net.Listener, replies <-chan [2][]byte) {
	var reply [2][]byte
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		select {
		case reply = <-replies:
		default: // it asks again, since there was no answer
		}
		_, err = readShimRequest(conn)
		for _, piece := range reply {
			if err == nil && len(piece) > 0 {
				_, err = conn.Write(piece) // may fail: it has read enough
			}
		}
		conn.Close()
	}
}

// FuzzShimReply: whatever answers at the daemon's socket, the binary, here with
// sanitizers, prints what it is told, within bounds, or says what is wrong.
func FuzzShimReply(f *testing.F) {
	whole := func(r shimReply) []byte {
		var b bytes.Buffer
		if err := r.encode(&b); err != nil {
			f.Fatal(err)
		}
		return b.Bytes()
	}
	reply := whole(shimReply{code: 3, stdout: []byte("out"), stderr: []byte("err")})
	f.Add(reply, uint16(5))
	f.Add(reply[:len(reply)-1], uint16(0))
	f.Add(append(reply, "more"...), uint16(12))
	f.Add(whole(shimReply{code: 1 << 31, stdout: bytes.Repeat([]byte("x"), 4097)}), uint16(4108))
	f.Add([]byte(nil), uint16(0))
	f.Add([]byte("CSR2\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), uint16(3))
	f.Add([]byte("CSR1\x00\x00\x00\x00\x00\x10\x00\x01x"), uint16(8))
	f.Add([]byte("CSR1\x00\x00\x00\x00\xff\xff\xff\xff"), uint16(8))
	binary, socket := build(f, "asan"), shortDir(f)+"/shim.sock"
	l, err := net.Listen("unix", socket)
	if err != nil {
		f.Fatal(err)
	}
	replies := make(chan [2][]byte, 1)
	go answer(l, replies)
	f.Cleanup(func() { l.Close() })
	f.Fuzz(func(t *testing.T, reply []byte, cut uint16) {
		at := min(int(cut), len(reply))
		replies <- [2][]byte{reply[:at], reply[at:]}
		cmd := exec.CommandContext(t.Context(), binary, "-info")
		cmd.Env = []string{"CAISSON_SHIM_SOCKET=" + socket, "ASAN_OPTIONS=exitcode=99:detect_leaks=0", "UBSAN_OPTIONS=exitcode=99"}
		cmd.WaitDelay = time.Second
		stdout, stderr := &bytes.Buffer{}, &bytes.Buffer{}
		cmd.Stdout, cmd.Stderr = stdout, stderr
		start := time.Now()
		_ = cmd.Run() // its code is looked at
		code := cmd.ProcessState.ExitCode()
		want, ok := printed(reply)
		if !ok {
			reason := bytes.LastIndex(stderr.Bytes(), []byte("containerd-shim-caisson-v2: "))
			if code != 1 || reason < 0 || !bytes.HasPrefix(want.stderr, stderr.Bytes()[:reason]) || !bytes.HasPrefix(want.stdout, stdout.Bytes()) {
				t.Errorf("code %d, %q, %q", code, stdout, stderr)
			}
		} else if code != int(want.code) || stdout.String() != string(want.stdout) || stderr.String() != string(want.stderr) {
			t.Errorf("code %d, %q, %q, want %+v", code, stdout, stderr, want)
		}
		if took := time.Since(start); took > 10*time.Second {
			t.Errorf("took %v", took)
		}
	})
}
