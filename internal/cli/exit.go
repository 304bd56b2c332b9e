package cli

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

// Exit codes of `run` and `exec` beyond those of the process, as Docker has them.
const (
	exitFailure     = 1
	exitOwn         = 125 // caisson, the daemon or the runtime failed
	exitNotRunnable = 126 // the command is in the image and cannot be executed
	exitNotFound    = 127 // the command is not in the image
	exitInterrupted = 130 // as a shell tells SIGINT
	exitUnread      = 141 // and SIGPIPE
)

// exitStatus is the result of a process that ran: not an error to report.
type exitStatus uint32

func (e exitStatus) Error() string { return fmt.Sprintf("exit status %d", uint32(e)) }

// startError is a failure to create or start a process in a container, with the
// exit code that tells its cause.
type startError struct {
	code int
	err  error
}

func (e *startError) Error() string { return e.err.Error() }
func (e *startError) Unwrap() error { return e.err }

// runsProcess marks the commands whose exit code is that of a process.
const runsProcess = "caisson/runs-process"

// finish reports what a command returned and chooses the exit code.
func (a *app) finish(cmd *cobra.Command, err error) int {
	if err == nil {
		return 0
	}
	if errors.Is(err, errUnread) {
		return exitUnread // and no word, as of anything that SIGPIPE ends
	}
	var status exitStatus
	if errors.As(err, &status) {
		return int(status & 0xff)
	}
	code := exitFailure
	if cmd != nil && cmd.Annotations[runsProcess] != "" {
		code = exitOwn
	}
	var start *startError
	switch {
	case isCanceled(err):
		code = exitInterrupted
	case errors.As(err, &start):
		code = start.code
	}
	each := []error{err}
	var several failures
	if errors.As(err, &several) {
		each = several
	}
	for _, err := range each {
		fmt.Fprintf(a.sys.Stderr, "caisson: %s\n", a.explain(err))
	}
	return code
}

// newStartError classifies what the OCI runtime said when it could not execute a
// process. The text is all there is: runc and crun report through their log, and
// no class survives the way through the task service. Only sentences about the
// executable count, since a mount's missing source says "no such file" as well.
func newStartError(err error) error {
	text := strings.ToLower(err.Error())
	aboutExecutable := strings.Contains(text, "executable") || strings.Contains(text, `exec: "`) || strings.Contains(text, "exec failed")
	code := exitOwn
	switch {
	case !aboutExecutable:
	case strings.Contains(text, "permission denied"), strings.Contains(text, "is a directory"), strings.Contains(text, "exec format error"):
		code = exitNotRunnable
	case strings.Contains(text, "not found"), strings.Contains(text, "no such file or directory"):
		code = exitNotFound
	}
	return &startError{code: code, err: err}
}

// warn reports what went wrong beside a result that stands.
func (a *app) warn(err error) {
	fmt.Fprintf(a.sys.Stderr, "caisson: warning: %s\n", a.explain(err))
}
