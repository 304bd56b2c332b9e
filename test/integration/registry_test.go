package integration

import (
	"encoding/pem"
	"fmt"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"caisson/test/daemon"
	"caisson/test/distribution"
	"caisson/test/harness"
	"caisson/test/image"
)

// startRegistry starts docker-registry, and a Docker configuration that is empty.
func startRegistry(t *testing.T, h *harness.Host, auth func(dir string) (string, error)) *distribution.Registry {
	t.Helper()
	dir := t.TempDir()
	program, err := h.Binary("docker-registry")
	if err != nil {
		t.Fatal(err)
	}
	text, err := auth(dir)
	if err != nil {
		t.Fatal(err)
	}
	r, err := distribution.Start(h.Context(30*time.Second), program, dir, text)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Setenv("DOCKER_CONFIG", filepath.Join(dir, "docker"))
	return r
}

func login(t *testing.T, h *harness.Host, registry, password string) harness.Result {
	t.Helper()
	return h.TryInput(strings.NewReader(password+"\n"), "caisson", "login", "-u", distribution.User, "--password-stdin", registry)
}

// importAs imports the image for a registry's repository.
func importAs(t *testing.T, h *harness.Host, ref string, files map[string]string) {
	t.Helper()
	archive := filepath.Join(t.TempDir(), "image.tar")
	if err := image.WriteFile(archive, image.Options{Ref: ref, Cmd: []string{"echo", "from the registry"}, Files: files}); err != nil {
		t.Fatal(err)
	}
	h.Caisson("image", "import", archive)
}

func wantFailure(t *testing.T, res harness.Result, text string) {
	t.Helper()
	if res.Code != 1 || !strings.Contains(res.Stderr, text) {
		t.Errorf("want a failure with %q: %+v", text, res)
	}
}

// tomlOfImages are the examples of docs/images.md.
func tomlOfImages(t *testing.T) []string {
	t.Helper()
	text, err := os.ReadFile("testdata/images.md") // a link, for tests that run elsewhere
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, after := range strings.Split(string(text), "\n```toml\n")[1:] {
		block, _, _ := strings.Cut(after, "```\n")
		found = append(found, block)
	}
	if len(found) != 3 {
		t.Fatalf("docs/images.md has %d examples in TOML", len(found))
	}
	return found
}

// TestRegistry pushes and pulls with Basic authentication: with credentials of the
// Docker configuration, of a helper, through a mirror, by digest.
func TestRegistry(t *testing.T) {
	h := harness.New(t, daemon.Options{})
	h.StartDaemon()
	r := startRegistry(t, h, distribution.Basic)
	name := r.Host + "/team/demo:1"
	importAs(t, h, name, nil)
	digest := strings.TrimSpace(h.Caisson("image", "inspect", "-f", "{{.digest}}", name))

	wantFailure(t, h.TryCaisson("image", "push", name), "caisson login "+r.Host)
	wantFailure(t, login(t, h, r.Host, "wrong"), "does not take this name and password")
	if res := login(t, h, r.Host, distribution.Password); res.Code != 0 || res.Stdout != "logged in to "+r.Host+"\n" {
		t.Fatalf("login: %+v", res)
	}
	if res := h.TryCaisson("image", "push", name); res.Code != 0 || res.Stdout != name+"@"+digest+"\n" || !strings.Contains(res.Stderr, ": done ") {
		t.Errorf("push: %+v", res)
	}
	h.Caisson("image", "rm", name)
	if res := h.TryCaisson("image", "pull", name); res.Code != 0 || res.Stdout != name+"\n" || !strings.Contains(res.Stderr, "digest: "+digest+"\n") || !strings.Contains(res.Stderr, ": unpacked ") {
		t.Errorf("pull: %+v", res)
	}
	h.Caisson("image", "rm", name)
	if out := h.Caisson("run", "--rm", name); out != "from the registry\n" {
		t.Errorf("run: %q", out)
	}
	byDigest := r.Host + "/team/demo@" + digest
	if res := h.TryCaisson("image", "pull", "-q", byDigest); res.Code != 0 || res.Stdout != byDigest+"\n" || res.Stderr != "" {
		t.Errorf("pull by digest: %+v", res)
	}
	h.Caisson("image", "rm", name, byDigest)

	hosts := t.TempDir()
	mirror := strings.NewReplacer("https://registry-1.docker.io", "http://127.0.0.1:1", "https://mirror.example", "http://"+r.Host).Replace(tomlOfImages(t)[0])
	mustWrite(t, filepath.Join(hosts, "registry.example", "hosts.toml"), 0o600, mirror)
	if out := h.Caisson("image", "pull", "-q", "--hosts-dir", hosts, "registry.example/team/demo:1"); out != "registry.example/team/demo:1\n" {
		t.Errorf("pull from a mirror: %q", out)
	}
	h.Caisson("image", "rm", "registry.example/team/demo:1")

	wantFailure(t, h.TryCaisson("image", "pull", r.Host+"/team/demo:2"), "is not in its registry")
	wantFailure(t, h.TryCaisson("image", "pull", "--platform", "linux/s390x,linux/amd64", "--all-platforms", name), "exclude each other")
	wantFailure(t, h.TryCaisson("image", "pull", "--platform", "linux/s390x", name), "not there for linux/s390x")
	h.Caisson("image", "rm", name)
	wantFailure(t, h.TryCaisson("image", "pull", "--platform", "no/such/thing/here", name), "write platforms like")
	wantFailure(t, h.TryCaisson("image", "push", "nothing"), `no image "nothing"`)

	h.Caisson("logout", r.Host)
	term := h.Terminal("caisson", "login", r.Host)
	term.Expect("Username: ")
	term.Type(distribution.User + "\n")
	term.Expect("Password: ")
	term.Type(distribution.Password + "\n")
	if code, out := term.Wait(); code != 0 || strings.Contains(out, distribution.Password) || !strings.Contains(out, "logged in to "+r.Host) {
		t.Errorf("login on a terminal: exit code %d:\n%s", code, out)
	}
	term = h.Terminal("caisson", "login", "-u", distribution.User, r.Host)
	term.Expect("Password: ")
	term.Type("\x03")
	if code, out := term.Wait(); code == 0 || !strings.Contains(out, "interrupted") {
		t.Errorf("login that was interrupted: exit code %d:\n%s", code, out)
	}
	h.Caisson("logout", r.Host)
	wantFailure(t, h.TryCaisson("image", "pull", name), "caisson login "+r.Host)
	bin := t.TempDir()
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	config := filepath.Join(os.Getenv("DOCKER_CONFIG"), "config.json")
	mustWrite(t, config, 0o600, fmt.Sprintf(`{"credHelpers": {%q: "test"}}`, r.Host))
	helper := filepath.Join(bin, "docker-credential-test")
	mustWrite(t, helper, 0o700, fmt.Sprintf("#!/bin/sh\nread -r server\necho '{\"ServerURL\":\"'$server'\",\"Username\":%q,\"Secret\":%q}'\n", distribution.User, distribution.Password))
	h.Caisson("image", "pull", "-q", name)
	mustWrite(t, helper, 0o700, "#!/bin/sh\necho out of order >&2\nexit 1\n")
	h.Caisson("image", "rm", name)
	wantFailure(t, h.TryCaisson("image", "pull", name), "cannot be had")
	mustWrite(t, config, 0o600, "{")
	wantFailure(t, h.TryCaisson("image", "pull", name), config)
}

func mustWrite(t *testing.T, path string, mode os.FileMode, text string) {
	t.Helper()
	err := os.MkdirAll(filepath.Dir(path), 0o700)
	if err == nil {
		err = os.WriteFile(path, []byte(text), mode)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestRegistryCertificates logs in, pushes and pulls with a certificate that no CA has
// signed: any will do on loopback, unless a hosts.toml is about the registry.
func TestRegistryCertificates(t *testing.T) {
	h := harness.New(t, daemon.Options{})
	h.StartDaemon()
	r := startRegistry(t, h, distribution.Basic)
	server := httptest.NewTLSServer(&httputil.ReverseProxy{Rewrite: func(req *httputil.ProxyRequest) {
		req.SetURL(&url.URL{Scheme: "http", Host: r.Host})
		req.SetXForwarded()
	}})
	t.Cleanup(server.Close)
	address := server.Listener.Addr().String()
	name := address + "/team/demo:1"
	importAs(t, h, name, nil)
	if res := login(t, h, address, distribution.Password); res.Code != 0 {
		t.Errorf("login on loopback: %+v", res)
	}
	h.Caisson("logout", address)

	hosts, ca := t.TempDir(), filepath.Join(t.TempDir(), "ca.pem")
	mustWrite(t, ca, 0o600, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})))
	file := filepath.Join(hosts, address, "hosts.toml")
	with := func(text string, args ...string) harness.Result {
		mustWrite(t, file, 0o600, text)
		return h.TryInput(strings.NewReader(distribution.Password+"\n"), "caisson", append(args, "--hosts-dir", hosts)...)
	}
	login := []string{"login", "-u", distribution.User, "--password-stdin", address}
	push, pull := []string{"image", "push", "-q", name}, []string{"image", "pull", "-q", name}
	https := "server = \"https://" + address + "\"\n"
	for _, args := range [][]string{login, push, pull} {
		wantFailure(t, with(https, args...), "skip_verify = true, in "+file)
	}
	example := strings.NewReplacer("registry.example:5000", address, "/etc/ssl/certs/registry.example.pem", ca).Replace(tomlOfImages(t)[1])
	for _, text := range []string{example, https + "skip_verify = true\n"} {
		for _, args := range [][]string{login, push, pull} {
			if res := with(text, args...); res.Code != 0 {
				t.Errorf("%q with\n%s%+v", args, text, res)
			}
			if args[1] == "push" {
				h.Caisson("image", "rm", name)
			}
		}
		h.Caisson("logout", address)
	}
}

// TestRegistryStock does it with tokens, beside a stock containerd.
func TestRegistryStock(t *testing.T) {
	h := harness.New(t, daemon.Options{Engine: daemon.EngineStock})
	h.StartDaemon()
	var tokens *distribution.Tokens
	r := startRegistry(t, h, func(dir string) (_ string, err error) {
		if tokens, err = distribution.ServeTokens(dir); err != nil {
			return "", err
		}
		t.Cleanup(tokens.Close)
		return tokens.Auth(), nil
	})
	name := r.Host + "/team/demo:1"
	importAs(t, h, name, nil)
	wantFailure(t, login(t, h, r.Host, "wrong"), "does not take this name and password")
	wantFailure(t, h.TryCaisson("image", "push", name), "caisson login "+r.Host)
	if res := login(t, h, r.Host, distribution.Password); res.Code != 0 {
		t.Fatalf("login: %+v", res)
	}
	before := tokens.Given()
	h.Caisson("image", "push", name)
	if tokens.Given() == before {
		t.Error("nobody asked for a token")
	}
	h.Caisson("image", "rm", name)
	h.Caisson("image", "pull", name)
	if out := h.Caisson("run", "--rm", name); out != "from the registry\n" {
		t.Errorf("run: %q", out)
	}
}
