package docs

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"caisson/test/image"
)

// appImage is what the pages call app, and what their image.tar has.
const appImage = "docker.io/library/app:latest"

// shellBlock is a fenced block of language sh.
//
//	<!-- not run here: why -->   before it: it is not run, and the test says why
//	```text                      right after it: what it prints, whatever its exit code;
//	                             numbers and names made of hexadecimal digits may differ
type shellBlock struct {
	page, script, reason string
	prints               *string
}

var shellFence = regexp.MustCompile("(?ms)(?:^ *<!-- not run here: ([^\n]+) -->\n)?^ *```sh\n(.*?)^ *```$(?:\n+ *```text\n(.*?)^ *```$)?")

func shellBlocks(t *testing.T, page string) []shellBlock {
	t.Helper()
	text := read(t, page)
	var found []shellBlock
	for _, m := range shellFence.FindAllStringSubmatchIndex(text, -1) {
		part := func(i int) string {
			if m[2*i] < 0 {
				return ""
			}
			return text[m[2*i]:m[2*i+1]]
		}
		b := shellBlock{page: page, reason: part(1), script: part(2)}
		if m[6] >= 0 {
			prints := part(3)
			b.prints = &prints
		}
		found = append(found, b)
	}
	if n := strings.Count(text, "```sh\n"); n != len(found) {
		t.Fatalf("%s: %d of %d blocks of shell are understood", page, len(found), n)
	}
	return found
}

// pages are the README, CONTRIBUTING, and those of docs/, by their paths from there.
func pages(t *testing.T) []string {
	t.Helper()
	found, err := filepath.Glob("../../../docs/*.md")
	if err != nil || len(found) < 5 {
		t.Fatalf("pages %q, %v", found, err)
	}
	for i := range found {
		found[i] = filepath.Base(found[i])
	}
	return append([]string{"../README.md", "../CONTRIBUTING.md"}, found...)
}

// TestShellBlocks runs the blocks of shell of these pages, those of a page in order in one session of bash, as root, with the usual directories and sockets, a
// network for --net cni, and image.tar in the working directory. A caissond runs unless
// the page starts its own.
func TestShellBlocks(t *testing.T) {
	ran := 0
	var not []string
	for _, page := range pages(t) {
		var run []shellBlock
		for _, b := range shellBlocks(t, page) {
			if b.reason == "" {
				run = append(run, b)
			} else {
				not = append(not, fmt.Sprintf("%s: %s: %s", filepath.Base(page), b.reason, strings.ReplaceAll(strings.TrimSpace(b.script), "\n", "; ")))
			}
		}
		ran += len(run)
		if len(run) > 0 {
			t.Run(filepath.Base(page), func(t *testing.T) { runBlocks(t, run) })
		}
	}
	t.Logf("%d blocks were run, %d were not:\n%s", ran, len(not), strings.Join(not, "\n"))
}

const docsNetwork = `{"cniVersion": "1.0.0", "name": "docs", "plugins": [{
	"type": "bridge", "bridge": "docs0", "isDefaultGateway": true,
	"ipam": {"type": "host-local", "ranges": [[{"subnet": "198.18.1.0/24"}]]}
}]}
`

// session runs the blocks that its arguments name. What they started in the background
// ends with it. A daemon that a block has started is waited for, as a reader would, and no
// other is started meanwhile.
const session = `trap 'kill $(jobs -p) && wait' EXIT
for block; do
	if [[ -e $block.prints ]]; then set +e; else set -e; fi
	. "$block" >"$block.out" 2>&1
	set +e
	if grep -q '^caissond.*&$' "$block"; then
		for ((i = 0; i < 600; i++)); do caisson info --start-daemon=false >/dev/null 2>&1 && break; sleep 0.05; done
	fi
	touch "$block.done"
done
caisson rm -f $(caisson ps -aq) >/dev/null 2>&1
caisson sandbox rm -f $(caisson sandbox ls -q) >/dev/null 2>&1
true
`

func runBlocks(t *testing.T, blocks []shellBlock) {
	n := newNode(t)
	if err := image.WriteFile(filepath.Join(n.dir, "image.tar"), image.Options{Ref: appImage}); err != nil {
		t.Fatal(err)
	}
	n.write("/etc/caisson/config.toml", "[runtime]\ncgroup_parent = \"/"+filepath.Base(n.dir)+"\"\n")
	n.write("/etc/cni/net.d/10-docs.conflist", docsNetwork)
	t.Cleanup(func() {
		for _, bridge := range []string{"docs0", "caisson0"} { // the second is the quick start's
			_ = exec.Command("ip", "link", "delete", bridge).Run() // there may be none
		}
		if err := errors.Join(os.RemoveAll("/etc/cni"), os.RemoveAll("/etc/caisson")); err != nil {
			t.Error(err)
		}
	})
	if blocks[0].page == "images.md" {
		n.serveRegistries()
	}
	daemonIn := func(b shellBlock) bool { return regexp.MustCompile(`(?m)^caissond.*&$`).MatchString(b.script) }
	if !slices.ContainsFunc(blocks, daemonIn) {
		n.serve("caissond", "/run/caisson/caissond.sock")
		n.run("caisson image import image.tar")
	}
	var names []string
	for i, b := range blocks {
		name := filepath.Join(n.dir, fmt.Sprint("block-", i))
		n.write(name, b.script)
		if b.prints != nil {
			n.write(name+".prints", *b.prints)
		}
		names = append(names, name)
	}
	n.write(filepath.Join(n.dir, "session"), session)
	start := time.Now()
	cmd := n.command("bash session " + strings.Join(names, " "))
	out, err := cmd.CombinedOutput()
	t.Logf("%d blocks in %v", len(blocks), time.Since(start).Round(10*time.Millisecond))
	for i, b := range blocks {
		printed, _ := os.ReadFile(names[i] + ".out") // a session that has ended before makes none
		if _, derr := os.Stat(names[i] + ".done"); derr != nil {
			t.Fatalf("%s: this block failed, %v:\n%s\n%s%s", b.page, err, b.script, printed, out)
		}
		if b.prints != nil && variable.ReplaceAllString(string(printed), "N") != variable.ReplaceAllString(*b.prints, "N") {
			t.Errorf("%s: this block\n%s\nprints\n%s\nthe page says\n%s", b.page, b.script, printed, *b.prints)
		}
	}
	if err != nil {
		t.Errorf("session: %v: %s", err, out)
	}
}

// variable is what differs from run to run.
var variable = regexp.MustCompile(`\b(\d+|[0-9a-f]{12,})\b`)

// excuse is why a block is not run here, and what runs it: a target of make, a test that
// may be elsewhere, or whatever a file or directory has.
var excuse = regexp.MustCompile(`; (?:make ([\w-]+)|(Test\w+)(?: of ([\w/]+))?|([\w./]+/[\w./]+)) runs it$`)

// TestExcuses: what is said to run a block is there.
func TestExcuses(t *testing.T) {
	const root = "../../.."
	makefile, err := os.ReadFile(filepath.Join(root, "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	for _, page := range pages(t) {
		for _, b := range shellBlocks(t, page) {
			m := excuse.FindStringSubmatch(b.reason)
			if b.reason == "" {
				continue
			} else if m == nil {
				t.Errorf("%s: %q does not end with what runs it instead, as in `; make test-cri runs it`", page, b.reason)
				continue
			}
			target, test, dir, path := m[1], m[2], m[3], m[4]
			known := target != "" && strings.Contains(string(makefile), "\n"+target+":")
			if path != "" {
				_, err := os.Stat(filepath.Join(root, path))
				known = err == nil
			}
			if test != "" && dir != "" {
				known = hasTest(t, dir, test)
			} else if test != "" {
				known = hasTest(t, "test/integration", test) || hasTest(t, "test/integration/docs", test)
			}
			if !known {
				t.Errorf("%s: %q: that is nowhere", page, b.reason)
			}
		}
	}
}

// TestShellIsFenced: a command that is only indented is run by nobody.
func TestShellIsFenced(t *testing.T) {
	command := regexp.MustCompile(`(?m)^ {4,}(make|caisson|caissond|ctr|curl|go|systemctl|apt|apt-get|dpkg|kubectl|git) .*$`)
	for _, page := range pages(t) {
		text := regexp.MustCompile("(?ms)^ *```\\w*\n.*?^ *```$").ReplaceAllString(read(t, page), "")
		for _, line := range command.FindAllString(text, -1) {
			t.Errorf("%s: put this into a block that begins with ```sh, so that a test runs it: %s", page, strings.TrimSpace(line))
		}
	}
}
