package main

import (
	"os"
	"path/filepath"
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
	var out strings.Builder
	if err := printReport(&out, path); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"failed   a pod bad\n         why\n", "skipped  absent\n", "panicked worse", "1 passed, 2 failed, 1 skipped, 0 pending in 2 s"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
	if strings.Contains(out.String(), "left out") {
		t.Error("a spec that was left out is shown")
	}
}
