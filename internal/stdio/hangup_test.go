package stdio

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestHangupNoticesOnlyClients(t *testing.T) {
	path := filepath.Join(t.TempDir(), "stdin")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := Config{Stdin: path}
	h, err := WatchStdin(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	set, err := Open(t.Context(), cfg, Owner{}, Identity{}, OpenHere)
	if err != nil {
		t.Fatal(err)
	}
	// The monitor gets the keeper as a duplicate; ours is closed.
	var dup int
	err = withFD(set.Keepers()[Stdin], func(fd int) (err error) {
		dup, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(dup)
	client, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := set.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-h.Done():
		t.Fatal("taken for the end of the client: our own descriptors")
	default:
	}
	if err := client.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-h.Done():
	case <-time.After(20 * time.Second):
		t.Fatal("the client's end was not noticed")
	}
}

func TestHangupOfWhatIsNoFIFO(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, cfg := range map[string]Config{
		"nothing":  {},
		"a file":   {Stdin: file},
		"terminal": {Stdin: file, Terminal: true},
	} {
		if h, err := WatchStdin(cfg); h != nil || err != nil {
			t.Errorf("%s: %v, %v", name, h, err)
		}
	}
	if _, err := WatchStdin(Config{Stdin: file + ".missing"}); err == nil {
		t.Error("a missing file is watched")
	}
}

func TestHangupCloseEndsTheWatch(t *testing.T) {
	path := filepath.Join(t.TempDir(), "stdin")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	h, err := WatchStdin(Config{Stdin: path})
	if err != nil {
		t.Fatal(err)
	}
	h.Close()
	h.Close()
	if seen, err := h.Stop(); seen || err != nil {
		t.Errorf("nobody closed it: %t, %v", seen, err)
	}
}

// Stop knows of an end that nobody has come round to notice, and of none else.
func TestHangupStop(t *testing.T) {
	for _, closed := range []bool{false, true} {
		for range 100 {
			path := filepath.Join(t.TempDir(), "stdin")
			if err := unix.Mkfifo(path, 0o600); err != nil {
				t.Fatal(err)
			}
			h, err := WatchStdin(Config{Stdin: path})
			if err != nil {
				t.Fatal(err)
			}
			client, err := os.OpenFile(path, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			if closed {
				if err := client.Close(); err != nil {
					t.Fatal(err)
				}
			}
			if seen, err := h.Stop(); err != nil || seen != closed {
				t.Fatalf("closed=%t: %t, %v", closed, seen, err)
			}
			if !closed {
				if err := client.Close(); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
}
