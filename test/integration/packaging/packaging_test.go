// Package packaging installs Caisson as users do, from the Debian package and with make
// install, and runs it under a real systemd, in a throwaway copy of this machine.
package packaging

import (
	"bytes"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"caisson/test/harness"
	"caisson/test/image"
)

// pack makes of bin/, which make build has left, what a release has: its Debian package
// with script deb, its archive with script archive.
func pack(t *testing.T, script, dir, version string) string {
	t.Helper()
	cmd := exec.Command("../../../script/"+script, dir)
	cmd.Env = append(os.Environ(), "VERSION="+version, "SOURCE_DATE_EPOCH=1700000000", "DEBFLAGS=-Znone", "GZIPLEVEL=-1")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("script/%s: %v\n%s", script, err, &stderr)
	}
	return strings.TrimSpace(string(out))
}

var underSystemd = regexp.MustCompile("(?ms)^<!-- not run here: needs systemd; test/integration/packaging runs it -->\n```sh\n(.*?)^```$")

// instructions are what docs/operations.md says to do.
func instructions(t *testing.T) (install, archive, upgrade, backup, purge string) {
	t.Helper()
	text, err := os.ReadFile("../../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	found := underSystemd.FindAllStringSubmatch(string(text), -1)
	if len(found) != 5 {
		t.Fatalf("%d blocks of shell for here in docs/operations.md, not 5", len(found))
	}
	return found[0][1], found[1][1], found[2][1], found[3][1], found[4][1]
}

// TestPackage installs, upgrades, removes and purges the package as docs/operations.md
// says, under systemd, while a container runs: nothing of that ends it. Where the package
// is gone, it installs a release's archive.
func TestPackage(t *testing.T) {
	install, archive, upgrade, backup, purge := instructions(t)
	m := boot(t)
	for dir, version := range map[string]string{"first": "v0.1.0", "second": "v0.1.0-2-gabcdef0"} {
		if err := os.Mkdir(filepath.Join(m.share, dir), 0o755); err != nil {
			t.Fatal(err)
		}
		pack(t, "deb", filepath.Join(m.share, dir), version)
	}
	if err := image.WriteFile(filepath.Join(m.share, "image.tar"), image.Options{}); err != nil {
		t.Fatal(err)
	}
	m.run("set -e; cd /mnt/first\n" + install)
	m.expect("dpkg-query -W -f='${Version}' caisson", "0.1.0")
	m.expect("systemctl is-enabled caissond && systemctl is-active caissond", "enabled\nactive")
	m.expect("systemd-analyze --man=no verify caissond.service 2>&1", "")
	m.expect("dpkg --verify caisson", "")
	m.expect(". /usr/share/bash-completion/completions/caisson && complete -p caisson | grep -o __start_caisson", "__start_caisson")

	m.run("caisson image import /mnt/image.tar && caisson run -d --name c " + harness.Image + " sleep 1000")
	// When the container's first process was started says whether it is the same.
	const since = "caisson exec c cat /proc/1/stat | cut -d' ' -f22"
	started := m.run(since)
	const main = "systemctl show -P MainPID caissond"
	pid := m.run(main)

	m.run("printf '[log]\\nlevel = \"debug\"\\n' >>/etc/caisson/config.toml")
	m.run("set -e; cd /mnt/second\n" + upgrade)
	m.expect("dpkg-query -W -f='${Version}' caisson", "0.1.0+2.gabcdef0")
	m.expect("systemctl is-active caissond", "active")
	if now := m.run(main); now == pid {
		t.Errorf("after the upgrade the daemon is the old process %s", now)
	}
	m.expect(since, started)
	m.expect("tail -n 1 /etc/caisson/config.toml", `level = "debug"`)

	m.run("set -e\n" + backup)
	m.expect("tar -tf /root/caisson.tar var/lib/caisson/sandboxes.db etc/caisson/config.toml | wc -l", "2")
	m.expect(since, started)
	m.testWatchdog()
	m.expect(since, started)
	m.testWrongConfig()
	m.expect(since, started)

	process := m.run("pgrep -x sleep")
	if out := m.run("dpkg --remove caisson 2>&1"); !strings.Contains(out, "1 sandboxes go on running") {
		t.Errorf("removal says %s", out)
	}
	m.expect("ls /usr/bin/caisson* /lib/systemd/system/caisson* 2>/dev/null; ls /etc/caisson", "config.toml")
	m.run("set -e; cd /mnt/second\n" + install)
	m.expect("systemctl is-enabled caissond && systemctl is-active caissond", "enabled\nactive")
	// With cgroup v1, systemd has taken controllers' cgroups away with the unit, so
	// nothing more can be executed in it (docs/operations.md); but it runs.
	m.expect("pgrep -x sleep && caisson ps -q", process+"\nc")
	m.run("caisson rm -f c")

	if out := m.run("set -e; exec 2>&1\n" + purge); !strings.Contains(out, "stay in /var/lib/caisson") || strings.Contains(out, "go on running") {
		t.Errorf("purge says %s", out)
	}
	m.expect("ls -d /var/lib/caisson /etc/caisson /etc/systemd/system/*/caissond.service 2>/dev/null; pgrep -x caissond; ls /run/caisson/s", "")
	m.testArchive(archive)
}

// testArchive: an archive needs nothing of the package.
func (m *machine) testArchive(install string) {
	m.t.Helper()
	pack(m.t, "archive", m.share, "v0.1.0")
	m.run("set -e; cd /mnt\n" + install)
	m.expect("systemctl is-enabled caissond && systemctl is-active caissond", "enabled\nactive")
	m.expect("readlink /proc/$(systemctl show -P MainPID caissond)/exe", "/usr/local/bin/caissond")
	m.expect("systemd-analyze --man=no verify caissond.service 2>&1", "")
	m.run("/usr/local/bin/caisson image import /mnt/image.tar")
	m.expect("/usr/local/bin/caisson run --rm "+harness.Image+" echo hello", "hello")
}

// testWatchdog: systemd replaces a daemon that runs, and that nobody can reach.
func (m *machine) testWatchdog() {
	m.t.Helper()
	const restarts = "systemctl show -P NRestarts caissond"
	m.run("printf '[Service]\\nWatchdogSec=1s\\n' >/etc/systemd/system/caissond.service.d/watchdog.conf && systemctl daemon-reload && systemctl restart caissond")
	m.expect(restarts, "0")
	m.run("rm /run/caisson/sandboxer.sock")
	m.await(`[ "$(` + restarts + `)" != 0 ] && systemctl is-active caissond`)
	log, err := os.ReadFile(filepath.Join(m.share, "log"))
	if err != nil {
		m.t.Fatal(err)
	}
	for _, text := range []string{"the daemon does not answer itself", "SIGABRT"} {
		if !bytes.Contains(log, []byte(text)) {
			m.t.Errorf("no %q in the daemon's log", text)
		}
	}
	m.run("rm /etc/systemd/system/caissond.service.d/watchdog.conf && systemctl daemon-reload && systemctl restart caissond")
}

// testWrongConfig: a daemon whose configuration is wrong is not started over and over.
func (m *machine) testWrongConfig() {
	m.t.Helper()
	m.run("cp /etc/caisson/config.toml /tmp && echo 'colour = 1' >>/etc/caisson/config.toml")
	if out, err := m.try("systemctl restart caissond"); err == nil {
		m.t.Errorf("a wrong configuration: %s", out)
	}
	m.expect("systemctl show -P NRestarts -P ExecMainStatus -P ActiveState caissond", "0\n78\nfailed")
	m.run("cp /tmp/config.toml /etc/caisson/ && systemctl restart caissond")
}

// TestPackageIsTheSame: the same files make the same package, byte for byte.
func TestPackageIsTheSame(t *testing.T) {
	var packages [2][]byte
	for i := range packages {
		var err error
		if packages[i], err = os.ReadFile(pack(t, "deb", t.TempDir(), "v1.0.0")); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(packages[0], packages[1]) {
		t.Error("two packages of the same files differ")
	}
}

// TestMakeInstall: everything that make install puts somewhere make uninstall takes away.
func TestMakeInstall(t *testing.T) {
	dest := t.TempDir()
	run := func(target string) {
		cmd := exec.Command("make", "-s", "-o", "build", target, "DESTDIR="+dest, "PREFIX=/opt/caisson")
		cmd.Dir = "../../.."
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("make %s: %v\n%s", target, err, out)
		}
	}
	run("install")
	got := files(t, dest+"/opt/caisson")
	want := map[string]string{
		"bin/caisson": "-rwxr-xr-x", "bin/caissond": "-rwxr-xr-x", "bin/containerd-shim-caisson-v2": "-rwxr-xr-x",
		"lib/systemd/system/caissond.service":          "-rw-r--r--",
		"share/bash-completion/completions/caisson":    "-rw-r--r--",
		"share/zsh/site-functions/_caisson":            "-rw-r--r--",
		"share/fish/vendor_completions.d/caisson.fish": "-rw-r--r--",
	}
	pages, err := filepath.Glob("../../../build/man/*.[1-8]") // make docs has made them, or has not
	if err != nil {
		t.Fatal(err)
	}
	for _, page := range pages {
		want["share/man/man"+strings.TrimPrefix(filepath.Ext(page), ".")+"/"+filepath.Base(page)] = "-rw-r--r--"
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	unit, err := os.ReadFile(dest + "/opt/caisson/lib/systemd/system/caissond.service")
	if err != nil || !bytes.Contains(unit, []byte("\nExecStart=/opt/caisson/bin/caissond\n")) {
		t.Errorf("the unit, %v:\n%s", err, unit)
	}
	run("uninstall")
	if left := files(t, dest); len(left) > 0 {
		t.Errorf("left after make uninstall: %v", left)
	}
}

// files are the modes of all files below a directory.
func files(t *testing.T, dir string) map[string]string {
	t.Helper()
	found := map[string]string{}
	if err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		found[name] = info.Mode().String()
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return found
}
