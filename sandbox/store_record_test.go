package sandbox

import (
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/google/go-cmp/cmp"
	bolt "go.etcd.io/bbolt"

	"caisson/sandbox/storetest"
)

var updateGolden = flag.Bool("update", false, "rewrite testdata/*.golden")

// TestStoreGolden compares the whole file with the documented schema, and
// reads a record that an earlier build wrote.
func TestStoreGolden(t *testing.T) {
	s, ctx := openTestStore(t), storeContext(t)
	s.now = func() time.Time { return time.Date(2026, 8, 1, 12, 30, 0, 123456789, time.FixedZone("CEST", 7200)) }
	created, err := s.Create(ctx, storetest.Filled("a1"))
	if err != nil {
		t.Fatal(err)
	}
	var dump strings.Builder
	var walk func(b *bolt.Bucket, indent string) error
	walk = func(b *bolt.Bucket, indent string) error {
		return b.ForEach(func(k, v []byte) error {
			if v == nil {
				fmt.Fprintf(&dump, "%s%s/\n", indent, k)
				return walk(b.Bucket(k), indent+"  ")
			}
			fmt.Fprintf(&dump, "%s%s = %s\n", indent, k, hex.EncodeToString(v))
			return nil
		})
	}
	err = s.db.View(func(tx *bolt.Tx) error {
		return tx.ForEach(func(name []byte, b *bolt.Bucket) error {
			fmt.Fprintf(&dump, "%s/\n", name)
			return walk(b, "  ")
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	golden := filepath.Join("testdata", "store.golden")
	if *updateGolden {
		if err := os.WriteFile(golden, []byte(dump.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), dump.String()); diff != "" {
		t.Errorf("the schema changed; write code for files of the old one before -update (-golden +got):\n%s", diff)
	}
	_, record, _ := strings.Cut(string(want), "a1 = ")
	raw, err := hex.DecodeString(strings.TrimSpace(strings.SplitN(record, "\n", 2)[0]))
	if err != nil {
		t.Fatal(err)
	}
	old, err := storeDecode("a1", raw)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(created, old, storetest.Equal()); diff != "" {
		t.Error(diff)
	}
}

// FuzzStoreDecode feeds records that no daemon wrote. What is accepted must
// survive being written and read again.
func FuzzStoreDecode(f *testing.F) {
	sb := storetest.Filled("a")
	sb.CreatedAt, sb.UpdatedAt = time.Unix(1, 2).UTC(), time.Unix(3, 4).UTC()
	good, err := storeEncode(&sb)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:len(good)/2])
	f.Add([]byte{})
	f.Add([]byte("\x0a\x01a\x12\x00"))
	f.Fuzz(func(t *testing.T, record []byte) {
		got, err := storeDecode("a", record)
		if err != nil {
			if !errdefs.IsDataLoss(err) {
				t.Errorf("class of %v", err)
			}
			return
		}
		for name, ext := range got.Extensions {
			if typeurl.MarshalProto(ext) == nil {
				t.Errorf("extension %q is nil", name)
			}
		}
		b, err := storeEncode(&got)
		if err != nil {
			t.Fatal(err)
		}
		again, err := storeDecode("a", b)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(got, again, storetest.Equal()); diff != "" {
			t.Error(diff)
		}
	})
}
