package image

import (
	"archive/tar"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path"
	"slices"
	"strings"
)

// ErrNoBusybox is returned when there is no busybox to make an image of.
var ErrNoBusybox = errors.New("no busybox found: install Debian's package busybox-static (make deps)")

var baseFiles = map[string]string{
	"/etc/passwd": "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000:app:/home/app:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
	"/etc/group":  "root:x:0:\nstaff:x:50:app\napp:x:1000:\nnogroup:x:65534:\n",
}

// baseDirs exist in every image, with the modes that programs rely on.
var baseDirs = map[string]int64{
	"/dev": 0o755, "/etc": 0o755, "/home/app": 0o755, "/proc": 0o755, "/root": 0o700,
	"/run": 0o755, "/sys": 0o755, "/tmp": 0o1777, "/var/tmp": 0o1777,
}

// rootfs is the image's only layer, a tar.
func rootfs(opts Options) ([]byte, error) {
	busybox := opts.Busybox
	if busybox == "" {
		found, err := exec.LookPath("busybox")
		if err != nil {
			return nil, ErrNoBusybox
		}
		busybox = found
	}
	binary, err := os.ReadFile(busybox)
	if err != nil {
		return nil, fmt.Errorf("busybox: %w", err)
	}
	if bytes.Contains(binary, []byte("/lib64/ld-linux")) {
		return nil, fmt.Errorf("%s needs shared libraries: install Debian's package busybox-static (make deps)", busybox)
	}
	applets, err := exec.Command(busybox, "--list-full").Output()
	if err != nil {
		return nil, fmt.Errorf("%s --list-full: %w", busybox, err)
	}

	l := layer{entries: map[string]entry{}}
	for dir, mode := range baseDirs {
		l.dir(dir, mode)
	}
	for _, applet := range strings.Fields(string(applets)) {
		// Not symbolic links: what is mounted over one program must not hide them all.
		l.add("/"+applet, entry{Header: tar.Header{Typeflag: tar.TypeLink, Linkname: "bin/busybox", Mode: 0o755}})
	}
	l.file("/bin/busybox", binary, 0o755)
	for name, content := range baseFiles {
		l.file(name, []byte(content), 0o644)
	}
	for name, content := range opts.Files {
		mode := int64(0o644)
		if strings.HasPrefix(content, "#!") {
			mode = 0o755
		}
		if special, ok := opts.Modes[name]; ok {
			mode = special
		}
		l.file(name, []byte(content), mode)
	}
	for name, header := range opts.Nodes {
		for other := range l.entries { // a link has nothing below it
			if strings.HasPrefix(other, name+"/") {
				delete(l.entries, other)
			}
		}
		l.add(name, entry{Header: header})
	}
	return l.tar()
}

// layer collects the files of a root filesystem by absolute path.
type layer struct {
	entries map[string]entry
}

type entry struct {
	tar.Header
	content []byte
}

func (l *layer) dir(name string, mode int64) {
	if _, ok := l.entries[name]; name == "/" || (ok && mode == 0o755) {
		return
	}
	l.add(name, entry{Header: tar.Header{Typeflag: tar.TypeDir, Mode: mode}})
}

func (l *layer) file(name string, content []byte, mode int64) {
	l.add(name, entry{Header: tar.Header{Typeflag: tar.TypeReg, Mode: mode, Size: int64(len(content))}, content: content})
}

// add puts e at name, with the directories above it.
func (l *layer) add(name string, e entry) {
	name = path.Clean("/" + name)
	if parent := path.Dir(name); parent != "/" {
		l.dir(parent, 0o755)
	}
	e.Name = strings.TrimPrefix(name, "/")
	if e.Typeflag == tar.TypeDir {
		e.Name += "/"
	}
	e.ModTime = epoch
	l.entries[name] = e
}

func (l *layer) rank(name string) int {
	if l.entries[name].Typeflag == tar.TypeLink {
		return 1
	}
	return 0
}

func (l *layer) tar() ([]byte, error) {
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	// Sorted, a directory comes before what is in it; a hard link comes after its file.
	names := slices.Sorted(maps.Keys(l.entries))
	slices.SortStableFunc(names, func(a, b string) int { return cmp.Compare(l.rank(a), l.rank(b)) })
	for _, name := range names {
		e := l.entries[name]
		if err := tw.WriteHeader(&e.Header); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if _, err := tw.Write(e.content); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	if err := tw.Close(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}
