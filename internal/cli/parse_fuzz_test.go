package cli

import (
	"bytes"
	"io"
	"net/netip"
	"strings"
	"testing"
)

// FuzzFlags: what the flags of limits, ports and pairs accept is in bounds.
func FuzzFlags(f *testing.F) {
	for _, s := range []string{"", "64m", "1.5", "8080:80", "[::1]:8080:80/udp", "127.0.0.1:1:1", "a=b", "=", "99999999999999999999g", "-1", "1e400", "NaN"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if n, err := parseMemory(s); err == nil && s != "" && n < minMemory {
			t.Errorf("memory %q: %d", s, n)
		}
		if n, err := parseCPUs(s); err == nil && (n < 0 || s != "" && n == 0) {
			t.Errorf("processors %q: %d", s, n)
		}
		if p, err := parsePort(s); err == nil {
			if p.HostPort-1 >= 1<<16-1 || p.ContainerPort-1 >= 1<<16-1 {
				t.Errorf("port %q: %v", s, p)
			}
			if _, err := netip.ParseAddr(p.HostIp); p.HostIp != "" && err != nil {
				t.Errorf("port %q: %v", s, p)
			}
		}
		if pairs, err := parsePairs("label", []string{s}); err == nil {
			for key, value := range pairs {
				if key == "" || key+"="+value != s {
					t.Errorf("pair %q: %q", s, pairs)
				}
			}
		}
		if env, err := parseEnv([]string{s}, func(string) string { return "" }); err == nil {
			for _, e := range env {
				if name, _, ok := strings.Cut(e, "="); name == "" || !ok || strings.ContainsRune(e, 0) {
					t.Errorf("variable %q: %q", s, e)
				}
			}
		}
		if n, err := parseTail(s); err == nil && n < 0 && s != "all" {
			t.Errorf("tail %q: %d", s, n)
		}
	})
}

// FuzzSeekTail: the tail of a log is its last lines.
func FuzzSeekTail(f *testing.F) {
	f.Add([]byte("a\nb\nc\n"), 2, uint32(0))
	f.Add([]byte("a\n\n\nb"), 3, uint32(64<<10))
	f.Add([]byte("\n"), 1, uint32(64<<10-1))
	f.Add([]byte(""), 1, uint32(0))
	f.Fuzz(func(t *testing.T, log []byte, lines int, before uint32) {
		if lines < 0 {
			return // no number of lines, see parseTail
		}
		log = append(bytes.Repeat([]byte("x"), int(before%(200<<10))), log...)
		r := bytes.NewReader(log)
		if err := seekTail(r, lines); err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		all := bytes.SplitAfter(log, []byte("\n"))
		if len(all[len(all)-1]) == 0 {
			all = all[:len(all)-1]
		}
		if want := bytes.Join(all[len(all)-min(lines, len(all)):], nil); !bytes.Equal(got, want) {
			t.Errorf("the last %d lines of %q: %q, want %q", lines, log, got, want)
		}
	})
}
