package cli

import (
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestDebugDump(t *testing.T) {
	d := startFake(t)
	dir := filepath.Dir(d.address)
	file := filepath.Join(dir, "dump")
	d.refused(t, "no caissond answers at "+dir+"/debug.sock", "debug", "dump", "-o", file)

	l, err := net.Listen("unix", dir+"/debug.sock")
	if err != nil {
		t.Fatal(err)
	}
	answer := "whole"
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path != "/debug/dump":
			t.Errorf("asked for %s", r.URL)
		case answer == "busy":
			http.Error(w, "another dump is under way", http.StatusServiceUnavailable)
		case answer == "half":
			w.WriteHeader(http.StatusOK)
			_ = http.NewResponseController(w).Flush() // the answer has begun
			panic(http.ErrAbortHandler)
		default:
			_, _ = w.Write([]byte(answer)) // checked at the other end
		}
	})}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	defer func() {
		_ = srv.Close() // nothing is lost
		if err := <-done; err != http.ErrServerClosed {
			t.Error(err)
		}
	}()
	if out := d.must(t, "debug", "dump", "-o", file); out != file+"\n" {
		t.Errorf("printed %q", out)
	}
	if text, err := os.ReadFile(file); err != nil || string(text) != "whole" {
		t.Errorf("%q, %v", text, err)
	}
	if out := d.must(t, "debug", "dump", "--output", "-"); out != "whole" {
		t.Errorf("printed %q", out)
	}
	if code, out, _ := runCLI(t, "debug", "dump", "--socket", dir+"/debug.sock", "-o", "-"); code != 0 || out != "whole" {
		t.Errorf("exit code %d, printed %q", code, out)
	}
	answer = "busy"
	d.refused(t, "another dump is under way", "debug", "dump", "-o", file)
	answer = "half"
	d.refused(t, "half way", "debug", "dump", "-o", file)
	if text, err := os.ReadFile(file); err != nil || string(text) != "whole" {
		t.Errorf("what was there: %q, %v", text, err)
	}
	if left, err := filepath.Glob(dir + "/.*"); err != nil || len(left) > 0 {
		t.Errorf("left: %q, %v", left, err)
	}
	d.refused(t, "no arguments", "debug", "dump", "extra")
	if code, out, _ := d.run(t, "debug"); code != 0 || !strings.Contains(out, "dump") {
		t.Errorf("debug alone: %d, %q", code, out)
	}
}
