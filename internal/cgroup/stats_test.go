package cgroup

import (
	"os"
	"strings"
	"testing"
)

// TestBlockDevice: devices have the names that the kernel lists them by.
func TestBlockDevice(t *testing.T) {
	table, err := os.ReadFile("/proc/partitions")
	if err != nil {
		t.Fatal(err)
	}
	devices := 0
	for line := range strings.Lines(string(table)) {
		f := strings.Fields(line) // "254 0 264241152 vda"
		if len(f) != 4 || f[0] == "major" {
			continue
		}
		devices++
		if got := blockDevice(f[0] + ":" + f[1]); got != "/dev/"+f[3] {
			t.Errorf("%s:%s is %q, want /dev/%s", f[0], f[1], got, f[3])
		}
	}
	if devices == 0 {
		t.Skip("the kernel lists no block devices")
	}
	if got := blockDevice("4095:0"); got != "" {
		t.Errorf("a device that is not there is %q", got)
	}
}
