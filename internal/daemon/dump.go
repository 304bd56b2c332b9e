package daemon

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"time"

	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"caisson/internal/engine"
	"caisson/internal/version"
)

// maxPart bounds each file of a dump.
const maxPart = 32 << 20

// serveDump sends a .tar.gz of what one needs to find a fault in the daemon, and
// nothing that a client told it in confidence.
func (v *view) serveDump(w http.ResponseWriter, r *http.Request) {
	select {
	case v.dumping <- struct{}{}:
		defer func() { <-v.dumping }()
	default:
		http.Error(w, "another dump is under way; try again when it is done", http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/gzip")
	if err := v.writeDump(w, time.Now()); err != nil {
		log.G(r.Context()).WithError(err).Warn("a dump was not sent to its end")
		panic(http.ErrAbortHandler) // half an archive must not look like a whole one
	}
}

func (v *view) writeDump(w io.Writer, now time.Time) error {
	zipped := gzip.NewWriter(w)
	archive := tar.NewWriter(zipped)
	for _, part := range []struct {
		name string
		make func(io.Writer) error
	}{
		{"goroutines.txt", func(w io.Writer) error { _, err := w.Write(stacks()); return err }},
		{"version.json", v.versions},
		{"config.json", func(w io.Writer) error { return indented(w, v.cfg.Redacted()) }},
		{"sandboxes.json", v.listSandboxes},
		{"descriptors.txt", listDescriptors},
		{"metrics.txt", v.metrics.WriteText},
	} {
		content := &bounded{left: maxPart}
		if err := part.make(content); err != nil {
			// The rest is all the more interesting.
			fmt.Fprintf(content, "\n%v\n", err)
		}
		header := &tar.Header{Name: "caisson-dump/" + part.name, Mode: 0o600, Size: int64(content.buf.Len()), ModTime: now, Format: tar.FormatPAX}
		if err := archive.WriteHeader(header); err != nil {
			return fmt.Errorf("%s: %w", part.name, err)
		}
		if _, err := content.buf.WriteTo(archive); err != nil {
			return fmt.Errorf("%s: %w", part.name, err)
		}
	}
	return errors.Join(archive.Close(), zipped.Close())
}

// bounded is a buffer that drops what is too much, and says so at its end.
type bounded struct {
	buf  bytes.Buffer
	left int
}

func (b *bounded) Write(p []byte) (int, error) {
	n := min(len(p), max(b.left, 0))
	b.buf.Write(p[:n])
	if n < len(p) && b.left >= 0 {
		b.buf.WriteString("\n(cut)\n")
		b.left = -1
	} else {
		b.left -= n
	}
	return len(p), nil
}

func indented(w io.Writer, value any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(value)
}

func (v *view) versions(w io.Writer) error {
	var host unix.Utsname
	if err := unix.Uname(&host); err != nil {
		return err
	}
	settings := map[string]string{}
	if build, ok := debug.ReadBuildInfo(); ok {
		for _, s := range build.Settings {
			settings[s.Key] = s.Value
		}
	}
	return indented(w, map[string]any{
		"caissond": version.String(), "go": runtime.Version(), "build": settings,
		"engine": v.cfg.Engine, "containerd": engine.Version(),
		"kernel": unix.ByteSliceToString(host.Release[:]), "architecture": unix.ByteSliceToString(host.Machine[:]),
		"pid": os.Getpid(), "started": v.began, "ready": v.ready.Load(),
		"processors": runtime.NumCPU(), "goroutines": runtime.NumGoroutine(),
	})
}

func (v *view) listSandboxes(w io.Writer) error {
	ctl := v.sandboxes.Load()
	if ctl == nil {
		return errors.New("the daemon has not begun to take over sandboxes")
	}
	return indented(w, ctl.Reports())
}

// listDescriptors prints what each of the daemon's open descriptors is.
func listDescriptors(w io.Writer) error {
	const dir = "/proc/self/fd/"
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var fds []int
	for _, e := range entries {
		if fd, err := strconv.Atoi(e.Name()); err == nil {
			fds = append(fds, fd)
		}
	}
	slices.Sort(fds)
	for _, fd := range fds {
		target, err := os.Readlink(dir + strconv.Itoa(fd))
		if err != nil {
			continue // closed meanwhile
		}
		if _, err := fmt.Fprintf(w, "%d %s\n", fd, target); err != nil {
			return err
		}
	}
	return nil
}
