package service

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/types/known/anypb"

	"caisson/internal/task"
)

// call is what a fake was asked.
type call struct {
	Verb, Namespace, ID string
	Sandbox             sandbox.Sandbox
	Create              sandbox.CreateOptions
	Stop                sandbox.StopOptions
	Fields              []string
	Verbose             bool
}

// fakeController answers from its fields and remembers the calls. Wait blocks
// until its context or the fake ends.
type fakeController struct {
	mu     sync.Mutex // guards calls, err, and a fakeShim's fields
	calls  []call
	err    error // what every verb answers, if set
	inst   sandbox.ControllerInstance
	status sandbox.ControllerStatus
	exit   sandbox.ExitStatus
	metric *types.Metric

	waiting chan struct{} // a Wait arrived, if it is to block
}

var _ sandbox.Controller = (*fakeController)(nil)

func (f *fakeController) note(ctx context.Context, c call) error {
	ns, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return fmt.Errorf("the fake got no namespace: %v", err)
	}
	c.Namespace = ns
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, c)
	return f.err
}

// set changes what the fake answers with.
func (f *fakeController) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

func (f *fakeController) fail(err error) { f.set(func() { f.err = err }) }

func (f *fakeController) last() call {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls[len(f.calls)-1]
}

func (f *fakeController) Create(ctx context.Context, sb sandbox.Sandbox, opts ...sandbox.CreateOpt) error {
	c := call{Verb: "Create", ID: sb.ID, Sandbox: sb}
	for _, opt := range opts {
		if err := opt(&c.Create); err != nil {
			return err
		}
	}
	return f.note(ctx, c)
}

func (f *fakeController) Start(ctx context.Context, id string) (sandbox.ControllerInstance, error) {
	return f.inst, f.note(ctx, call{Verb: "Start", ID: id})
}

func (f *fakeController) Platform(ctx context.Context, id string) (imagespec.Platform, error) {
	return imagespec.Platform{OS: "linux", Architecture: "amd64", Variant: "v3"}, f.note(ctx, call{Verb: "Platform", ID: id})
}

func (f *fakeController) Stop(ctx context.Context, id string, opts ...sandbox.StopOpt) error {
	c := call{Verb: "Stop", ID: id}
	for _, opt := range opts {
		opt(&c.Stop)
	}
	return f.note(ctx, c)
}

func (f *fakeController) Wait(ctx context.Context, id string) (sandbox.ExitStatus, error) {
	err := f.note(ctx, call{Verb: "Wait", ID: id})
	if f.waiting != nil {
		f.waiting <- struct{}{}
		<-ctx.Done()
		return sandbox.ExitStatus{}, ctx.Err()
	}
	return f.exit, err
}

func (f *fakeController) Status(ctx context.Context, id string, verbose bool) (sandbox.ControllerStatus, error) {
	return f.status, f.note(ctx, call{Verb: "Status", ID: id, Verbose: verbose})
}

func (f *fakeController) Shutdown(ctx context.Context, id string) error {
	return f.note(ctx, call{Verb: "Shutdown", ID: id})
}

func (f *fakeController) Metrics(ctx context.Context, id string) (*types.Metric, error) {
	return f.metric, f.note(ctx, call{Verb: "Metrics", ID: id})
}

func (f *fakeController) Update(ctx context.Context, id string, sb sandbox.Sandbox, fields ...string) error {
	return f.note(ctx, call{Verb: "Update", ID: id, Sandbox: sb, Fields: fields})
}

// fakeStore keeps records in a map, by namespace and id.
type fakeStore struct {
	mu      sync.Mutex // guards records
	records map[string]sandbox.Sandbox
	fields  []string // of the last Update
}

var _ sandbox.Store = (*fakeStore)(nil)

func key(ctx context.Context, id string) string {
	ns, _ := namespaces.Namespace(ctx)
	return ns + "/" + id
}

func (f *fakeStore) Create(ctx context.Context, sb sandbox.Sandbox) (sandbox.Sandbox, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, ok := f.records[key(ctx, sb.ID)]; ok {
		return sandbox.Sandbox{}, fmt.Errorf("sandbox %q: %w", sb.ID, errdefs.ErrAlreadyExists)
	}
	if f.records == nil {
		f.records = map[string]sandbox.Sandbox{}
	}
	f.records[key(ctx, sb.ID)] = sb
	return sb, nil
}

func (f *fakeStore) Update(ctx context.Context, sb sandbox.Sandbox, fields ...string) (sandbox.Sandbox, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fields = fields
	if _, ok := f.records[key(ctx, sb.ID)]; !ok {
		return sandbox.Sandbox{}, fmt.Errorf("sandbox %q: %w", sb.ID, errdefs.ErrNotFound)
	}
	f.records[key(ctx, sb.ID)] = sb
	return sb, nil
}

func (f *fakeStore) Get(ctx context.Context, id string) (sandbox.Sandbox, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	sb, ok := f.records[key(ctx, id)]
	if !ok {
		return sandbox.Sandbox{}, fmt.Errorf("sandbox %q: %w", id, errdefs.ErrNotFound)
	}
	return sb, nil
}

func (f *fakeStore) List(context.Context, ...string) ([]sandbox.Sandbox, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []sandbox.Sandbox
	for _, sb := range f.records {
		out = append(out, sb)
	}
	return out, nil
}

func (f *fakeStore) Delete(ctx context.Context, id string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, ok := f.records[key(ctx, id)]; !ok {
		return fmt.Errorf("sandbox %q: %w", id, errdefs.ErrNotFound)
	}
	delete(f.records, key(ctx, id))
	return nil
}

// fakeShim answers from its fields.
type fakeShim struct {
	fakeController // for note and last

	address string
	exit    task.Exit
	info    *types.RuntimeInfo
	options *anypb.Any
	bundle  string
	from    string // the containerd that asked last
}

func (f *fakeShim) Containerd(address string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.from = address
}

var _ Shim = (*fakeShim)(nil)

func (f *fakeShim) Endpoint(ctx context.Context, id, bundle string) (string, error) {
	err := f.note(ctx, call{Verb: "Endpoint", ID: id})
	f.mu.Lock()
	defer f.mu.Unlock()
	f.bundle = bundle
	return f.address, err
}

func (f *fakeShim) Cleanup(ctx context.Context, id, bundle string) (task.Exit, error) {
	err := f.note(ctx, call{Verb: "Cleanup", ID: id})
	f.mu.Lock()
	defer f.mu.Unlock()
	f.bundle = bundle
	return f.exit, err
}

func (f *fakeShim) RuntimeInfo(_ context.Context, options *anypb.Any) (*types.RuntimeInfo, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.options = options
	return f.info, f.err
}

func (f *fakeShim) got() (bundle string, options *anypb.Any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.bundle, f.options
}

var (
	created = time.Date(2026, 8, 1, 10, 11, 12, 13, time.UTC)
	exited  = created.Add(time.Hour)
)
