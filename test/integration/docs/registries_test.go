package docs

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"caisson/test/distribution"
	"caisson/test/harness"
	"caisson/test/image"
	"caisson/test/registry"
)

const certs = "/etc/containerd/certs.d"

// serveRegistries serves what docs/images.md is about: a Docker Hub that has busybox, and
// registry.example, whose user has a password in the file token of the working directory.
func (n *node) serveRegistries() {
	n.t.Helper()
	must := func(err error) {
		n.t.Helper()
		if err != nil {
			n.t.Fatal(err)
		}
	}
	must(os.MkdirAll(certs, 0o755))
	n.t.Cleanup(func() { must(os.RemoveAll(certs)) })
	hub := registry.New()
	_, err := hub.Add(image.Options{Ref: "docker.io/library/busybox:latest"})
	must(err)
	stop, err := hub.Serve(certs)
	must(err)
	n.t.Cleanup(func() { must(stop()) })

	auth, err := distribution.Basic(n.dir)
	must(err)
	example, err := distribution.Start(harness.Context(n.t, time.Minute), "../../../build/docker-registry", n.dir, auth)
	must(err)
	n.t.Cleanup(func() { must(example.Close()) })
	n.serveTLS("registry.example", example.Host)

	n.write(filepath.Join(n.dir, "token"), distribution.Password)
	n.env = append(n.env, "DOCKER_CONFIG="+filepath.Join(n.dir, "docker"))
}

// serveTLS gives what is served at address a name, where HTTPS is expected.
func (n *node) serveTLS(name, address string) {
	n.t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:443") // of this network namespace
	if err != nil {
		n.t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(&url.URL{Scheme: "http", Host: address})
		r.SetXForwarded()
	}})
	server.Listener.Close()
	server.Listener, server.TLS = listener, &tls.Config{MinVersion: tls.VersionTLS12}
	server.StartTLS()
	n.t.Cleanup(server.Close)
	n.write(filepath.Join(certs, name, "hosts.toml"), fmt.Sprintf("server = \"https://%s\"\nskip_verify = true\n", name))

	const file = "/etc/hosts"
	before, err := os.ReadFile(file)
	if err != nil {
		n.t.Fatal(err)
	}
	n.write(file, string(before)+"127.0.0.1 "+name+"\n")
	n.t.Cleanup(func() { n.write(file, string(before)) })
}
