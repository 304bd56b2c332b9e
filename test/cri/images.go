package main

import (
	"fmt"
	"os"
	"runtime"
	"strings"

	"github.com/opencontainers/go-digest"

	"caisson/test/image"
	"caisson/test/registry"
)

// The names that critest has for the images it pulls.
const (
	e2e     = "registry.k8s.io/e2e-test-images/"
	staging = "gcr.io/k8s-staging-cri-tools/"

	pauseImage = "registry.k8s.io/pause:3.9"
)

const group = "root:x:0:\nwww-data:x:33:\nnogroup:x:65534:\ndefault-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n"

const passwd = "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www-data:/var/www:/bin/false\nnobody:x:65534:65534:nobody:/:/bin/false\n" +
	"default-user:x:1000:1000::/home/default-user:/bin/sh\n"

// fill makes the images. It returns the digest of the one that critest pulls by
// a digest.
func fill(r *registry.Registry, busybox, webserver string) (digest.Digest, error) {
	server, err := os.ReadFile(webserver)
	if err != nil {
		return "", fmt.Errorf("web server: %w", err)
	}
	program := func(name, mode string, args ...string) image.Options {
		path := "/usr/sbin/" + name
		modes := map[string]int64{path: 0o755}
		if mode == "setuid" {
			modes[path] = 0o4755
		}
		return image.Options{Entrypoint: append([]string{path}, args...), Modes: modes,
			Files: map[string]string{path: string(server), "/var/run/README": "nginx keeps its pid here\n"}}
	}
	// One file of its own makes an image of its own.
	marked := func(mark string) image.Options {
		return image.Options{Files: map[string]string{"/" + mark: ""}}
	}
	user := func(user string) image.Options { return image.Options{User: user} }

	images := map[string]image.Options{
		e2e + "busybox:1.29-2": {},
		e2e + "nginx:1.14-2":   program("nginx", ""),
		e2e + "httpd:2.4.39-4": program("httpd", "", "80"),
		e2e + "nonewprivs:1.3": program("nnp", "setuid"),
		pauseImage:             program("pause", ""),

		staging + "hostnet-nginx-" + runtime.GOARCH: program("nginx", "", "12003"),
		staging + "test-image-user-uid":             user("1002"),
		staging + "test-image-user-username":        user("www-data"),
		staging + "test-image-user-uid-group":       user("1003:1004"),
		staging + "test-image-user-username-group":  user("www-data:1004"),
		staging + "test-image-predefined-group":     user("1000"),
		staging + "test-image-latest":               marked("latest"),
		staging + "test-image-digest":               marked("digest"),
		staging + "test-image-1":                    marked("one"),
		staging + "test-image-2":                    marked("two"),
		staging + "test-image-3":                    marked("three"),
	}
	for _, tag := range []string{"1", "2", "3"} {
		images[staging+"test-image-tags:"+tag] = marked("tags")
	}
	for _, tag := range []string{"test", "all"} {
		images[staging+"test-image-tag:"+tag] = marked("tag")
	}
	var byDigest digest.Digest
	for ref, opts := range images {
		opts.Ref, opts.Busybox = ref, busybox
		if opts.Files == nil {
			opts.Files = map[string]string{}
		}
		opts.Files["/etc/passwd"], opts.Files["/etc/group"] = passwd, group
		sum, err := r.Add(opts)
		if err != nil {
			return "", err
		}
		if strings.HasSuffix(ref, "/test-image-digest") {
			byDigest = sum
		}
	}
	return byDigest, nil
}
