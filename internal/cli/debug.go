package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"
)

const (
	// maxDump is more than a daemon sends.
	maxDump = 256 << 20
	// dumpLimit is how long it may take: the daemon may be what one looks into.
	dumpLimit = time.Minute
)

func (a *app) debugCommand() *cobra.Command {
	return group("debug", "Look into the daemon", "  caisson debug dump", a.debugDumpCommand())
}

func (a *app) debugDumpCommand() *cobra.Command {
	var file, socket string
	cmd := &cobra.Command{
		Use:   "dump",
		Short: "Write what one needs to find a fault in the daemon to an archive",
		Long: `Write a .tar.gz of what the daemon is doing: the stacks of its goroutines, its
sandboxes and their states, its open descriptors, metrics, versions, and its
configuration without secrets. Works while the daemon hangs or starts, since it
comes over a socket of its own, debug.sock in the state directory, which is root's.`,
		Example: "  caisson debug dump\n  caisson debug dump -o dump.tar.gz\n  caisson debug dump -o - | tar -xzO caisson-dump/goroutines.txt",
		Args:    atMost(0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if file == "-" && isTerminal(fileOf(a.sys.Stdout)) {
				return advise(errdefs.ErrInvalidArgument, "standard output is a terminal: name a file with --output, or send it somewhere")
			}
			if socket == "" {
				socket = filepath.Join(filepath.Dir(a.socketPath()), "debug.sock")
			}
			dump := func(w io.Writer) error { return fetchDump(cmd.Context(), socket, w) }
			if file == "-" {
				return dump(a.sys.Stdout)
			}
			if file == "" {
				dir, err := a.sys.Getwd()
				if err != nil {
					return err
				}
				file = filepath.Join(dir, "caisson-dump-"+time.Now().UTC().Format("20060102T150405Z")+".tar.gz")
			}
			if err := replaceFile(file, dump); err != nil {
				return err
			}
			_, err := fmt.Fprintln(a.sys.Stdout, file)
			return err
		},
	}
	cmd.Flags().StringVarP(&file, "output", "o", "", "the `file` to write, - for standard output (default caisson-dump-TIME.tar.gz here)")
	cmd.Flags().StringVar(&socket, "socket", "", "the daemon's debug `socket` (default debug.sock beside --address)")
	return cmd
}

// fetchDump copies the dump of the daemon with this debug socket to w.
func fetchDump(ctx context.Context, socket string, w io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, dumpLimit)
	defer cancel()
	transport := &http.Transport{DisableCompression: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, "unix", socket)
	}}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://caissond/debug/dump", nil)
	if err != nil {
		return err
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return noDump(socket, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10)) // what there is of it
		return advise(errdefs.ErrUnavailable, "caissond at %s: %s: %s", socket, resp.Status, strings.TrimSpace(string(text)))
	}
	n, err := io.Copy(w, io.LimitReader(resp.Body, maxDump+1))
	if err == nil && n > maxDump {
		err = fmt.Errorf("dump: more than %d bytes: %w", maxDump, errdefs.ErrResourceExhausted)
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return advise(errdefs.ErrUnavailable, "caissond at %s ended the dump half way: see its log and try again", socket)
	}
	return err
}

func noDump(socket string, err error) error {
	switch {
	case isCanceled(err):
		return err
	case errors.Is(err, os.ErrPermission):
		return advise(errdefs.ErrPermissionDenied, "no permission to use caissond's socket %s: only root may look into the daemon", socket)
	case errors.Is(err, context.DeadlineExceeded):
		return advise(context.DeadlineExceeded, "caissond at %s does not answer: have it write its goroutines to a file in the state directory: kill -USR1 PID", socket)
	}
	return advise(errdefs.ErrUnavailable, "no caissond answers at %s (%v): start it with `caissond`, or name its debug socket with --socket", socket, err)
}
