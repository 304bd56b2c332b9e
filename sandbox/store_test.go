package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/metadata"
	core "github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	bolt "go.etcd.io/bbolt"
	"google.golang.org/protobuf/types/known/anypb"

	"caisson/internal/ceiling"
	"caisson/sandbox/storetest"
)

func openTestStore(t testing.TB) *Store {
	t.Helper()
	s, err := OpenStore(filepath.Join(t.TempDir(), "sandboxes.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestStoreContract(t *testing.T) {
	storetest.Run(t, func(t *testing.T) core.Store { return openTestStore(t) })
}

// TestStoreContractOfContainerd runs the same suite on the reference.
func TestStoreContractOfContainerd(t *testing.T) {
	storetest.Run(t, func(t *testing.T) core.Store {
		db, err := bolt.Open(filepath.Join(t.TempDir(), "meta.db"), 0o600, nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := db.Close(); err != nil {
				t.Error(err)
			}
		})
		mdb := metadata.NewDB(db, nil, nil)
		if err := mdb.Init(t.Context()); err != nil {
			t.Fatal(err)
		}
		return metadata.NewSandboxStore(mdb)
	})
}

func storeContext(t testing.TB) context.Context {
	return namespaces.WithNamespace(t.Context(), "testing")
}

// TestStoreIsStricter has what containerd's store allows or forgets.
func TestStoreIsStricter(t *testing.T) {
	s, ctx := openTestStore(t), storeContext(t)
	for name, change := range map[string]func(*core.Sandbox){
		"no runtime":         func(sb *core.Sandbox) { sb.Runtime.Name = "" },
		"huge label":         func(sb *core.Sandbox) { sb.Labels["big"] = strings.Repeat("x", 5000) },
		"label without key":  func(sb *core.Sandbox) { sb.Labels[""] = "x" },
		"label not UTF-8":    func(sb *core.Sandbox) { sb.Labels["x"] = "\xff" },
		"nameless extension": func(sb *core.Sandbox) { sb.Extensions[""] = sb.Spec },
		"runtime not UTF-8":  func(sb *core.Sandbox) { sb.Runtime.Name = "\xff" },
		"type not UTF-8":     func(sb *core.Sandbox) { sb.Spec = &anypb.Any{TypeUrl: "\xff"} },
	} {
		sb := storetest.Filled("a")
		change(&sb)
		if _, err := s.Create(ctx, sb); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := s.Create(ctx, storetest.Filled("a")); err != nil {
		t.Fatal(err)
	}
	other := storetest.Filled("a")
	other.Runtime.Name = "another"
	if _, err := s.Update(ctx, other, "runtime"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("change of the runtime's name by path: %v", err)
	}
	big := core.Sandbox{ID: "a", Labels: map[string]string{"big": strings.Repeat("x", 5000)}}
	if _, err := s.Update(ctx, big, "labels.big"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("huge label by path: %v", err)
	}
	for _, paths := range [][]string{{"extensions.metadata"}, {"extensions", "spec"}} {
		if _, err := s.Update(ctx, core.Sandbox{ID: "a"}, paths...); err != nil {
			t.Fatal(err)
		}
		got, err := s.Get(ctx, "a")
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := got.Extensions["metadata"]; ok {
			t.Errorf("%q did not remove the extension", paths)
		}
		if paths[0] == "extensions" && (len(got.Extensions) > 0 || got.Spec != nil) {
			t.Errorf("%q left %v, %v", paths, got.Extensions, got.Spec)
		}
	}
}

func TestStoreFilterFields(t *testing.T) {
	s, ctx := openTestStore(t), storeContext(t)
	if _, err := s.Create(ctx, storetest.Filled("a")); err != nil {
		t.Fatal(err)
	}
	for filter, want := range map[string]int{
		"sandboxer==caisson": 1, "sandboxer==x": 0, "runtime.name==io.containerd.test.v1": 1, "runtime.name==x": 0, "runtime==x": 0,
	} {
		if list, err := s.List(ctx, filter); err != nil || len(list) != want {
			t.Errorf("%s: %d records, %v", filter, len(list), err)
		}
	}
}

func TestStoreSurvivesReopen(t *testing.T) {
	path, ctx := filepath.Join(t.TempDir(), "s.db"), storeContext(t)
	s, err := OpenStore(path)
	if err != nil {
		t.Fatal(err)
	}
	want, err := s.Create(ctx, storetest.Filled("a"))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Create(ctx, storetest.Filled("b")); !errdefs.IsUnavailable(err) {
		t.Errorf("create in a closed store: %v", err)
	}
	if s, err = OpenStore(path); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	got, err := s.Get(ctx, "a")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, storetest.Equal()); diff != "" {
		t.Error(diff)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

func TestStoreOpenErrors(t *testing.T) {
	dir := t.TempDir()
	held := filepath.Join(dir, "held.db")
	s, err := OpenStore(held)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	garbage := filepath.Join(dir, "garbage.db")
	if err := os.WriteFile(garbage, bytes.Repeat([]byte("no database "), 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	newer := filepath.Join(dir, "newer.db")
	writeRaw(t, newer, "schema", "version", "2")
	strange := filepath.Join(dir, "strange.db")
	writeRaw(t, strange, "schema", "version", "one")
	for path, is := range map[string]func(error) bool{
		held: errdefs.IsUnavailable, garbage: errdefs.IsDataLoss, newer: errdefs.IsFailedPrecondition, strange: errdefs.IsDataLoss,
		filepath.Join(dir, "no", "dir.db"): errdefs.IsNotFound,
	} {
		_, err := OpenStore(path, WithLockTimeout(50*time.Millisecond))
		if !is(err) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", path, err)
		}
	}
	// Refusing does not touch the file.
	if got := readRaw(t, newer, "schema", "version"); got != "2" {
		t.Errorf("version became %q", got)
	}
	if _, err := OpenStore(filepath.Join(dir, "x.db"), WithLockTimeout(0)); !errdefs.IsInvalidArgument(err) {
		t.Errorf("no timeout: %v", err)
	}
}

// TestStoreMigrations takes a file through made-up schemas: there is no real one yet.
func TestStoreMigrations(t *testing.T) {
	path := filepath.Join(t.TempDir(), "old.db")
	writeRaw(t, path, "schema", "version", "1")
	writeRaw(t, path, "v1", "key", "value")
	db, err := bolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	failure := errors.New("no room")
	var fails error
	steps := []func(*bolt.Tx) error{
		func(tx *bolt.Tx) error { return tx.Bucket([]byte("v1")).Put([]byte("key"), []byte("second")) },
		func(tx *bolt.Tx) error {
			b := tx.Bucket([]byte("v1"))
			return errors.Join(fails, b.Put([]byte("key"), append(b.Get([]byte("key")), " third"...)))
		},
	}
	expect := func(version, value string) {
		t.Helper()
		err := db.View(func(tx *bolt.Tx) error {
			if v := tx.Bucket([]byte("schema")).Get([]byte("version")); string(v) != version {
				t.Errorf("version %s, want %s", v, version)
			}
			if v := tx.Bucket([]byte("v1")).Get([]byte("key")); string(v) != value {
				t.Errorf("value %q, want %q", v, value)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	migrate := func(tx *bolt.Tx) error { return storeCheckSchema(tx, steps) }
	fails = failure
	if err := db.Update(migrate); !errors.Is(err, failure) {
		t.Errorf("a step that fails: %v", err)
	}
	expect("1", "value")
	fails = nil
	for range 2 {
		if err := db.Update(migrate); err != nil {
			t.Fatal(err)
		}
		expect("3", "second third")
	}
	steps = steps[:1]
	if err := db.Update(migrate); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("by an earlier daemon: %v", err)
	}
	expect("3", "second third")
}

func writeRaw(t *testing.T, path string, keys ...string) {
	t.Helper()
	db, err := bolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	err = db.Update(func(tx *bolt.Tx) error {
		b, err := tx.CreateBucketIfNotExists([]byte(keys[0]))
		for _, k := range keys[1 : len(keys)-2] {
			if err == nil {
				b, err = b.CreateBucketIfNotExists([]byte(k))
			}
		}
		if err != nil {
			return err
		}
		return b.Put([]byte(keys[len(keys)-2]), []byte(keys[len(keys)-1]))
	})
	if err != nil {
		t.Fatal(err)
	}
}

func readRaw(t *testing.T, path, bucket, key string) (value string) {
	t.Helper()
	db, err := bolt.Open(path, 0o600, &bolt.Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	err = db.View(func(tx *bolt.Tx) error {
		value = string(tx.Bucket([]byte(bucket)).Get([]byte(key)))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return value
}

func TestStoreForEach(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.db")
	// A record that is none, and one under another's name.
	writeRaw(t, path, "v1", "bad", "sandboxes", "broken", "\xff\xff")
	other, err := storeEncode(&core.Sandbox{ID: "a", Runtime: core.RuntimeOpts{Name: "r"}})
	if err != nil {
		t.Fatal(err)
	}
	writeRaw(t, path, "v1", "bad", "sandboxes", "swapped", string(other))
	s, err := OpenStore(path)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, ns := range []string{"one", "two"} {
		for _, id := range []string{"a", "b"} {
			if _, err := s.Create(namespaces.WithNamespace(t.Context(), ns), storetest.Filled(id)); err != nil {
				t.Fatal(err)
			}
		}
	}
	var got []string
	err = s.ForEach(t.Context(), func(ns string, sb core.Sandbox) error {
		got = append(got, ns+"/"+sb.ID)
		// The store may be used meanwhile.
		return s.Delete(namespaces.WithNamespace(t.Context(), ns), sb.ID)
	})
	if !errdefs.IsDataLoss(err) || !strings.Contains(err.Error(), "broken") || !strings.Contains(err.Error(), "swapped") {
		t.Errorf("error %v", err)
	}
	if diff := cmp.Diff([]string{"one/a", "one/b", "two/a", "two/b"}, got); diff != "" {
		t.Error(diff)
	}
	bad := namespaces.WithNamespace(t.Context(), "bad")
	if _, err := s.List(bad); !errdefs.IsDataLoss(err) {
		t.Errorf("list with a broken record: %v", err)
	}
	for _, id := range []string{"broken", "swapped"} {
		if err := s.Delete(bad, id); err != nil {
			t.Error(err)
		}
	}
	if err := s.ForEach(t.Context(), func(ns string, sb core.Sandbox) error { return errors.New("not called") }); err != nil {
		t.Error(err)
	}
	err = s.db.View(func(tx *bolt.Tx) error {
		return tx.Bucket(storeKeyRecords).ForEach(func(ns, _ []byte) error {
			t.Errorf("namespace %q is left", ns)
			return nil
		})
	})
	if err != nil {
		t.Error(err)
	}
}

func TestStoreForEachStops(t *testing.T) {
	s, ctx := openTestStore(t), storeContext(t)
	for _, id := range []string{"a", "b"} {
		if _, err := s.Create(ctx, storetest.Filled(id)); err != nil {
			t.Fatal(err)
		}
	}
	stop, calls := errors.New("stop"), 0
	err := s.ForEach(ctx, func(string, core.Sandbox) error { calls++; return stop })
	if !errors.Is(err, stop) || calls != 1 {
		t.Errorf("%d calls, %v", calls, err)
	}
}

// TestStoreReadsDoNotWait reads while a writer sits on its transaction.
func TestStoreReadsDoNotWait(t *testing.T) {
	s, ctx := openTestStore(t), storeContext(t)
	if _, err := s.Create(ctx, storetest.Filled("a")); err != nil {
		t.Fatal(err)
	}
	writing, release := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		_ = s.writer.do(ctx, func(tx *bolt.Tx) error {
			close(writing)
			<-release
			return errdefs.ErrAborted
		})
	})
	<-writing
	if _, err := s.Get(ctx, "a"); err != nil {
		t.Error(err)
	}
	if list, err := s.List(ctx); err != nil || len(list) != 1 {
		t.Error(list, err)
	}
	close(release)
	wg.Wait()
}

// TestStoreSharesCommits queues writers behind one and counts commits. A write
// that fails in the middle must not harm the others of its batch.
func TestStoreSharesCommits(t *testing.T) {
	for name, faulty := range map[string]bool{"all well": false, "one fails": true} {
		t.Run(name, func(t *testing.T) {
			s, ctx := openTestStore(t), storeContext(t)
			before := storeCommits(t, s)
			writing, release := make(chan struct{}), make(chan struct{})
			var wg sync.WaitGroup
			wg.Go(func() {
				err := s.writer.do(ctx, func(tx *bolt.Tx) error {
					close(writing)
					<-release
					return nil
				})
				if err != nil {
					t.Error(err)
				}
			})
			<-writing
			want := 50
			for i := range want {
				wg.Go(func() {
					if _, err := s.Create(ctx, storetest.Filled(fmt.Sprint("s", i))); err != nil {
						t.Error(err)
					}
				})
			}
			queue := want
			if faulty {
				queue++
				fault := storeFault{errors.New("disk on fire")}
				wg.Go(func() {
					if err := s.writer.do(ctx, func(*bolt.Tx) error { return fault }); !errors.Is(err, fault.error) {
						t.Errorf("faulty write: %v", err)
					}
				})
			}
			for queued := 0; queued < queue; {
				s.writer.mu.Lock()
				queued = len(s.writer.queue)
				s.writer.mu.Unlock()
			}
			close(release)
			wg.Wait()
			if list, err := s.List(ctx); err != nil || len(list) != want {
				t.Errorf("%d records, %v", len(list), err)
			}
			if n := storeCommits(t, s) - before; !faulty && n != 2 {
				t.Errorf("%d commits for one writer and %d behind it", n, want)
			}
			if s.writer.busy || len(s.writer.queue) != 0 {
				t.Errorf("busy %v with %d queued", s.writer.busy, len(s.writer.queue))
			}
		})
	}
}

// storeCommits counts the transactions that were committed.
func storeCommits(t *testing.T, s *Store) (n int) {
	t.Helper()
	if err := s.db.View(func(tx *bolt.Tx) error { n = tx.ID(); return nil }); err != nil {
		t.Fatal(err)
	}
	return n
}

func BenchmarkStoreUpdate(b *testing.B) {
	for _, writers := range []int{1, 32} {
		b.Run(fmt.Sprint(writers), func(b *testing.B) {
			s, ctx := openTestStore(b), storeContext(b)
			for w := range writers {
				if _, err := s.Create(ctx, storetest.Filled(fmt.Sprint("w", w))); err != nil {
					b.Fatal(err)
				}
			}
			b.ResetTimer()
			defer ceiling.Allocs(b, 400)()
			var wg sync.WaitGroup
			for w := range writers {
				wg.Go(func() {
					for range b.N / writers {
						if _, err := s.Update(ctx, storetest.Filled(fmt.Sprint("w", w)), "labels"); err != nil {
							b.Error(err)
						}
					}
				})
			}
			wg.Wait()
		})
	}
}

func BenchmarkStoreGet(b *testing.B) {
	s, ctx := openTestStore(b), storeContext(b)
	if _, err := s.Create(ctx, storetest.Filled("a")); err != nil {
		b.Fatal(err)
	}
	defer ceiling.Allocs(b, 100)()
	for b.Loop() {
		if _, err := s.Get(ctx, "a"); err != nil {
			b.Fatal(err)
		}
	}
}
