package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestWithDigest(t *testing.T) {
	old, others := "sha256:"+strings.Repeat("0", 64), "sha256:"+strings.Repeat("1", 64)
	binary := "\x7fELF k8s-staging-cri-tools/test-image-digest@" + old + "k8s-staging-cri-tools/win-test-image-digest@" + old
	from, to := filepath.Join(t.TempDir(), "from"), filepath.Join(t.TempDir(), "to")
	if err := os.WriteFile(from, []byte(binary), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := withDigest(from, to, others); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(to)
	if want := strings.Replace(binary, old, others, 1); err != nil || string(got) != want {
		t.Errorf("got %q, %v", got, err)
	}
}

// TestReport counts what ran, and shows what did not pass.
func TestReport(t *testing.T) {
	report := `[{"RunTime": 2000000000, "SpecReports": [
		{"LeafNodeType": "It", "LeafNodeText": "good", "State": "passed"},
		{"LeafNodeType": "It", "LeafNodeText": "left out", "State": "skipped"},
		{"LeafNodeType": "It", "LeafNodeText": "absent", "State": "skipped", "Failure": {"Message": "no AppArmor"}},
		{"ContainerHierarchyTexts": ["a", "pod"], "LeafNodeType": "It", "LeafNodeText": "bad", "State": "failed", "Failure": {"Message": "why\nmore"}},
		{"LeafNodeType": "It", "LeafNodeText": "worse", "State": "panicked"}]}]`
	path := filepath.Join(t.TempDir(), "report.json")
	if err := os.WriteFile(path, []byte(report), 0o644); err != nil {
		t.Fatal(err)
	}
	suites, err := readReport(path)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	printReport(&out, suites)
	for _, want := range []string{"failed   a pod bad\n         why\n", "skipped  absent\n", "panicked worse", "1 passed, 2 failed, 1 skipped, 0 pending in 2 s"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
	if strings.Contains(out.String(), "left out") {
		t.Error("a spec that was left out is shown")
	}
}

// TestCompare: worse is what passed there and does not here.
func TestCompare(t *testing.T) {
	it := func(name, state string) spec { return spec{LeafNodeType: "It", LeafNodeText: name, State: state} }
	why := func(s spec) spec { s.Failure.Message = "why"; return s }
	reference := []spec{it("good", "passed"), it("bad", "failed"), why(it("absent", "skipped")), it("left out", "skipped")}
	tests := map[string]struct {
		here  []spec
		part  bool
		worse bool
		want  string
	}{
		"same":         {here: reference, want: "3 of 3 specs have the same result, 0 are worse"},
		"fails":        {here: []spec{it("good", "failed"), reference[1], reference[2]}, worse: true, want: "passed there, failed here"},
		"panics":       {here: []spec{it("good", "panicked"), reference[1], reference[2]}, worse: true, want: "passed there, panicked here"},
		"skipped":      {here: []spec{why(it("good", "skipped")), reference[1], reference[2]}, want: "2 of 3 specs have the same result, 0 are worse"},
		"not skipped":  {here: []spec{reference[0], reference[1], it("absent", "failed")}, worse: true, want: "skipped there, failed here"},
		"better":       {here: []spec{reference[0], it("bad", "passed"), reference[2]}, want: "failed there, passed here"},
		"not run":      {here: []spec{it("good", "skipped"), reference[1], reference[2]}, worse: true, want: "passed there, not run here"},
		"a part":       {here: []spec{it("good", "skipped"), reference[1]}, part: true, want: "1 of 1 specs"},
		"new fails":    {here: append([]spec{it("new", "failed")}, reference...), worse: true, want: "absent there, failed here"},
		"no test runs": {here: append([]spec{{LeafNodeType: "BeforeSuite", State: "failed"}}, reference...), worse: true, want: "unknown there, failed here"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var out strings.Builder
			err := compare(&out, []suite{{SpecReports: reference}}, []suite{{SpecReports: tt.here}}, tt.part)
			if (err != nil) != tt.worse || !strings.Contains(out.String(), tt.want) {
				t.Errorf("worse %t, want %t and %q; %v\n%s", err != nil, tt.worse, tt.want, err, out.String())
			}
		})
	}
	if err := compare(&strings.Builder{}, nil, []suite{{SpecReports: reference}}, false); err == nil {
		t.Error("compared with an empty report")
	}
}

// TestTable has a row for each spec that any run ran.
func TestTable(t *testing.T) {
	dir := t.TempDir()
	var paths []string
	for name, report := range map[string]string{
		"a": `[{"SpecReports": [{"LeafNodeType": "It", "LeafNodeText": "good|bad", "State": "passed"}]}]`,
		"b": `[{"SpecReports": [{"LeafNodeType": "It", "LeafNodeText": "other", "State": "skipped", "Failure": {"Message": "why"}}]}]`,
	} {
		path := filepath.Join(dir, name, "report.json")
		if err := os.Mkdir(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(report), 0o644); err != nil {
			t.Fatal(err)
		}
		paths = append(paths, path)
	}
	slices.Sort(paths)
	var out strings.Builder
	if err := printTable(&out, paths); err != nil {
		t.Fatal(err)
	}
	want := "| spec | a | b |\n| --- | --- | --- |\n| good\\|bad | passed | not run |\n| other | not run | skipped |\n"
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
}
