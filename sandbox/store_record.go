package sandbox

import (
	"fmt"
	"maps"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/containerd/containerd/api/types"
	core "github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/containerd/v2/pkg/filters"
	"github.com/containerd/containerd/v2/pkg/identifiers"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	bolt "go.etcd.io/bbolt"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// The schema of the file. A change that older daemons would misread needs a
// new version, and a migration that brings old files up to it.
//
//	schema
//	└── version : "1"                    decimal
//	v1
//	└── *namespace*                      there while it has sandboxes
//	    └── sandboxes
//	        └── *sandbox id* : record    containerd.types.Sandbox, protobuf
//
// testdata/store.golden shows it with one record.
var (
	storeKeySchema    = []byte("schema")
	storeKeyVersion   = []byte("version")
	storeKeyRecords   = []byte("v1")
	storeKeySandboxes = []byte("sandboxes")
)

// storeMigrations lead to the schema of this daemon: the first one from version 1 to
// 2, and so on.
var storeMigrations []func(*bolt.Tx) error

// storeCheckSchema brings a file up to the schema that the last of the migrations
// leads to, all in one transaction, and refuses those of a newer one. A new file
// begins at version 1, too.
func storeCheckSchema(tx *bolt.Tx, steps []func(*bolt.Tx) error) error {
	schema, err := tx.CreateBucketIfNotExists(storeKeySchema)
	if err != nil {
		return err
	}
	if _, err = tx.CreateBucketIfNotExists(storeKeyRecords); err != nil {
		return err
	}
	version, known := 1, 1+len(steps)
	if v := schema.Get(storeKeyVersion); v != nil {
		if version, err = strconv.Atoi(string(v)); err != nil || version < 1 {
			return fmt.Errorf("schema version %q is not a number: %w", v, errdefs.ErrDataLoss)
		}
	}
	if version > known {
		return fmt.Errorf("the file has schema version %d, this caissond knows up to %d: run the newer caissond that wrote it, or move the file away to start without its sandboxes: %w",
			version, known, errdefs.ErrFailedPrecondition)
	}
	for _, step := range steps[version-1:] {
		if err := step(tx); err != nil {
			return fmt.Errorf("from schema version %d to %d: %w", version, version+1, err)
		}
		version++
	}
	return schema.Put(storeKeyVersion, fmt.Append(nil, version))
}

// storeRecords is the bucket of a namespace's records; without one it is
// empty.
type storeRecords struct{ b *bolt.Bucket }

func storeBucket(tx *bolt.Tx, namespace string) storeRecords {
	ns := tx.Bucket(storeKeyRecords).Bucket([]byte(namespace))
	if ns == nil {
		return storeRecords{}
	}
	return storeRecords{ns.Bucket(storeKeySandboxes)}
}

// Get returns a record that is valid during the transaction, or nil.
func (r storeRecords) Get(id []byte) []byte {
	if r.b == nil || len(id) == 0 {
		return nil
	}
	return r.b.Get(id)
}

func (r storeRecords) forEach(fn func(id string, record []byte) error) error {
	if r.b == nil {
		return nil
	}
	return r.b.ForEach(func(k, v []byte) error { return fn(string(k), v) })
}

func storeMakeBucket(tx *bolt.Tx, namespace string) (*bolt.Bucket, error) {
	ns, err := tx.Bucket(storeKeyRecords).CreateBucketIfNotExists([]byte(namespace))
	if err != nil {
		return nil, err
	}
	return ns.CreateBucketIfNotExists(storeKeySandboxes)
}

func storeGet(bucket storeRecords, id string) (core.Sandbox, error) {
	record := bucket.Get([]byte(id))
	if record == nil {
		return core.Sandbox{}, errdefs.ErrNotFound
	}
	return storeDecode(id, record)
}

// storeCleaned gives the record in its one form, without sharing maps with the
// caller: labels without a value and extensions without content are absent.
func storeCleaned(sb core.Sandbox) core.Sandbox {
	sb.Labels = maps.Clone(sb.Labels)
	maps.DeleteFunc(sb.Labels, func(_, v string) bool { return v == "" })
	sb.Extensions = maps.Clone(sb.Extensions)
	maps.DeleteFunc(sb.Extensions, func(_ string, v typeurl.Any) bool { return typeurl.MarshalProto(v) == nil })
	return sb
}

// storeValidate checks what a client may set. Valid identifiers are safe as
// names of files: they have no slash, and no two dots in a row.
func storeValidate(sb *core.Sandbox) error {
	if err := identifiers.Validate(sb.ID); err != nil {
		return fmt.Errorf("ID: %w", err)
	}
	if sb.Runtime.Name == "" {
		return fmt.Errorf("runtime name is empty: %w", errdefs.ErrInvalidArgument)
	}
	for k, v := range sb.Labels {
		if k == "" {
			return fmt.Errorf("label without a key: %w", errdefs.ErrInvalidArgument)
		}
		if err := labels.Validate(k, v); err != nil {
			return err
		}
		if !utf8.ValidString(k) || !utf8.ValidString(v) {
			return fmt.Errorf("label %q is not UTF-8: %w", k, errdefs.ErrInvalidArgument)
		}
	}
	for name := range sb.Extensions {
		if name == "" || !utf8.ValidString(name) {
			return fmt.Errorf("extension name %q is empty or not UTF-8: %w", name, errdefs.ErrInvalidArgument)
		}
	}
	if !utf8.ValidString(sb.Runtime.Name) || !utf8.ValidString(sb.Sandboxer) {
		return fmt.Errorf("runtime %q or sandboxer %q is not UTF-8: %w", sb.Runtime.Name, sb.Sandboxer, errdefs.ErrInvalidArgument)
	}
	return nil
}

// storeEncode gives the same bytes for the same record.
func storeEncode(sb *core.Sandbox) ([]byte, error) {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(core.ToProto(sb))
	if err != nil {
		return nil, fmt.Errorf("encode: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return b, nil
}

// storeDecode reads a record, which shares no memory with the result. It does
// not use containerd's FromProto, which needs every field to be there.
func storeDecode(id string, record []byte) (core.Sandbox, error) {
	var pb types.Sandbox
	if err := proto.Unmarshal(record, &pb); err != nil {
		return core.Sandbox{}, fmt.Errorf("decode: %w: %w", err, errdefs.ErrDataLoss)
	}
	if pb.GetSandboxID() != id {
		return core.Sandbox{}, fmt.Errorf("decode: the record is of sandbox %q: %w", pb.GetSandboxID(), errdefs.ErrDataLoss)
	}
	if pb.GetRuntime().GetName() == "" || !pb.GetCreatedAt().IsValid() || !pb.GetUpdatedAt().IsValid() {
		return core.Sandbox{}, fmt.Errorf("decode: no runtime name or timestamps: %w", errdefs.ErrDataLoss)
	}
	sb := core.Sandbox{
		ID:         pb.GetSandboxID(),
		Labels:     pb.GetLabels(),
		Runtime:    core.RuntimeOpts{Name: pb.GetRuntime().GetName(), Options: storeAny(pb.GetRuntime().GetOptions())},
		Spec:       storeAny(pb.GetSpec()),
		Sandboxer:  pb.GetSandboxer(),
		CreatedAt:  pb.GetCreatedAt().AsTime(),
		UpdatedAt:  pb.GetUpdatedAt().AsTime(),
		Extensions: make(map[string]typeurl.Any, len(pb.GetExtensions())),
	}
	for name, ext := range pb.GetExtensions() {
		sb.Extensions[name] = ext
	}
	return sb, nil
}

// storeAny keeps a nil pointer from becoming an interface that is not nil.
func storeAny(a *anypb.Any) typeurl.Any {
	if a == nil {
		return nil
	}
	return a
}

// storeAdaptor shows a record to filters.
func storeAdaptor(sb *core.Sandbox) filters.Adaptor {
	return filters.AdapterFunc(func(path []string) (string, bool) {
		if len(path) == 0 {
			return "", false
		}
		switch path[0] {
		case "id":
			return sb.ID, true
		case "sandboxer":
			return sb.Sandboxer, sb.Sandboxer != ""
		case "runtime":
			if len(path) == 2 && path[1] == "name" {
				return sb.Runtime.Name, true
			}
		case "labels":
			v, ok := sb.Labels[strings.Join(path[1:], ".")]
			return v, ok
		}
		return "", false
	})
}
