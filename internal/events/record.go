package events

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/encoding/protowire"
)

// The journal file: magic, then records. A record is
//
//	uint32  length of the message in bytes, little endian, 1 to maxRecord
//	uint32  CRC-32C of length and message
//	message in protobuf encoding:
//
//	message Record {
//	  uint64 seq = 1;      // of an event: 1, 2, 3 … in the order of publication
//	  string key = 2;      // of an event, or alone: the key of an event that was sent
//	  bytes envelope = 3;  // of an event: containerd.types.Envelope
//	  uint64 sent_to = 4;  // alone: every event up to this seq was sent
//	}
//
// Fields that a reader does not know are ignored; a change that this does not cover gets
// another magic.
const (
	magic = "csnevt1\n"

	recordHeader = 8
	// maxRecord leaves room below ttrpc's limit of 4 MiB for a frame. A task event has a
	// few hundred bytes.
	maxRecord = 1 << 20

	fieldSeq      = 1
	fieldKey      = 2
	fieldEnvelope = 3
	fieldSentTo   = 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// errTorn marks the end of the intact part of a journal.
var errTorn = errors.New("record is torn")

type record struct {
	seq      uint64
	key      string
	envelope []byte
	sentTo   uint64
}

func (r record) encode() ([]byte, error) {
	b := r.appendTo(nil)
	if n := len(b) - recordHeader; n > maxRecord {
		return nil, fmt.Errorf("record of %d bytes, limit %d: %w", n, maxRecord, errdefs.ErrResourceExhausted)
	}
	return b, nil
}

func (r record) appendTo(b []byte) []byte {
	start := len(b)
	b = append(b, make([]byte, recordHeader)...)
	if r.seq > 0 {
		b = protowire.AppendTag(b, fieldSeq, protowire.VarintType)
		b = protowire.AppendVarint(b, r.seq)
	}
	if r.key != "" {
		b = protowire.AppendTag(b, fieldKey, protowire.BytesType)
		b = protowire.AppendString(b, r.key)
	}
	if len(r.envelope) > 0 {
		b = protowire.AppendTag(b, fieldEnvelope, protowire.BytesType)
		b = protowire.AppendBytes(b, r.envelope)
	}
	if r.sentTo > 0 {
		b = protowire.AppendTag(b, fieldSentTo, protowire.VarintType)
		b = protowire.AppendVarint(b, r.sentTo)
	}
	length := b[start : start+4]
	binary.LittleEndian.PutUint32(length, uint32(len(b)-start-recordHeader))
	binary.LittleEndian.PutUint32(b[start+4:], checksum(length, b[start+recordHeader:]))
	return b
}

func checksum(length, message []byte) uint32 {
	return crc32.Update(crc32.Checksum(length, castagnoli), castagnoli, message)
}

// readJournal calls add for each record and returns the length of the intact part: up to
// the first record that is cut off or damaged. An error means that the file is no journal
// or cannot be read, and must then not be changed.
func readJournal(r io.Reader, add func(record)) (int64, error) {
	br := bufio.NewReader(r)
	head := make([]byte, len(magic))
	if _, err := io.ReadFull(br, head); err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
		return 0, err
	}
	if string(head) != magic {
		return 0, fmt.Errorf("unknown format, starts with %q; made by a newer daemon? %w", head, errdefs.ErrFailedPrecondition)
	}
	intact := int64(len(magic))
	for {
		rec, n, err := readRecord(br)
		if err == io.EOF || errors.Is(err, errTorn) {
			return intact, nil
		}
		if err != nil {
			return 0, err
		}
		intact += n
		add(rec)
	}
}

// readRecord returns the next record and the bytes it takes, io.EOF at the clean end,
// errTorn when what follows is no whole record.
func readRecord(r io.Reader) (record, int64, error) {
	var head [recordHeader]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return record{}, 0, tornIfShort(err)
	}
	n := binary.LittleEndian.Uint32(head[:4])
	if n == 0 || n > maxRecord {
		return record{}, 0, fmt.Errorf("length %d: %w", n, errTorn)
	}
	message := make([]byte, n)
	if _, err := io.ReadFull(r, message); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF // the header was there
		}
		return record{}, 0, tornIfShort(err)
	}
	if checksum(head[:4], message) != binary.LittleEndian.Uint32(head[4:]) {
		return record{}, 0, fmt.Errorf("checksum: %w", errTorn)
	}
	rec, err := decodeMessage(message)
	return rec, int64(recordHeader) + int64(n), err
}

func tornIfShort(err error) error {
	if err == io.ErrUnexpectedEOF {
		return errTorn
	}
	return err
}

func decodeMessage(b []byte) (record, error) {
	var r record
	for len(b) > 0 {
		field, wire, n := protowire.ConsumeTag(b)
		if n < 0 {
			return record{}, fmt.Errorf("tag: %w", errTorn)
		}
		b = b[n:]
		switch {
		case field == fieldSeq && wire == protowire.VarintType:
			r.seq, n = protowire.ConsumeVarint(b)
		case field == fieldKey && wire == protowire.BytesType:
			r.key, n = protowire.ConsumeString(b)
		case field == fieldEnvelope && wire == protowire.BytesType:
			r.envelope, n = protowire.ConsumeBytes(b)
		case field == fieldSentTo && wire == protowire.VarintType:
			r.sentTo, n = protowire.ConsumeVarint(b)
		default:
			n = protowire.ConsumeFieldValue(field, wire, b)
		}
		if n < 0 {
			return record{}, fmt.Errorf("field %d: %w", field, errTorn)
		}
		b = b[n:]
	}
	if len(r.envelope) > 0 && r.seq == 0 {
		return record{}, fmt.Errorf("event without number: %w", errTorn)
	}
	return r, nil
}
