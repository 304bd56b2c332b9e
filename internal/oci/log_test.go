package oci

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// FuzzLastError: the log of an OCI runtime may hold anything, of any length.
func FuzzLastError(f *testing.F) {
	f.Add([]byte(`{"level":"error","msg":"it failed"}`), uint32(0))
	f.Add([]byte("{\"level\":\"info\",\"msg\":\"x\"}\nnot JSON\n{\"level\":\"fatal\",\"msg\":\" y \"}\n"), uint32(3))
	f.Add([]byte(`{"msg":1}`), uint32(maxLog))
	f.Add([]byte("\n"), uint32(2*maxLog))
	path := filepath.Join(f.TempDir(), "log")
	f.Fuzz(func(t *testing.T, log []byte, before uint32) {
		padding := strings.Repeat(" ", int(before%(3*maxLog)))
		if err := os.WriteFile(path, append([]byte(padding), log...), 0o600); err != nil {
			t.Fatal(err)
		}
		if last, err := lastError(path); err == nil && last != "" && len(last) > 3*maxLog { // a byte that is no UTF-8 becomes three
			t.Errorf("a message of %d bytes", len(last))
		}
	})
}
