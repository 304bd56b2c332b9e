package cli

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestImageArguments(t *testing.T) {
	for args, want := range map[string]string{
		"inspect":                         "needs the name of an image",
		"inspect -f yaml demo":            "unknown format",
		"inspect -f {{.x demo":            "no Go template",
		"tag demo":                        "needs the name of an image, and another for it",
		"tag demo ///":                    "is not the name of an image",
		"save":                            "needs the name of an image",
		"--address /no/such.sock save x":  "no caissond",
		"--address /no/such.sock tag x y": "no caissond",
		"--address /no/such.sock inspect -f json x": "no caissond",
	} {
		code, _, stderr := runCLI(t, append([]string{"image"}, strings.Fields(args)...)...)
		if code != 1 || !strings.Contains(stderr, want) {
			t.Errorf("image %s: code %d, %q", args, code, stderr)
		}
	}
}

func TestReplaceFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "x.tar")
	write := func(text string, failure error) error {
		return replaceFile(path, func(w io.Writer) error {
			_, err := io.WriteString(w, text)
			return errors.Join(err, failure)
		})
	}
	if err := write("old", nil); err != nil {
		t.Fatal(err)
	}
	full := errors.New("disk full")
	if err := write("half", full); !errors.Is(err, full) {
		t.Errorf("a failure: %v", err)
	}
	if blob, err := os.ReadFile(path); err != nil || string(blob) != "old" {
		t.Errorf("after a failure: %q, %v", blob, err)
	}
	if err := write("new", nil); err != nil {
		t.Error(err)
	}
	if blob, _ := os.ReadFile(path); string(blob) != "new" {
		t.Errorf("replaced: %q", blob)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("left: %v, %v", entries, err)
	}
	path = filepath.Join(dir, "none", "x")
	if err := write("lost", nil); err == nil || !strings.Contains(err.Error(), path+": ") {
		t.Errorf("where no directory is: %v", err)
	}
	path = os.DevNull
	if err := write("gone", nil); err != nil {
		t.Error(err)
	}
	if info, err := os.Stat(os.DevNull); err != nil || info.Mode().IsRegular() {
		t.Errorf("%v, %v", info, err)
	}
}
