package stdio

import (
	"io"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestUnread: what is in a FIFO is waited for until it is read, by whomever.
func TestUnread(t *testing.T) {
	dir := t.TempDir()
	cfg := Config{Stdout: filepath.Join(dir, "out"), Stderr: filepath.Join(dir, "err")}
	var keepers []*os.File
	for _, path := range []string{cfg.Stdout, cfg.Stderr} {
		if err := unix.Mkfifo(path, 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		keepers = append(keepers, f)
	}
	watch := func() *Unread {
		t.Helper()
		u, err := WatchUnread(cfg)
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	if watch() != nil {
		t.Error("there is nothing to wait for")
	}
	for _, f := range keepers {
		if _, err := f.WriteString("last words"); err != nil {
			t.Fatal(err)
		}
	}
	given := watch()
	given.Close() // gives up
	u := watch()
	select {
	case <-u.Opened():
		t.Error("opened by nobody")
	default:
	}
	for i, path := range []string{cfg.Stdout, cfg.Stderr} {
		select {
		case <-u.Done():
			t.Fatalf("over when %d of 2 were read", i)
		default:
		}
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		<-u.Opened()
		if _, err := io.ReadFull(f, make([]byte, len("last words"))); err != nil {
			t.Fatal(err)
		}
	}
	<-u.Done()
	u.Close()
	for name, cfg := range map[string]Config{
		"gone": {Stdout: filepath.Join(dir, "none")}, "file": {Stdout: "file://" + filepath.Join(dir, "log")}, "terminal": {Stdout: cfg.Stdout, Terminal: true}, "none": {},
	} {
		if u, err := WatchUnread(cfg); u != nil || err != nil {
			t.Errorf("%s: %v, %v", name, u, err)
		}
	}
}
