package libcontainerd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
)

// deaf is a client whose ledgers tell nobody.
func deaf() *client {
	return &client{ctx: context.Background(), log: log.L, closed: true, ledgers: map[key]*ledger{}}
}

// FuzzRecord: whatever is in a record, it is refused or gives a ledger that holds
// together and writes the same again.
func FuzzRecord(f *testing.F) {
	for _, seed := range []string{
		`{"Version":1}`,
		`{"Version":2}`,
		`{"Version":1,"Runs":[{"Init":{"Pid":7,"Added":true,"Started":true,"Told":2},"Paused":true,"OOM":true,"Execs":[{"ID":"e","Pid":8,"Added":true,"Starting":true,"Told":1}]}]}`,
		`{"Version":1,"Runs":[{"Init":{"Pid":7,"Added":true,"Started":true,"Exit":{"Code":1,"At":"2026-01-02T03:04:05Z"},"Told":3,"Removed":true}},{"Init":{"Pid":9,"Added":true,"Told":1}}]}`,
		`{"Version":1,"Runs":[{"Init":{"Told":3}}]}`,
		`{"Version":1,"Runs":[{"Init":{"ID":"x"}}]}`,
		`{"Version":1,"Runs":[{"Init":{},"Execs":[{"ID":"../x"}]}]}`,
		`{"Version":1,"Runs":[{"Init":{"Told":-1}}]}`,
		`null`, `[]`, ``, `{"Version":1,"Runs":[{"Init":{"Pid":7`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		l := &ledger{client: deaf(), kind: containers, id: "k", dir: t.TempDir()}
		if err := os.WriteFile(filepath.Join(l.dir, recordName), data, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := l.load(); err != nil {
			if !errdefs.IsDataLoss(err) && !errdefs.IsFailedPrecondition(err) {
				t.Errorf("error without a class: %v", err)
			}
			return
		}
		processes := 0
		for _, r := range l.runs {
			processes += 1 + len(r.execs)
		}
		l.update(func() {})
		if len(l.untold) > 3*processes+2*len(l.runs) {
			t.Errorf("%d events of %d processes", len(l.untold), processes)
		}
		if err := l.save(); err != nil {
			if errors.As(err, new(*json.MarshalerError)) {
				return // a time that JSON has no words for
			}
			t.Fatal(err)
		}
		again := &ledger{client: l.client, kind: containers, id: "k", dir: l.dir}
		if err := again.load(); err != nil {
			t.Errorf("what was loaded cannot be written down: %v", err)
		}
		l.containerGone()
	})
}

func TestLockHonoursTheContext(t *testing.T) {
	var ls locks
	k := key{containers, "k"}
	unlock, err := ls.lock(t.Context(), k)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := ls.lock(ctx, k); !errors.Is(err, context.Canceled) {
		t.Errorf("second lock: %v", err)
	}
	unlock()
	if len(ls.all) > 0 {
		t.Error("the lock of an id that nobody uses is kept")
	}
}

func TestClassOfLocalErrors(t *testing.T) {
	for _, test := range []struct{ err, class error }{
		{&os.PathError{Op: "mkdir", Err: syscall.ENOSPC}, errdefs.ErrResourceExhausted},
		{&os.PathError{Op: "mkdir", Err: syscall.EACCES}, errdefs.ErrPermissionDenied},
		{&os.PathError{Op: "mkdir", Err: syscall.EROFS}, errdefs.ErrPermissionDenied},
		{&os.PathError{Op: "mkdir", Err: syscall.ENOTDIR}, errdefs.ErrInternal},
		{fmt.Errorf("it has one: %w", errdefs.ErrDataLoss), errdefs.ErrDataLoss},
	} {
		err := local(test.err, "thing %d", 7)
		if !errors.Is(err, test.err) || errdefs.Resolve(err) != test.class {
			t.Errorf("%v: got %v, want %v", test.err, err, test.class)
		}
	}
	if err := local(nil, "thing"); err != nil {
		t.Errorf("no error: %v", err)
	}
}
