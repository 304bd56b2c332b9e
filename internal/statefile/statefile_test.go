package statefile

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

type sample struct {
	Name  string
	Count int
}

func TestRoundTripAndReplacement(t *testing.T) {
	path := filepath.Join(t.TempDir(), "r.json")
	for _, want := range []sample{{"a", 1}, {"b", 2}} {
		if err := Write(path, want); err != nil {
			t.Fatal(err)
		}
		var got sample
		if err := Read(path, &got); err != nil || got != want {
			t.Errorf("got %+v, %v; want %+v", got, err, want)
		}
	}
	if entries, _ := os.ReadDir(filepath.Dir(path)); len(entries) != 1 {
		t.Errorf("left over: %v", entries)
	}
}

func TestReadTellsMissingFromBroken(t *testing.T) {
	dir := t.TempDir()
	var got sample
	if err := Read(filepath.Join(dir, "none"), &got); !errdefs.IsNotFound(err) {
		t.Errorf("missing record: %v", err)
	}
	for name, text := range map[string]string{"empty": "", "torn": `{"Name":"a`, "other": `[1]`} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := Read(path, &got); !errdefs.IsDataLoss(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestFailedWriteKeepsTheOldRecord(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "r.json")
	if err := Write(path, sample{"old", 1}); err != nil {
		t.Fatal(err)
	}
	if err := Write(path, func() {}); err == nil {
		t.Error("a function was marshalled")
	}
	if err := Write(path, sample{strings.Repeat("<", maxSize/4), 1}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("more than can be read: %v", err)
	}
	if err := Write(filepath.Join(dir, "no", "dir.json"), sample{}); err == nil {
		t.Error("wrote into a missing directory")
	}
	var got sample
	if err := Read(path, &got); err != nil || got.Name != "old" {
		t.Errorf("got %+v, %v", got, err)
	}
}
