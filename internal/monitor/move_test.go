package monitor

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

// TestMove: one that waited is in its new directory under its new name, and the holder
// it starts as well.
func TestMove(t *testing.T) {
	ctx, dir, to := testContext(t), shortDir(t), shortDir(t)
	c, err := Start(ctx, Config{Binary: installed(t), Dir: dir, Name: "waits", Waits: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { endMonitor(t, c) })
	name := "namespace/" + strings.Repeat("n", 150)
	if err := c.Move(ctx, to, name); err != nil {
		t.Fatal(err)
	}
	holder, err := c.Hold(ctx, HoldRequest{NewUTS: true})
	if err != nil {
		t.Fatal(err)
	}
	for pid, program := range map[int]string{c.Pid(): "caisson-monitor", holder.Pid: "caisson-holder"} {
		line, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
		if shown := strings.TrimRight(string(line), "\x00"); err != nil || shown != program+"\x00"+name {
			t.Errorf("process list: %q, %v", line, err)
		}
	}
	if _, err := Dial(ctx, dir); !errdefs.IsNotFound(err) {
		t.Errorf("at its old place: %v", err)
	}
	d, err := Dial(ctx, to)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if err := c.Move(ctx, filepath.Join(to, "none"), "x"); err == nil {
		t.Error("moved into a directory that is not there")
	}
	fixed := startMonitor(t)
	if err := fixed.Move(ctx, shortDir(t), strings.Repeat("long", 30)); !errdefs.IsResourceExhausted(err) {
		t.Errorf("one without room for a name: %v", err)
	}
}
