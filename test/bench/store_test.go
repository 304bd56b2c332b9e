package bench

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/metadata/boltutil"
	core "github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	bolt "go.etcd.io/bbolt"

	"caisson/sandbox"
	"caisson/test/harness"
)

// batch calls a function with a context for making many records, so many at a time.
type batch func(func(ctx context.Context, atOnce int) error) error

// benchStore compares the store with containerd's own, both on the same disk.
func benchStore(t *testing.T, r *recorder) {
	for _, size := range []int{100, 10_000, 100_000} {
		for _, s := range []struct {
			name string
			open func(*testing.T) (core.Store, batch)
		}{{"containerd's store", containerdStore}, {"caisson's store", ourStore}} {
			store, batch := s.open(t)
			measureStore(t, r, s.name, store, batch, size)
		}
	}
}

// ourStore needs no help to make many records: those who write share the commits.
func ourStore(t *testing.T) (core.Store, batch) {
	s, err := sandbox.OpenStore(filepath.Join(t.TempDir(), "sandboxes.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() }) // it goes with its directory
	return s, func(f func(context.Context, int) error) error { return f(t.Context(), 256) }
}

// containerdStore is filled in one transaction: each record alone takes a commit.
func containerdStore(t *testing.T) (core.Store, batch) {
	db, err := bolt.Open(filepath.Join(t.TempDir(), "meta.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() }) // it goes with its directory
	mdb := metadata.NewDB(db, nil, nil)
	if err := mdb.Init(t.Context()); err != nil {
		t.Fatal(err)
	}
	return metadata.NewSandboxStore(mdb), func(f func(context.Context, int) error) error {
		return mdb.Update(func(tx *bolt.Tx) error { return f(boltutil.WithTransaction(t.Context(), tx), 1) })
	}
}

func measureStore(t *testing.T, r *recorder, side string, s core.Store, batch batch, size int) {
	ctx := namespaces.WithNamespace(t.Context(), "bench")
	record := func(id string) core.Sandbox {
		return core.Sandbox{ID: id, Runtime: core.RuntimeOpts{Name: harness.Runtime}, Labels: map[string]string{"name": id, "app": "bench"}}
	}
	create := func(ctx context.Context, id string) {
		if _, err := s.Create(namespaces.WithNamespace(ctx, "bench"), record(id)); err != nil {
			t.Errorf("%s: create: %v", side, err)
		}
	}
	err := batch(func(ctx context.Context, atOnce int) error {
		inParallel(size, atOnce, func(i int) { create(ctx, fmt.Sprintf("r%d", i)) })
		return nil
	})
	if err != nil {
		t.Fatalf("%s: %v", side, err)
	}
	what := fmt.Sprintf("store with %d records", size)
	for _, writers := range []int{1, 32} {
		n := 64 * writers
		begin := time.Now()
		inParallel(n, writers, func(i int) { create(ctx, fmt.Sprintf("w%d-%d", writers, i)) })
		r.add(what, fmt.Sprintf("Create, %d writers", writers), "per s", side, float64(n)/time.Since(begin).Seconds())
		begin = time.Now()
		inParallel(n, writers, func(i int) {
			rec := record(fmt.Sprintf("w%d-%d", writers, i))
			rec.Labels["app"] = "changed"
			if _, err := s.Update(ctx, rec, "labels.app"); err != nil {
				t.Errorf("%s: update: %v", side, err)
			}
		})
		r.add(what, fmt.Sprintf("Update, %d writers", writers), "per s", side, float64(n)/time.Since(begin).Seconds())
	}
	var once sync.Once
	for i := range 200 {
		begin := time.Now()
		if _, err := s.Get(ctx, fmt.Sprintf("r%d", i*7919%size)); err != nil {
			once.Do(func() { t.Errorf("%s: get: %v", side, err) })
		}
		r.add(what, "Get", "µs", side, float64(time.Since(begin).Nanoseconds())/1000)
	}
	for range 3 {
		begin := time.Now()
		list, err := s.List(ctx)
		if err != nil || len(list) < size {
			t.Errorf("%s: list: %d records, %v", side, len(list), err)
		}
		r.took(what, "List", side, begin)
	}
}
