package keeper

import (
	"encoding/binary"

	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/encoding/protowire"
)

// A frame of ttrpc: u32 length of what follows the head, u32 stream, u8 type, u8
// flags; big-endian.
const (
	frameHead    = 10
	maxFrame     = frameHead + 4<<20 // ttrpc's own limit
	typeRequest  = 1
	typeResponse = 2
)

type head struct {
	payload, stream uint32
	typ             byte
}

func parseHead(b []byte) head {
	return head{binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:]), b[8]}
}

// length of the whole frame; a large number for one that is too long.
func (h head) length() uint32 {
	if h.payload > maxFrame-frameHead {
		return maxFrame + 1
	}
	return h.payload + frameHead
}

// metadataKey is where a request gets its ID, for those who handle it.
const metadataKey = "caisson-request"

// Numbers of fields in ttrpc's messages Request and KeyValue.
const (
	fieldMetadata = 5
	fieldKey      = 1
	fieldValue    = 2
)

// withID adds metadata to a request frame, after what the client put there:
// fields of a message may be in any place.
func withID(frame []byte, id string) []byte {
	var pair []byte
	pair = protowire.AppendTag(pair, fieldKey, protowire.BytesType)
	pair = protowire.AppendString(pair, metadataKey)
	pair = protowire.AppendTag(pair, fieldValue, protowire.BytesType)
	pair = protowire.AppendString(pair, id)
	out := make([]byte, len(frame), len(frame)+len(pair)+8)
	copy(out, frame)
	out = protowire.AppendTag(out, fieldMetadata, protowire.BytesType)
	out = protowire.AppendBytes(out, pair)
	if len(out) > maxFrame {
		return frame // it will be served, and not known if it comes again
	}
	binary.BigEndian.PutUint32(out, uint32(len(out)-frameHead))
	return out
}

// idOf is the ID that withID gave a request: the last one, since a client could
// have put one there too.
func idOf(md ttrpc.MD) string {
	values, _ := md.Get(metadataKey)
	if len(values) == 0 {
		return ""
	}
	return values[len(values)-1]
}
