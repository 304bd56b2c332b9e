package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// What runc 1.1 and 1.5 and crun 1.8 say.
func TestStartErrorCode(t *testing.T) {
	for text, want := range map[string]int{
		`OCI runtime create failed: runc create failed: unable to start container process: exec: "nosuch": executable file not found in $PATH`: exitNotFound,
		`runc create failed: unable to start container process: exec: "/no/such": stat /no/such: no such file or directory`:                    exitNotFound,
		`runc create failed: unable to start container process: error during container init: exec: "/etc/passwd": permission denied`:           exitNotRunnable,
		`runc create failed: unable to start container process: exec: "/etc": is a directory`:                                                  exitNotRunnable,
		"crun: executable file `nosuch` not found in $PATH: No such file or directory":                                                         exitNotFound,
		"crun: executable file `/no/such` not found: No such file or directory":                                                                exitNotFound,
		"crun: open executable: Permission denied":                                                                                             exitNotRunnable,
		`OCI runtime exec failed: exec failed: unable to start container process: exec: "nosuch": executable file not found in $PATH`:          exitNotFound,
		`exec /bin/app: exec format error`:    exitOwn,
		`exec: "/bin/app": exec format error`: exitNotRunnable,
		`runc create failed: unable to start container process: error mounting "/x" to rootfs at "/y": stat /x: no such file or directory`: exitOwn,
		`sandbox "a1": unavailable`:      exitOwn,
		`open /run/x: permission denied`: exitOwn,
	} {
		var start *startError
		if err := newStartError(errors.New(text)); !errors.As(err, &start) || start.code != want {
			t.Errorf("%q: %d, want %d", text, start.code, want)
		}
	}
}

func TestFinish(t *testing.T) {
	plain := &cobra.Command{}
	process := &cobra.Command{Annotations: map[string]string{runsProcess: "yes"}}
	for name, c := range map[string]struct {
		cmd  *cobra.Command
		err  error
		code int
		text string
	}{
		"success":       {plain, nil, 0, ""},
		"failure":       {plain, errors.New("boom"), 1, "caisson: boom\n"},
		"own failure":   {process, errors.New("boom"), 125, "caisson: boom\n"},
		"exit status":   {process, exitStatus(7), 7, ""},
		"killed":        {process, exitStatus(137), 137, ""},
		"not found":     {process, newStartError(errors.New(`exec: "x": executable file not found in $PATH`)), 127, "caisson: exec: \"x\": executable file not found in $PATH\n"},
		"undone":        {process, joinUndo(newStartError(errors.New(`exec: "x": permission denied`)), errors.New("undo log: gone")), 126, "caisson: exec: \"x\": permission denied (and undo log: gone)\n"},
		"interrupted":   {process, fmt.Errorf("pull: %w", context.Canceled), 130, "caisson: interrupted\n"},
		"cut off call":  {plain, status.Error(codes.Canceled, "context canceled"), 130, "caisson: interrupted\n"},
		"several":       {plain, failures{errors.New("one"), errors.New("two")}, 1, "caisson: one\ncaisson: two\n"},
		"wire error":    {plain, status.Error(codes.NotFound, "no such thing"), 1, "caisson: no such thing\n"},
		"class names":   {plain, errors.New("runc create: bad\ninvalid argument\ninvalid argument"), 1, "caisson: runc create: bad\n"},
		"unavailable":   {plain, fmt.Errorf("x: %w", errdefs.ErrUnavailable), 1, "caisson: caissond at /a does not answer: x: unavailable; see its log, or start it again with `caissond`\n"},
		"advice":        {plain, advise(errdefs.ErrUnavailable, "no caissond: start it"), 1, "caisson: no caissond: start it\n"},
		"not permitted": {plain, errdefs.ErrPermissionDenied, 1, "caisson: permission denied; caisson needs the rights of the socket's owner, usually root\n"},
	} {
		var stderr bytes.Buffer
		a := &app{sys: System{Stderr: &stderr}, address: "/a"}
		if code := a.finish(c.cmd, c.err); code != c.code {
			t.Errorf("%s: code %d, want %d", name, code, c.code)
		}
		if stderr.String() != c.text {
			t.Errorf("%s: %q, want %q", name, stderr.String(), c.text)
		}
	}
}

// runCLI runs a command line without a daemon.
// noEnv is an environment with nothing but the order to leave the machine's daemon alone.
func noEnv(name string) string {
	if name == startEnv {
		return "false"
	}
	return ""
}

func runCLI(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = Main(t.Context(), System{
		Args: args, Env: noEnv, TempDir: t.TempDir(),
		Getwd: func() (string, error) { return "/", nil }, Stdout: &out, Stderr: &errs,
	})
	return code, out.String(), errs.String()
}

func TestUsageErrors(t *testing.T) {
	for _, c := range []struct {
		args string
		code int
		want string
	}{
		{"run", 125, "needs an image; see `caisson run --help`"},
		{"run --nope x", 125, "unknown flag: --nope; see `caisson run --help`"},
		{"run --name ../x demo", 125, "cannot name a container"},
		{"run --rm -d demo", 125, "--rm and --detach exclude each other"},
		{"run -d --log-driver syslog demo", 125, "unknown log driver"},
		{"run --log-driver none demo", 125, "is for --detach without --tty"},
		{"run -d -i demo", 125, "--detach and --interactive exclude each other"},
		{"run --sandbox s --net host demo", 125, "belong to the sandbox"},
		{"run -it demo", 125, "needs a terminal"},
		{"run -w tmp demo", 125, "is not absolute"},
		{"run -v /no/such/dir:/x demo", 125, "create it first"},
		{"run -v /tmp:/x -v /proc:/x demo", 125, "mounted on twice"},
		{"run -m lots demo", 125, "is not a size"},
		{"exec web", 125, "needs a container and a command"},
		{"run -p 8080:80 --net none demo", 125, "--publish needs --net cni"},
		{"run -p 8080:80 --sandbox s demo", 125, "belong to the sandbox"},
		{"frobnicate", 1, `has no command "frobnicate"; see`},
		{"pull busybox", 1, "did you mean `caisson image pull`?"},
		{"images", 1, "did you mean `caisson image ls`?"},
		{"rmi x", 1, "did you mean `caisson image rm`?"},
		{"rmi -f x", 1, "did you mean `caisson image rm`?"},
		{"load -i x.tar", 1, "did you mean `caisson image import`?"},
		{"image load --input x.tar", 1, "did you mean `caisson image import`?"},
		{"-x load", 1, "unknown shorthand flag: 'x'"},
		{"pods", 1, "did you mean `caisson sandbox ls`?"},
		{"system prune", 1, "or `caisson prune`?"},
		{"system info", 1, "did you mean `caisson info`?"},
		{"image prune", 1, "did you mean `caisson image rm`?"},
		{"start x", 1, "did you mean `caisson run` or `caisson sandbox start`?"},
		{"restart x", 1, "did you mean `caisson run`?"},
		{"lgos", 1, "did you mean `caisson logs`?"},
		{"sandbox frobnicate", 1, `has no command "frobnicate"`},
		{"sandbox create a b", 1, "takes one ID, not 2 arguments"},
		{"sandbox create ..", 1, "cannot name a sandbox"},
		{"sandbox update a1", 1, "nothing to change"},
		{"kill -s NOPE web", 1, "is not a signal"},
		{"logs --tail x web", 1, "is not a number of lines"},
		{"ps --format yaml", 1, "unknown format"},
		{"image pull ///", 1, "is not the name of an image"},
		{"image import /no/such/file", 1, "no such file"},
		{"--address /no/such.sock ps", 1, "no caissond at /no/such.sock: start it with `caissond`"},
		{"--namespace a/b --address /no/such.sock ps", 1, "is not an identifier"},
	} {
		code, _, stderr := runCLI(t, strings.Fields(c.args)...)
		if code != c.code || !strings.Contains(stderr, c.want) {
			t.Errorf("caisson %s: code %d, want %d; %q, want %q in it", c.args, code, c.code, stderr, c.want)
		}
	}
}

func TestEveryCommandHasAnExample(t *testing.T) {
	a := &app{sys: System{Env: func(string) string { return "" }}}
	var check func(*cobra.Command)
	check = func(cmd *cobra.Command) {
		if cmd.Name() == "help" {
			return
		}
		if cmd.Example == "" || cmd.Short == "" {
			t.Errorf("%s: no example or no summary", cmd.CommandPath())
		}
		for _, sub := range cmd.Commands() {
			check(sub)
		}
	}
	check(a.command())
}
