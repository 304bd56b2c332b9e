package statefile

import (
	"errors"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// TestLock: a lock that goes soon is waited for, another one is not.
func TestLock(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		open := func() *os.File {
			f, err := os.Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			return f
		}
		first, second := open(), open()
		defer second.Close()
		if err := Lock(first); err != nil {
			t.Fatal(err)
		}
		if err := Lock(second); !errors.Is(err, unix.EWOULDBLOCK) {
			t.Errorf("a lock that stays: %v", err)
		}
		time.AfterFunc(lockPatience/2, func() { first.Close() })
		if err := Lock(second); err != nil {
			t.Errorf("a lock that goes: %v", err)
		}
	})
}
