package sandbox

import (
	"encoding/json"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	api "caisson/api/caisson/sandbox/v1"
	"caisson/internal/statefile"
)

// TestMigrations takes a directory through made-up schemas: there is no real one yet.
func TestMigrations(t *testing.T) {
	dir := t.TempDir()
	write := func(rec map[string]any) {
		t.Helper()
		if err := statefile.Write(filepath.Join(dir, recordName), rec); err != nil {
			t.Fatal(err)
		}
	}
	var done []string
	step := func(name string, err error) migration {
		return func(at string) error {
			if at != dir {
				t.Errorf("%s of %s", name, at)
			}
			done = append(done, name)
			return err
		}
	}
	failure := errors.New("killed here")
	write(map[string]any{"ID": "a", "State": "ready", "CgroupOfOld": "/x", "Number": uint64(1<<63 + 1)})
	if _, err := readBox(dir, []migration{step("to 2", nil), step("to 3", failure)}); !errors.Is(err, failure) {
		t.Fatalf("a step that fails: %v", err)
	}
	rename := func(string) error {
		done = append(done, "rename")
		var rec map[string]json.RawMessage
		if err := statefile.Read(filepath.Join(dir, recordName), &rec); err != nil {
			return err
		}
		if n := string(rec["Number"]); n != "9223372036854775809" {
			t.Errorf("the number became %s", n)
		}
		rec["Cgroup"] = rec["CgroupOfOld"]
		delete(rec, "CgroupOfOld")
		return statefile.Write(filepath.Join(dir, recordName), rec)
	}
	steps := []migration{step("to 2 again", nil), step("to 3", nil), rename}
	for range 2 {
		rec, err := readBox(dir, steps)
		if err != nil || rec.ID != "a" || rec.Cgroup != "/x" || rec.Schema != 4 {
			t.Fatalf("%+v, %v", rec, err)
		}
	}
	if want := []string{"to 2", "to 3", "to 3", "rename"}; !slices.Equal(done, want) {
		t.Errorf("done: %q, want %q", done, want)
	}
	if _, err := readBox(dir, steps[:2]); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "schema 4") {
		t.Errorf("by an earlier daemon: %v", err)
	}
	if rec, err := readBox(dir, steps); err != nil || rec.Schema != 4 {
		t.Errorf("by the right one again: %+v, %v", rec, err)
	}
}

// TestSandboxOfALaterDaemon is left alone, and nobody is told that it is not there.
func TestSandboxOfALaterDaemon(t *testing.T) {
	r := newRig(t)
	r.run("sb", &api.Options{})
	r.run("other", &api.Options{})
	schema := func(n int) {
		r.close()
		r.rewrite(r.path("sb", recordName), func(rec map[string]any) { rec["Schema"] = n })
		r.open()
	}
	schema(schemaOf(runMigrations) + 1)
	if _, err := r.ctl.Status(r.ctx(), "sb", false); !errdefs.IsUnavailable(err) {
		t.Errorf("status: %v", err)
	}
	if _, err := r.ctl.Status(r.ctx(), "other", false); err != nil {
		t.Errorf("status of another one: %v", err)
	}
	schema(schemaOf(runMigrations))
	if st, err := r.ctl.Status(r.ctx(), "sb", false); err != nil || st.State != "SANDBOX_READY" {
		t.Errorf("status by the later daemon: %+v, %v", st, err)
	}
}
