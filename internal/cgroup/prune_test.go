package cgroup

import (
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
)

func TestPruneTakesOnlyWhatIsEmpty(t *testing.T) {
	parent := newGroup(t, nil)
	child, err := Create(filepath.Join(parent.Path(), "child"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := Prune(parent.Path()); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{parent.Path(), child.Path()} {
		if _, err := Load(path); err != nil {
			t.Errorf("%s was not empty, and is gone: %v", path, err)
		}
	}
	if err := child.Delete(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := Prune(parent.Path()); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Load(parent.Path()); !errdefs.IsNotFound(err) {
		t.Errorf("an empty group is there: %v", err)
	}
}
