package cli

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func TestParsePlace(t *testing.T) {
	for s, want := range map[string]place{
		"web:/etc/hosts": {"web", "/etc/hosts"},
		"web:etc":        {"web", "etc"},
		"web:":           {"web", ""},
		"web:/a:b":       {"web", "/a:b"},
		"/a:b":           {"", "/a:b"},
		"./a:b":          {"", "./a:b"},
		"dir/a:b":        {"", "dir/a:b"},
		"plain":          {"", "plain"},
		".":              {"", "."},
	} {
		if got := parsePlace(s); got != want {
			t.Errorf("%q: %+v", s, got)
		}
	}
	for args, want := range map[string]string{
		"a b":                              "neither",
		"web:/a db:/b":                     "both",
		"web: b":                           "has no path",
		"web:/a":                           "needs a source and a destination",
		"a..b:/a b":                        "cannot name a container",
		"web:/a -":                         "a tar is no side",
		":/a b":                            "neither",
		"--address /no/such.sock web:/a b": "no caissond",
	} {
		code, _, stderr := runCLI(t, append([]string{"cp"}, strings.Fields(args)...)...)
		if code != 1 || !strings.Contains(stderr, want) {
			t.Errorf("cp %s: code %d, %q", args, code, stderr)
		}
	}
}

// tree makes files: a name with / at its end is a directory, one with -> a link.
func tree(t *testing.T, names ...string) (string, *os.File) {
	t.Helper()
	dir := t.TempDir()
	for _, name := range names {
		link, to, isLink := strings.Cut(name, "->")
		at := filepath.Join(dir, link)
		err := os.MkdirAll(filepath.Dir(at), 0o755)
		switch {
		case err != nil:
		case isLink:
			err = os.Symlink(to, at)
		case strings.HasSuffix(name, "/"):
			err = os.MkdirAll(at, 0o755)
		default:
			err = os.WriteFile(at, []byte("content of "+name), 0o640)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	root, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return dir, root
}

// listTree are the names below a directory, as tree takes them.
func listTree(t *testing.T, dir string) []string {
	t.Helper()
	var names []string
	err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		name := strings.TrimPrefix(strings.TrimPrefix(p, dir), "/")
		switch {
		case err != nil || name == "":
			return err
		case e.IsDir():
			name += "/"
		case e.Type() == fs.ModeSymlink:
			to, err := os.Readlink(p)
			if err != nil {
				return err
			}
			name += "->" + to
		}
		names = append(names, name)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(names)
	return names
}

func copyTree(t *testing.T, from *os.File, source string, to *os.File, target string, follow bool) ([]string, error) {
	t.Helper()
	s, err := openSource(from, source, follow)
	if err != nil {
		return nil, err
	}
	defer s.close()
	end, err := openTarget(to, target, s)
	if err != nil {
		return nil, err
	}
	defer end.close()
	var warnings []string
	tr := transfer{ctx: t.Context(), warn: func(s string) { warnings = append(warnings, s) }, owner: ids{os.Getuid(), os.Getgid()}}
	return warnings, tr.copy(s, end)
}

func TestCopyNames(t *testing.T) {
	for _, c := range []struct {
		name, source, target string
		there, want          []string
	}{
		{"file to a new name", "/d/a", "/x", nil, []string{"x"}},
		{"file into a directory", "/d/a", "/x", []string{"x/"}, []string{"x/", "x/a"}},
		{"file into a directory named with a slash", "/d/a", "/x/", []string{"x/"}, []string{"x/", "x/a"}},
		{"file over a file", "/d/a", "/x", []string{"x"}, []string{"x"}},
		{"file over a link's target", "/d/a", "/l", []string{"x", "l->x"}, []string{"l->x", "x"}},
		{"file into a linked directory", "/d/a", "/l", []string{"x/", "l->x"}, []string{"l->x", "x/", "x/a"}},
		{"directory to a new name", "/d", "/x", nil, []string{"x/", "x/a", "x/e/", "x/e/b", "x/l->/etc"}},
		{"directory into a directory", "/d", "/x", []string{"x/"}, []string{"x/", "x/d/", "x/d/a", "x/d/e/", "x/d/e/b", "x/d/l->/etc"}},
		{"content into a directory", "/d/.", "/x", []string{"x/"}, []string{"x/", "x/a", "x/e/", "x/e/b", "x/l->/etc"}},
		{"content to a new name", "/d/.", "/x", nil, []string{"x/", "x/a", "x/e/", "x/e/b", "x/l->/etc"}},
		{"all into the root", "/d/e/.", "/", nil, []string{"b"}},
		{"merged", "/d/e", "/", []string{"e/", "e/old"}, []string{"e/", "e/b", "e/old"}},
		{"a link as it is", "/d/l", "/x", nil, []string{"x->/etc"}},
		{"above a linked directory", "/u/../a", "/x", nil, []string{"x"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, from := tree(t, "d/a", "d/e/b", "d/l->/etc", "u->d/e", "etc/")
			dir, to := tree(t, c.there...)
			if warnings, err := copyTree(t, from, c.source, to, c.target, false); err != nil || len(warnings) > 0 {
				t.Fatal(err, warnings)
			}
			if got := listTree(t, dir); !slices.Equal(got, c.want) {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}

func TestCopyRefusals(t *testing.T) {
	for _, c := range []struct {
		name, source, target string
		want                 error
	}{
		{"no source", "/nope", "/x", fs.ErrNotExist},
		{"no directory above", "/d/a", "/nope/x", fs.ErrNotExist},
		{"new directory with a slash", "/d/a", "/nope/", fs.ErrNotExist},
		{"file with a slash", "/d/a/", "/x", unix.ENOTDIR},
		{"directory over a file", "/d", "/f", errdefs.ErrInvalidArgument},
		{"file over a directory", "/d/a", "/g", errdefs.ErrFailedPrecondition},
		{"a link to itself", "/self/x", "/x", unix.ELOOP},
	} {
		_, from := tree(t, "d/a", "self->self")
		_, to := tree(t, "f", "g/a/")
		if _, err := copyTree(t, from, c.source, to, c.target, true); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// A root filesystem whose links lead out of it, for either direction.
func TestCopyStaysInside(t *testing.T) {
	outside := t.TempDir()
	if err := os.WriteFile(filepath.Join(outside, "secret"), []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	up := strings.Repeat("../", 40) + outside[1:]
	for _, link := range []string{outside, up} {
		hostile, root := tree(t, "l->"+link, "f->"+link+"/secret")
		_, from := tree(t, "a")
		_, host := tree(t)
		for _, target := range []string{"/l/x", "/l/secret", "/f"} {
			if _, err := copyTree(t, from, "/a", root, target, false); err == nil {
				t.Errorf("copied to %s, which is %s", target, link)
			}
		}
		for _, source := range []string{"/l/secret", "/f", "/l/."} {
			if _, err := copyTree(t, root, source, host, "/got", true); err == nil {
				t.Errorf("copied from %s, which is %s", source, link)
			}
		}
		// What the link says exists inside as well: that is where it leads.
		if err := os.MkdirAll(filepath.Join(hostile, outside), 0o755); err != nil {
			t.Fatal(err)
		}
		if _, err := copyTree(t, from, "/a", root, "/l/x", false); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(filepath.Join(hostile, outside, "x")); err != nil {
			t.Error(err)
		}
	}
	if got := listTree(t, outside); !slices.Equal(got, []string{"secret"}) {
		t.Errorf("outside: %q", got)
	}
	// A tree with a link where the destination has a directory, and the other way round.
	_, from := tree(t, "d/x->"+outside, "e/x/secret")
	_, to := tree(t, "d/x/", "e/x->"+outside)
	for _, source := range []string{"/d", "/e"} {
		if _, err := copyTree(t, from, source, to, "/", false); err == nil {
			t.Errorf("%s: copied through a link", source)
		}
	}
	if blob, err := os.ReadFile(filepath.Join(outside, "secret")); err != nil || string(blob) != "secret" {
		t.Errorf("outside: %q, %v", blob, err)
	}
}

func TestCopyModes(t *testing.T) {
	dir, from := tree(t, "d/a", "d/s")
	if err := os.Chmod(filepath.Join(dir, "d/s"), 0o755|fs.ModeSetuid); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(dir, "d/fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(filepath.Join(dir, "d/a"), now, now); err != nil {
		t.Fatal(err)
	}
	out, to := tree(t)
	warnings, err := copyTree(t, from, "/d", to, "/x", false)
	if err != nil || len(warnings) != 1 || !strings.Contains(warnings[0], `"fifo"`) {
		t.Errorf("%v, %q", err, warnings)
	}
	info, err := os.Stat(filepath.Join(out, "x/a"))
	if err != nil || info.Mode() != 0o640 || !info.ModTime().Equal(now) {
		t.Errorf("%v, %v", info, err)
	}
	// Anybody in the container may have made it, and it would be root's here.
	if info, err := os.Stat(filepath.Join(out, "x/s")); err != nil || info.Mode() != 0o755 {
		t.Errorf("%v, %v", info, err)
	}
}
