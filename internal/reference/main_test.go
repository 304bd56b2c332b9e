package main

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"caisson/internal/daemon"
)

func read(t *testing.T, dir string) map[string]string {
	t.Helper()
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	pages := map[string]string{}
	for _, f := range files {
		text, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if err != nil {
			t.Fatal(err)
		}
		pages[f.Name()] = string(text)
	}
	return pages
}

func docsPage(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("../../docs", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestReferenceIsCurrent: docs/reference is what the commands say.
func TestReferenceIsCurrent(t *testing.T) {
	fresh, err := pages()
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{}
	for name, text := range fresh {
		want[name] = string(text)
	}
	if diff := cmp.Diff(want, read(t, "../../docs/reference")); diff != "" {
		t.Errorf("docs/reference is stale: run `make docs` and commit it\n%s", diff)
	}
}

// TestConfigurationIsCurrent: docs/configuration.md is what the configuration's source says.
func TestConfigurationIsCurrent(t *testing.T) {
	fresh, err := configuration("../config")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(fresh), docsPage(t, "configuration.md")); diff != "" {
		t.Errorf("docs/configuration.md is stale: run `make docs` and commit it\n%s", diff)
	}
}

// TestEachKeyIsDescribed: no key is without a word on it, and each flag of the daemon is
// beside its key.
func TestEachKeyIsDescribed(t *testing.T) {
	tables, err := keys("../config")
	if err != nil {
		t.Fatal(err)
	}
	flags := map[string]bool{"--config": true, "--help": true, "--version": true} // these have none
	for _, table := range tables {
		if table.Text == "" && table.Name != "" {
			t.Errorf("[%s] is not described", table.Name)
		}
		for _, key := range table.Keys {
			if key.Text == "" {
				t.Errorf("%s of [%s] is not described", key.Name, table.Name)
			}
			flags[key.Flag] = true
		}
	}
	daemon.Command().Flags().VisitAll(func(f *pflag.Flag) {
		if !flags["--"+f.Name] {
			t.Errorf("--%s belongs to no key", f.Name)
		}
	})
}

// TestEveryCommandIsDescribed: a command that does something has an example.
func TestEveryCommandIsDescribed(t *testing.T) {
	var check func(cmd *cobra.Command)
	check = func(cmd *cobra.Command) {
		switch {
		case cmd.Name() == "help" || strings.Contains(cmd.CommandPath(), " completion"):
			return // cobra's own
		case cmd.Short == "", cmd.Example == "" && cmd.Name() != "caissond":
			t.Errorf("%s has no description or no example", cmd.CommandPath())
		}
		for _, sub := range cmd.Commands() {
			check(sub)
		}
	}
	for _, cmd := range programs() {
		check(cmd)
	}
}

func TestRunWritesBoth(t *testing.T) {
	t.Setenv("SOURCE_DATE_EPOCH", "1000000000")
	dir := t.TempDir()
	markdown, man, again := filepath.Join(dir, "md"), filepath.Join(dir, "man"), filepath.Join(dir, "again")
	for _, d := range []string{markdown, man, again} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	stale := filepath.Join(markdown, "caisson_gone.md")
	if err := os.WriteFile(stale, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := run(markdown, man); err != nil {
		t.Fatal(err)
	}
	if err := run("", again); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(stale); err == nil {
		t.Error("the page of a command that is gone is still there")
	}
	page, err := os.ReadFile(filepath.Join(man, "caisson-sandbox-apply.1"))
	if err != nil || !bytes.Contains(page, []byte("Sep 2001")) || !bytes.Contains(page, []byte("manifest")) {
		t.Errorf("the man page: %v\n%s", err, page)
	}
	if diff := cmp.Diff(read(t, man), read(t, again)); diff != "" {
		t.Error(diff)
	}
	if _, err := os.Stat(filepath.Join(man, "caissond.8")); err != nil {
		t.Error(err)
	}
}

// TestComparisonNamesCommands: what docs/comparison.md calls a command is one.
func TestComparisonNamesCommands(t *testing.T) {
	page := docsPage(t, "comparison.md")
	named := regexp.MustCompile("`caisson ([a-z -]+)`").FindAllStringSubmatch(page, -1)
	if len(named) < 20 {
		t.Errorf("only %d commands are named", len(named))
	}
	root := programs()["1"]
	for _, m := range named {
		words := strings.Fields(m[1])
		if cmd, rest, err := root.Find(words); err != nil || len(rest) > 0 || cmd == root {
			t.Errorf("there is no caisson %s: %v", m[1], err)
		}
	}
}

// TestComparisonGapsAreGaps: flags that docs/comparison.md says are missing are.
func TestComparisonGapsAreGaps(t *testing.T) {
	page := docsPage(t, "comparison.md")
	gaps := regexp.MustCompile("(?s)\n- Of `(\\w+)`: ([^.;]+)").FindAllStringSubmatch(page, -1)
	if len(gaps) < 2 {
		t.Fatalf("gaps %q", gaps)
	}
	for _, gap := range gaps {
		cmd, _, err := programs()["1"].Find([]string{gap[1]})
		if err != nil {
			t.Fatal(err)
		}
		for _, flag := range regexp.MustCompile("`--([a-z-]+)`").FindAllStringSubmatch(gap[2], -1) {
			if cmd.Flags().Lookup(flag[1]) != nil {
				t.Errorf("%s has --%s, and docs/comparison.md says that it has not", cmd.CommandPath(), flag[1])
			}
		}
	}
}
