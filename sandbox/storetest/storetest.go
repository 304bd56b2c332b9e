// Package storetest holds what every implementation of containerd's
// sandbox.Store must do, as tests. It is run against Caisson's store and
// against containerd's own, which proves that the two behave alike.
package storetest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	core "github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/protobuf/types/known/anypb"
)

// Run tests the stores that open makes; each is empty and is closed by the
// test's clean-up.
func Run(t *testing.T, open func(t *testing.T) core.Store) {
	for name, test := range map[string]func(*testing.T, context.Context, core.Store){
		"Create":            testCreate,
		"CreateInvalid":     testCreateInvalid,
		"Missing":           testMissing,
		"NoNamespace":       testNoNamespace,
		"NamespaceIsolated": testNamespaces,
		"List":              testList,
		"Update":            testUpdate,
		"UpdateInvalid":     testUpdateInvalid,
		"Delete":            testDelete,
		"Unshared":          testUnshared,
		"Concurrent":        testConcurrent,
		"ConcurrentUpdates": testConcurrentUpdates,
	} {
		t.Run(name, func(t *testing.T) {
			test(t, namespaces.WithNamespace(t.Context(), "testing"), open(t))
		})
	}
}

// Equal compares records as a client sees them: Any by content, times by
// instant, and no difference between no map and an empty one.
func Equal() cmp.Option {
	return cmp.Options{
		cmpopts.EquateEmpty(),
		cmp.Transformer("Any", func(a typeurl.Any) any {
			if pb := typeurl.MarshalProto(a); pb != nil {
				return struct {
					TypeURL string
					Value   string
				}{pb.TypeUrl, string(pb.Value)}
			}
			return nil
		}),
	}
}

// Filled is a record in which every field that a client sets has a value.
func Filled(id string) core.Sandbox {
	return core.Sandbox{
		ID:     id,
		Labels: map[string]string{"one": "1", "io.example/two.three": "zwei"},
		Runtime: core.RuntimeOpts{
			Name:    "io.containerd.test.v1",
			Options: &anypb.Any{TypeUrl: "test/options", Value: []byte{1, 2, 3}},
		},
		Spec:      &anypb.Any{TypeUrl: "test/spec", Value: []byte(`{"a":1}`)},
		Sandboxer: "caisson",
		Extensions: map[string]typeurl.Any{
			"metadata": &anypb.Any{TypeUrl: "test/extension", Value: []byte{4}},
			"x.y":      &anypb.Any{TypeUrl: "test/other", Value: []byte{5}},
		},
	}
}

func must[T any](t *testing.T) func(T, error) T {
	t.Helper()
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func same(t *testing.T, what string, want, got core.Sandbox) {
	t.Helper()
	if diff := cmp.Diff(want, got, Equal()); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

func testCreate(t *testing.T, ctx context.Context, s core.Store) {
	before := time.Now().Add(-time.Millisecond)
	in := Filled("a")
	in.CreatedAt = time.Unix(1, 0) // is the store's to set
	created := must[core.Sandbox](t)(s.Create(ctx, in))
	if created.CreatedAt.Before(before) || created.CreatedAt.After(time.Now()) || !created.UpdatedAt.Equal(created.CreatedAt) {
		t.Errorf("created at %v, updated at %v", created.CreatedAt, created.UpdatedAt)
	}
	want := Filled("a")
	want.CreatedAt, want.UpdatedAt = created.CreatedAt, created.UpdatedAt
	same(t, "created", want, created)
	same(t, "read back", want, must[core.Sandbox](t)(s.Get(ctx, "a")))

	if _, err := s.Create(ctx, Filled("a")); !errdefs.IsAlreadyExists(err) {
		t.Errorf("create again: %v", err)
	}
	same(t, "after a second create", want, must[core.Sandbox](t)(s.Get(ctx, "a")))

	bare := core.Sandbox{ID: "bare", Runtime: core.RuntimeOpts{Name: "r"}, Labels: map[string]string{"empty": ""}}
	created = must[core.Sandbox](t)(s.Create(ctx, bare))
	got := must[core.Sandbox](t)(s.Get(ctx, "bare"))
	same(t, "bare", core.Sandbox{ID: "bare", Runtime: core.RuntimeOpts{Name: "r"}, CreatedAt: created.CreatedAt, UpdatedAt: created.UpdatedAt}, got)
	if typeurl.MarshalProto(got.Spec) != nil || typeurl.MarshalProto(got.Runtime.Options) != nil {
		t.Errorf("absent fields came back as %v, %v", got.Spec, got.Runtime.Options)
	}
}

var badIDs = []string{"", ".", "..", "a/b", "../a", "/a", "a..b", "a b", "a\x00", "-a", strings.Repeat("a", 77)}

func testCreateInvalid(t *testing.T, ctx context.Context, s core.Store) {
	for _, id := range badIDs {
		if _, err := s.Create(ctx, Filled(id)); !errdefs.IsInvalidArgument(err) {
			t.Errorf("create %q: %v", id, err)
		}
	}
	if list := must[[]core.Sandbox](t)(s.List(ctx)); len(list) != 0 {
		t.Errorf("%d records", len(list))
	}
}

func testMissing(t *testing.T, ctx context.Context, s core.Store) {
	check := func(when string) {
		for _, id := range append([]string{"missing"}, badIDs...) {
			if _, err := s.Get(ctx, id); !errdefs.IsNotFound(err) {
				t.Errorf("%s: get %q: %v", when, id, err)
			}
			if _, err := s.Update(ctx, Filled(id), "labels"); !errdefs.IsNotFound(err) {
				t.Errorf("%s: update %q: %v", when, id, err)
			}
			if err := s.Delete(ctx, id); !errdefs.IsNotFound(err) {
				t.Errorf("%s: delete %q: %v", when, id, err)
			}
		}
	}
	check("empty store")
	must[core.Sandbox](t)(s.Create(ctx, Filled("other")))
	check("store with another record")
}

func testNoNamespace(t *testing.T, _ context.Context, s core.Store) {
	ctx := t.Context()
	_, create := s.Create(ctx, Filled("a"))
	_, update := s.Update(ctx, Filled("a"))
	_, get := s.Get(ctx, "a")
	_, list := s.List(ctx)
	for verb, err := range map[string]error{"create": create, "update": update, "get": get, "list": list, "delete": s.Delete(ctx, "a")} {
		if !errdefs.IsFailedPrecondition(err) {
			t.Errorf("%s: %v", verb, err)
		}
	}
}

func testNamespaces(t *testing.T, one context.Context, s core.Store) {
	two := namespaces.WithNamespace(t.Context(), "second")
	must[core.Sandbox](t)(s.Create(one, Filled("a")))
	if _, err := s.Get(two, "a"); !errdefs.IsNotFound(err) {
		t.Errorf("get from the other namespace: %v", err)
	}
	other := Filled("a")
	other.Labels = map[string]string{"whose": "second"}
	must[core.Sandbox](t)(s.Create(two, other))
	if err := s.Delete(one, "a"); err != nil {
		t.Fatal(err)
	}
	if got := must[core.Sandbox](t)(s.Get(two, "a")); got.Labels["whose"] != "second" {
		t.Errorf("labels %v", got.Labels)
	}
	if list := must[[]core.Sandbox](t)(s.List(one)); len(list) != 0 {
		t.Errorf("%d records in the first namespace", len(list))
	}
}

func testList(t *testing.T, ctx context.Context, s core.Store) {
	if list := must[[]core.Sandbox](t)(s.List(ctx)); len(list) != 0 {
		t.Errorf("%d records in an empty store", len(list))
	}
	for i, id := range []string{"c", "a", "b"} {
		sb := Filled(id)
		sb.Labels["number"] = fmt.Sprint(i)
		sb.Labels["with.dots/and-slash"] = id
		must[core.Sandbox](t)(s.Create(ctx, sb))
	}
	for _, tt := range []struct {
		filters []string
		want    []string
	}{
		{nil, []string{"a", "b", "c"}},
		{[]string{""}, []string{"a", "b", "c"}},
		{[]string{"id==a"}, []string{"a"}},
		{[]string{"id==a", "id==c"}, []string{"a", "c"}},
		{[]string{"id~=[ab]"}, []string{"a", "b"}},
		{[]string{"id!=a"}, []string{"b", "c"}},
		{[]string{"labels.number==1"}, []string{"a"}},
		{[]string{"labels.one==1,labels.number!=1"}, []string{"b", "c"}},
		{[]string{`labels."with.dots/and-slash"==b`}, []string{"b"}},
		{[]string{"labels.one"}, []string{"a", "b", "c"}},
		{[]string{"labels.none"}, nil},
		{[]string{"nosuchfield==a"}, nil},
	} {
		var ids []string
		for _, sb := range must[[]core.Sandbox](t)(s.List(ctx, tt.filters...)) {
			ids = append(ids, sb.ID)
		}
		if diff := cmp.Diff(tt.want, ids); diff != "" {
			t.Errorf("%q (-want +got):\n%s", tt.filters, diff)
		}
	}
	want := must[core.Sandbox](t)(s.Get(ctx, "a"))
	same(t, "listed", want, must[[]core.Sandbox](t)(s.List(ctx, "id==a"))[0])
	if _, err := s.List(ctx, "id=="); !errdefs.IsInvalidArgument(err) {
		t.Errorf("broken filter: %v", err)
	}
}

func testUpdate(t *testing.T, ctx context.Context, s core.Store) {
	change := core.Sandbox{
		ID:        "a",
		Labels:    map[string]string{"one": "eins", "new": "n"},
		Runtime:   core.RuntimeOpts{Name: "io.containerd.test.v1", Options: &anypb.Any{TypeUrl: "test/new", Value: []byte{9}}},
		Spec:      &anypb.Any{TypeUrl: "test/spec2", Value: []byte("2")},
		Sandboxer: "another",
		Extensions: map[string]typeurl.Any{
			"metadata": &anypb.Any{TypeUrl: "test/new", Value: []byte{8}},
			"x.y":      &anypb.Any{TypeUrl: "test/other", Value: []byte{7}},
		},
	}
	for name, tt := range map[string]struct {
		paths []string
		apply func(*core.Sandbox)
	}{
		"labels":           {[]string{"labels"}, func(sb *core.Sandbox) { sb.Labels = change.Labels }},
		"one label":        {[]string{"labels.one"}, func(sb *core.Sandbox) { sb.Labels["one"] = "eins" }},
		"new label":        {[]string{"labels.new"}, func(sb *core.Sandbox) { sb.Labels["new"] = "n" }},
		"label to be gone": {[]string{"labels.io.example/two.three"}, func(sb *core.Sandbox) { delete(sb.Labels, "io.example/two.three") }},
		"extensions":       {[]string{"extensions"}, func(sb *core.Sandbox) { sb.Extensions = change.Extensions }},
		"one extension":    {[]string{"extensions.metadata"}, func(sb *core.Sandbox) { sb.Extensions["metadata"] = change.Extensions["metadata"] }},
		"dotted extension": {[]string{"extensions.x.y"}, func(sb *core.Sandbox) { sb.Extensions["x.y"] = change.Extensions["x.y"] }},
		"spec":             {[]string{"spec"}, func(sb *core.Sandbox) { sb.Spec = change.Spec }},
		"runtime":          {[]string{"runtime"}, func(sb *core.Sandbox) { sb.Runtime = change.Runtime }},
		"several":          {[]string{"labels.one", "spec"}, func(sb *core.Sandbox) { sb.Labels["one"], sb.Spec = "eins", change.Spec }},
		"all, by no path": {nil, func(sb *core.Sandbox) {
			sb.Labels, sb.Extensions, sb.Spec, sb.Runtime = change.Labels, change.Extensions, change.Spec, change.Runtime
		}},
		"nothing, by twice": {[]string{"labels.nope", "labels.nope"}, func(*core.Sandbox) {}},
	} {
		t.Run(name, func(t *testing.T) {
			created := must[core.Sandbox](t)(s.Create(ctx, Filled("a")))
			defer func() {
				if err := s.Delete(ctx, "a"); err != nil {
					t.Error(err)
				}
			}()
			want := Filled("a")
			tt.apply(&want)
			in := change
			in.Labels, in.Extensions = maps.Clone(change.Labels), maps.Clone(change.Extensions)
			got := must[core.Sandbox](t)(s.Update(ctx, in, tt.paths...))
			if !got.CreatedAt.Equal(created.CreatedAt) || !got.UpdatedAt.After(created.UpdatedAt) {
				t.Errorf("created %v, then %v; updated %v, then %v", created.CreatedAt, got.CreatedAt, created.UpdatedAt, got.UpdatedAt)
			}
			want.CreatedAt, want.UpdatedAt = got.CreatedAt, got.UpdatedAt
			same(t, "updated", want, got)
			same(t, "read back", want, must[core.Sandbox](t)(s.Get(ctx, "a")))
		})
	}
}

func testUpdateInvalid(t *testing.T, ctx context.Context, s core.Store) {
	want := must[core.Sandbox](t)(s.Create(ctx, Filled("a")))
	for _, paths := range [][]string{
		{"id"}, {"sandboxer"}, {"created_at"}, {"runtime.name"}, {"runtime.options"}, {""}, {"Labels"}, {"nonsense"},
		{"labels", "nonsense"}, // all or nothing
	} {
		change := Filled("a")
		change.Labels = map[string]string{"changed": "yes"}
		if _, err := s.Update(ctx, change, paths...); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", paths, err)
		}
	}
	change := Filled("a")
	change.Runtime.Name = "another"
	if _, err := s.Update(ctx, change); !errdefs.IsInvalidArgument(err) {
		t.Errorf("change of the runtime's name: %v", err)
	}
	same(t, "after refused updates", want, must[core.Sandbox](t)(s.Get(ctx, "a")))
}

func testDelete(t *testing.T, ctx context.Context, s core.Store) {
	must[core.Sandbox](t)(s.Create(ctx, Filled("a")))
	must[core.Sandbox](t)(s.Create(ctx, Filled("b")))
	if err := s.Delete(ctx, "a"); err != nil {
		t.Fatal(err)
	}
	if err := s.Delete(ctx, "a"); !errdefs.IsNotFound(err) {
		t.Errorf("delete again: %v", err)
	}
	if _, err := s.Get(ctx, "a"); !errdefs.IsNotFound(err) {
		t.Errorf("get: %v", err)
	}
	must[core.Sandbox](t)(s.Get(ctx, "b"))
	must[core.Sandbox](t)(s.Create(ctx, Filled("a"))) // the name is free again
}

// testUnshared changes what was handed in and what was handed out.
func testUnshared(t *testing.T, ctx context.Context, s core.Store) {
	in := Filled("a")
	created := must[core.Sandbox](t)(s.Create(ctx, in))
	want := Filled("a")
	want.CreatedAt, want.UpdatedAt = created.CreatedAt, created.UpdatedAt
	for _, sb := range []core.Sandbox{in, created, must[core.Sandbox](t)(s.Get(ctx, "a"))} {
		sb.Labels["one"] = "changed"
		delete(sb.Extensions, "metadata")
		sb.Spec.GetValue()[0] = 'X'
	}
	same(t, "stored", want, must[core.Sandbox](t)(s.Get(ctx, "a")))
}

func testConcurrent(t *testing.T, ctx context.Context, s core.Store) {
	const workers, rounds = 16, 8
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		wins int
	)
	for w := range workers {
		wg.Go(func() {
			for i := range rounds {
				id := fmt.Sprintf("w%d-%d", w, i)
				if _, err := s.Create(ctx, Filled(id)); err != nil {
					t.Error(err)
				}
				if _, err := s.Update(ctx, Filled(id), "labels"); err != nil {
					t.Error(err)
				}
				if _, err := s.Get(ctx, id); err != nil {
					t.Error(err)
				}
				if _, err := s.List(ctx, "id=="+id); err != nil {
					t.Error(err)
				}
				if i%2 == 0 {
					if err := s.Delete(ctx, id); err != nil {
						t.Error(err)
					}
				}
				_, err := s.Create(ctx, Filled(fmt.Sprintf("contested-%d", i)))
				switch {
				case err == nil:
					mu.Lock()
					wins++
					mu.Unlock()
				case !errdefs.IsAlreadyExists(err):
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if wins != rounds {
		t.Errorf("%d of %d contested IDs were created", wins, rounds)
	}
	if list := must[[]core.Sandbox](t)(s.List(ctx)); len(list) != rounds+workers*rounds/2 {
		t.Errorf("%d records", len(list))
	}
}

// testConcurrentUpdates loses no update: each is made on the last one's result.
func testConcurrentUpdates(t *testing.T, ctx context.Context, s core.Store) {
	must[core.Sandbox](t)(s.Create(ctx, core.Sandbox{ID: "a", Runtime: core.RuntimeOpts{Name: "r"}}))
	const writers = 20
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			key := fmt.Sprintf("k%02d", w)
			_, err := s.Update(ctx, core.Sandbox{ID: "a", Labels: map[string]string{key: "v"}}, "labels."+key)
			_, bad := s.Update(ctx, core.Sandbox{ID: "a"}, "nonsense")
			if err != nil || !errdefs.IsInvalidArgument(bad) {
				t.Error(errors.Join(err, bad))
			}
		})
	}
	wg.Wait()
	got := slices.Collect(maps.Keys(must[core.Sandbox](t)(s.Get(ctx, "a")).Labels))
	if len(got) != writers {
		t.Errorf("%d labels of %d", len(got), writers)
	}
}
