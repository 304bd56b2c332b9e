package daemon

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go/features"
	"google.golang.org/protobuf/types/known/anypb"
)

// fakeRuntime is a program that answers as the script says.
func fakeRuntime(t *testing.T, script string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "runtime")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n[ \"$1\" = features ] || exit 9\n"+script+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestRuntimeInfo(t *testing.T) {
	for name, tc := range map[string]struct {
		script             string
		general, container bool // mounts with mapped ids, asked in general and for a container
	}{
		"modern":     {`echo '{"linux": {"namespaces": ["mount", "user"], "mountExtensions": {"idmap": {"enabled": true}}}, "mountOptions": ["rro"]}'`, true, true},
		"denies":     {`echo '{"linux": {"mountExtensions": {"idmap": {"enabled": false}}}}'`, false, false},
		"silent":     {`echo '{"linux": {"namespaces": ["user"]}}'`, true, false},
		"no linux":   {`echo '{}'`, true, false},
		"no command": {"echo unknown command >&2; exit 1", true, false},
	} {
		t.Run(name, func(t *testing.T) {
			path := fakeRuntime(t, tc.script)
			opts, err := typeurl.MarshalAnyToProto(&options.Options{IoUid: 1})
			if err != nil {
				t.Fatal(err)
			}
			for opts, want := range map[*anypb.Any]bool{nil: tc.general, opts: tc.container} {
				info, err := new(runtimes).info(context.Background(), path, opts)
				if err != nil {
					t.Fatal(err)
				}
				any, err := typeurl.UnmarshalAny(info.GetFeatures())
				if err != nil {
					t.Fatal(err)
				}
				f, ok := any.(*features.Features)
				if !ok || f.Linux == nil || !slices.Contains(f.Linux.Namespaces, "user") {
					t.Fatalf("features are %T %v", any, any)
				}
				idmap := f.Linux.MountExtensions != nil && f.Linux.MountExtensions.IDMap != nil && *f.Linux.MountExtensions.IDMap.Enabled
				if idmap != want {
					t.Errorf("with options %v, mounts with mapped ids are %v", opts, idmap)
				}
			}
		})
	}
}

func TestRuntimeInfoOfOptions(t *testing.T) {
	path := fakeRuntime(t, `echo '{"mountOptions": ["mine"]}'`)
	opts, err := typeurl.MarshalAnyToProto(&options.Options{BinaryName: path})
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"", "type.googleapis.com/"} { // as typeurl and anypb write them
		opts := &anypb.Any{TypeUrl: host + opts.TypeUrl, Value: opts.Value}
		info, err := new(runtimes).info(context.Background(), "no-such-runtime", opts)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(info.GetFeatures().GetValue()), "mine") || info.GetOptions() == nil {
			t.Errorf("info %v", info)
		}
	}
}

func TestRuntimeInfoFails(t *testing.T) {
	if _, err := new(runtimes).info(context.Background(), "no-such-runtime", nil); !errdefs.IsNotFound(err) {
		t.Errorf("no runtime: %v", err)
	}
	if info, err := new(runtimes).info(context.Background(), fakeRuntime(t, "kill -9 $$"), nil); err == nil {
		t.Errorf("killed: %v", info)
	}
	if _, err := new(runtimes).info(context.Background(), fakeRuntime(t, "echo nonsense"), nil); !errdefs.IsInvalidArgument(err) {
		t.Errorf("nonsense: %v", err)
	}
}

// TestRuntimesAreAskedOnce: a program is asked again when it is replaced, and a
// script each time.
func TestRuntimesAreAskedOnce(t *testing.T) {
	dir := t.TempDir()
	asked, program := filepath.Join(dir, "asked"), filepath.Join(dir, "program")
	const source = `#include <stdio.h>
int main(void) { FILE *f = fopen(ASKED, "a"); puts("{}"); return !f || fputs("x", f) < 0 || fclose(f); }`
	compile := func() {
		cmd := exec.Command("musl-gcc", "-static", "-DASKED=\""+asked+"\"", "-x", "c", "-", "-o", program+".new")
		cmd.Stdin = strings.NewReader(source)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if err := os.Rename(program+".new", program); err != nil {
			t.Fatal(err)
		}
	}
	var r runtimes
	for _, step := range []struct {
		before func()
		path   string
		want   string
	}{
		{compile, program, "x"},
		{nil, program, "x"},
		{compile, program, "xx"},
		{nil, fakeRuntime(t, "printf x >>"+asked+"; echo '{}'"), "xxx"},
		{nil, program, "xxx"},
	} {
		if step.before != nil {
			step.before()
		}
		if _, err := r.info(context.Background(), step.path, nil); err != nil {
			t.Fatal(err)
		}
		if text, err := os.ReadFile(asked); err != nil || string(text) != step.want {
			t.Fatalf("asked %q, %v; want %q", text, err, step.want)
		}
	}
	script := fakeRuntime(t, "printf x >>"+asked+"; echo '{}'")
	for range 2 {
		if _, err := r.info(context.Background(), script, nil); err != nil {
			t.Fatal(err)
		}
	}
	if text, err := os.ReadFile(asked); err != nil || string(text) != "xxxxx" {
		t.Errorf("a script: asked %q, %v", text, err)
	}
}
