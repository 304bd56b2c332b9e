package stdio

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
)

func TestTargets(t *testing.T) {
	for s, want := range map[string]target{
		"":                          {},
		"/a b%41?c=d#e":             {scheme: schemePath, path: "/a b%41?c=d#e"},
		"fifo:///run/x":             {scheme: schemeFIFO, path: "/run/x"},
		"file:///var/log/a%20b":     {scheme: schemeFile, path: "/var/log/a b"},
		"binary:///bin/l?a=1&b=%2F": {scheme: schemeBinary, path: "/bin/l", query: "a=1&b=%2F"},
		"binary-v2:///bin/l":        {scheme: schemeBinaryV2, path: "/bin/l"},
	} {
		want.stream = Stdout
		got, err := parseTarget(Stdout, s)
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(target{})); diff != "" || err != nil {
			t.Errorf("%q: %v (-want +got):\n%s", s, err, diff)
		}
	}
}

func TestBadConfigsAreRefused(t *testing.T) {
	for name, cfg := range map[string]Config{
		"relative":               {Stdout: "a/b"},
		"relative file":          {Stdout: "file://a/b"},
		"opaque":                 {Stdout: "file:a"},
		"host":                   {Stdout: "binary://host/bin/x"},
		"relative binary":        {Stdout: "binary:bin/x"},
		"no path":                {Stderr: "fifo://"},
		"scheme":                 {Stderr: "http:///x"},
		"zero":                   {Stdin: "/a\x00b"},
		"escaped zero":           {Stdout: "file:///a%00b"},
		"bad escape":             {Stdout: "file:///%zz"},
		"bad logger argument":    {Stdout: "binary:///bin/x?a=%zz"},
		"zero in argument":       {Stdout: "binary:///bin/x?a=%00"},
		"log as stdin":           {Stdin: "file:///a"},
		"logger as stdin":        {Stdin: "binary:///a"},
		"logger for stderr only": {Stderr: "binary:///a"},
		"two loggers":            {Stdout: "binary:///a", Stderr: "binary:///b"},
	} {
		for _, terminal := range []bool{false, true} {
			cfg.Terminal = terminal
			if terminal && cfg.Stdout == "" && cfg.Stdin == "" {
				continue // stderr is not looked at
			}
			if name == "two loggers" && terminal {
				continue
			}
			_, err := Open(t.Context(), cfg, Owner{}, Identity{Namespace: "ns", ContainerID: "c"}, OpenHere)
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("%s (terminal %t): %v, want InvalidArgument", name, terminal, err)
			}
		}
	}
}

func TestLoggerArgs(t *testing.T) {
	got, err := loggerArgs("b=2&a=1&b=3&flag&&x=%20y")
	if diff := cmp.Diff([]string{"b", "2", "a", "1", "flag", "", "x", " y"}, got); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
}

func FuzzParseTarget(f *testing.F) {
	for _, s := range []string{"/a", "file:///a?b", "binary://h/a", "fifo:///%00", "binary:///a?b=c&d=%zz"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		target, err := parseTarget(Stdout, s)
		if err != nil {
			if !errdefs.IsInvalidArgument(err) {
				t.Fatal(err)
			}
			return
		}
		if s != "" && !filepath.IsAbs(target.path) || strings.ContainsRune(target.path, 0) {
			t.Fatalf("path %q", target.path)
		}
		args, err := loggerArgs(target.query)
		if err == nil && strings.ContainsRune(strings.Join(args, ""), 0) {
			t.Fatalf("arguments %q", args)
		}
	})
}
