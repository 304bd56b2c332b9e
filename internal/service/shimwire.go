package service

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/errdefs"
)

// The protocol of shim.sock, described in docs/shim-protocol.md. Numbers are
// 32 bits, big-endian.
const (
	shimRequestMagic = "CSQ1"
	shimReplyMagic   = "CSR1"
	// maxShimBody bounds the body of a request, and each output of a reply.
	maxShimBody = 1 << 20
	maxShimArgs = 256
)

// shimRequest is what one start of the binary sends.
type shimRequest struct {
	args  []string // argv, the program's name first
	dir   string   // working directory
	stdin []byte
}

// shimReply is what the binary prints, and the code it exits with.
type shimReply struct {
	code           uint32
	stdout, stderr []byte
}

func readShimRequest(r io.Reader) (shimRequest, error) {
	var head [8]byte
	if _, err := io.ReadFull(r, head[:]); errors.Is(err, io.EOF) {
		return shimRequest{}, err // not a byte
	} else if err != nil {
		return shimRequest{}, fmt.Errorf("request: %v: %w", err, errdefs.ErrInvalidArgument)
	}
	if string(head[:4]) != shimRequestMagic {
		return shimRequest{}, fmt.Errorf("request starts with %q: binary and daemon are of different versions: %w", head[:4], errdefs.ErrInvalidArgument)
	}
	n := binary.BigEndian.Uint32(head[4:])
	if n > maxShimBody {
		return shimRequest{}, fmt.Errorf("request of %d bytes, the limit is %d: %w", n, maxShimBody, errdefs.ErrResourceExhausted)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return shimRequest{}, fmt.Errorf("request: %v: %w", err, errdefs.ErrInvalidArgument)
	}
	return parseShimRequest(body)
}

func parseShimRequest(body []byte) (shimRequest, error) {
	d := decoder{rest: body}
	var req shimRequest
	argc := d.number()
	if argc > maxShimArgs {
		return shimRequest{}, fmt.Errorf("request with %d arguments, the limit is %d: %w", argc, maxShimArgs, errdefs.ErrResourceExhausted)
	}
	for range argc {
		req.args = append(req.args, string(d.bytes()))
	}
	req.dir = string(d.bytes())
	req.stdin = d.bytes()
	if d.bad || len(d.rest) > 0 {
		return shimRequest{}, fmt.Errorf("request: lengths do not add up: %w", errdefs.ErrInvalidArgument)
	}
	return req, nil
}

// decoder takes values off a body; after the first that does not fit it is bad
// and yields zeros.
type decoder struct {
	rest []byte
	bad  bool
}

func (d *decoder) number() uint32 {
	if d.bad || len(d.rest) < 4 {
		d.bad = true
		return 0
	}
	n := binary.BigEndian.Uint32(d.rest)
	d.rest = d.rest[4:]
	return n
}

func (d *decoder) bytes() []byte {
	n := d.number()
	if d.bad || uint64(n) > uint64(len(d.rest)) {
		d.bad = true
		return nil
	}
	b := d.rest[:n:n]
	d.rest = d.rest[n:]
	return b
}

// encode writes the reply as the binary reads it.
func (r shimReply) encode(w io.Writer) error {
	for _, out := range [][]byte{r.stdout, r.stderr} {
		if len(out) > maxShimBody {
			return fmt.Errorf("reply of %d bytes, the limit is %d: %w", len(out), maxShimBody, errdefs.ErrResourceExhausted)
		}
	}
	buf := []byte(shimReplyMagic)
	buf = binary.BigEndian.AppendUint32(buf, r.code)
	for _, out := range [][]byte{r.stdout, r.stderr} {
		buf = binary.BigEndian.AppendUint32(buf, uint32(len(out)))
		buf = append(buf, out...)
	}
	_, err := w.Write(buf)
	return err
}
