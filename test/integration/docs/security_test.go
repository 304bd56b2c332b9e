package docs

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	testName = regexp.MustCompile("`([a-z/]+)\\.((?:Test|Fuzz)[A-Za-z0-9]+)`")
	claim    = regexp.MustCompile(`(?m)^\| (.*) \| (.*) \|$`)
)

// TestSecurityClaimsHaveTests: each claim of docs/security.md names tests that there
// are.
func TestSecurityClaimsHaveTests(t *testing.T) {
	page := read(t, "security.md")
	_, claims, found := strings.Cut(page, "\n## Claims\n")
	claims, _, ended := strings.Cut(claims, "\n## ")
	if !found || !ended {
		t.Fatal("no claims")
	}
	rows := claim.FindAllStringSubmatch(claims, -1)
	if len(rows) < 10 {
		t.Errorf("%d claims", len(rows))
	}
	for _, row := range rows {
		if row[1] == "claim" || row[1] == "---" {
			continue
		}
		names := testName.FindAllStringSubmatch(row[2], -1)
		if rest := strings.Trim(testName.ReplaceAllString(row[2], ""), ", "); len(names) == 0 || rest != "" {
			t.Errorf("claim %q has the tests %q", row[1], row[2])
		}
	}
	for _, name := range testName.FindAllStringSubmatch(page, -1) {
		if !hasTest(t, name[1], name[2]) {
			t.Errorf("there is no test %s in %s", name[2], name[1])
		}
	}
}

func hasTest(t *testing.T, dir, name string) bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("../../..", dir, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		source, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(source), "\nfunc "+name+"(") {
			return true
		}
	}
	return false
}
