package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// advice is an error whose sentence already says what to do next.
type advice struct {
	text string
	err  error
}

func (e *advice) Error() string { return e.text }
func (e *advice) Unwrap() error { return e.err }

// advise makes an error for people; class is what programs and tests look at.
func advise(class error, format string, args ...any) error {
	return &advice{text: fmt.Sprintf(format, args...), err: class}
}

// explain turns an error into a sentence that says what to do next. What was
// written as advice stays as it is.
func (a *app) explain(err error) string {
	var adv *advice
	if errors.As(err, &adv) {
		return err.Error()
	}
	native := err
	if _, ok := status.FromError(err); ok {
		native = errgrpc.ToNative(err)
	}
	text := clean(native.Error())
	switch {
	case isCanceled(err):
		return "interrupted"
	case errdefs.IsUnavailable(native):
		return fmt.Sprintf("caissond at %s does not answer: %s; see its log, or start it again with `caissond`", a.address, text)
	case errdefs.IsPermissionDenied(native):
		return text + "; caisson needs the rights of the socket's owner, usually root"
	case errdefs.IsNotImplemented(native):
		return text + "; this daemon cannot do it: compare `caisson version`"
	case errors.Is(err, context.DeadlineExceeded), errdefs.IsDeadlineExceeded(native):
		return text + "; the daemon took too long: see its log and try again"
	}
	return text
}

// isCanceled tells an interrupted command, whichever way the error came.
func isCanceled(err error) bool {
	return errors.Is(err, context.Canceled) || status.Code(err) == codes.Canceled
}

// clean takes the wire's prefixes off a message, and the names of classes that
// the conversion from the wire put behind it.
func clean(text string) string {
	text = strings.TrimPrefix(text, "rpc error: ")
	if rest, ok := strings.CutPrefix(text, "code = "); ok {
		if _, desc, ok := strings.Cut(rest, " desc = "); ok {
			text = desc
		}
	}
	for {
		before := text
		text = strings.TrimSuffix(strings.TrimSpace(text), ": unknown")
		for _, class := range classNames {
			text = strings.TrimSuffix(text, "\n"+class)
		}
		if text == before {
			return text
		}
	}
}

var classNames = []string{
	errdefs.ErrUnknown.Error(), errdefs.ErrInvalidArgument.Error(), errdefs.ErrNotFound.Error(),
	errdefs.ErrAlreadyExists.Error(), errdefs.ErrPermissionDenied.Error(), errdefs.ErrResourceExhausted.Error(),
	errdefs.ErrFailedPrecondition.Error(), errdefs.ErrConflict.Error(), errdefs.ErrAborted.Error(),
	errdefs.ErrOutOfRange.Error(), errdefs.ErrNotImplemented.Error(), errdefs.ErrInternal.Error(),
	errdefs.ErrUnavailable.Error(), errdefs.ErrDataLoss.Error(), errdefs.ErrUnauthenticated.Error(),
}

// failures are the errors of a command that works on several things.
type failures []error

func (f failures) Error() string {
	lines := make([]string, len(f))
	for i, err := range f {
		lines[i] = err.Error()
	}
	return strings.Join(lines, "\n")
}

func (f failures) Unwrap() []error { return f }

// forEach is the run of a command that does something to each of its arguments,
// whatever becomes of the others, and prints the names of those it worked for.
func (a *app) forEach(do func(ctx context.Context, c *client, arg string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		ctx, c, err := a.connect(cmd.Context())
		if err != nil {
			return err
		}
		defer c.Close()
		var failed failures
		for _, arg := range args {
			err := do(ctx, c, arg)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err != nil {
				failed = append(failed, err)
				continue
			}
			if _, err := fmt.Fprintln(a.sys.Stdout, arg); err != nil {
				return err
			}
		}
		if len(failed) > 0 {
			return failed
		}
		return nil
	}
}

// unknownSubcommand refuses arguments of a command that only holds others.
func unknownSubcommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	hint := "see `" + cmd.CommandPath() + " --help`"
	if meant := meantBy(cmd, args[0]); len(meant) > 0 {
		hint = "did you mean `" + strings.Join(meant, "` or `") + "`?"
	}
	return advise(errdefs.ErrInvalidArgument, "%s has no command %q; %s", cmd.CommandPath(), args[0], hint)
}

// meantBy are the commands below cmd that have this name, or have it elsewhere, such as
// Docker's rmi; or else those of cmd that are written much alike.
func meantBy(cmd *cobra.Command, name string) []string {
	var found []string
	var look func(below *cobra.Command)
	look = func(below *cobra.Command) {
		for _, sub := range below.Commands() {
			if sub.Name() == name || slices.Contains(sub.SuggestFor, name) {
				found = append(found, sub.CommandPath())
			}
			look(sub)
		}
	}
	if look(cmd); found == nil && cmd.HasParent() {
		look(cmd.Root()) // `caisson system prune` is `caisson prune`
	}
	if found == nil {
		cmd.SuggestionsMinimumDistance = 2
		for _, sub := range cmd.SuggestionsFor(name) {
			found = append(found, cmd.CommandPath()+" "+sub)
		}
	}
	return found
}

// exactly and atLeast check the number of arguments with a sentence that names
// what is missing.
func exactly(n int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error { return countArgs(cmd, len(args), n, n, what) }
}

func atLeast(n int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error { return countArgs(cmd, len(args), n, -1, what) }
}

func atMost(n int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error { return countArgs(cmd, len(args), 0, n, what) }
}

func countArgs(cmd *cobra.Command, have, least, most int, what string) error {
	switch {
	case have < least:
		return advise(errdefs.ErrInvalidArgument, "%s needs %s; see `%s --help`", cmd.CommandPath(), what, cmd.CommandPath())
	case most >= 0 && have > most:
		return advise(errdefs.ErrInvalidArgument, "%s takes %s, not %d arguments; see `%s --help`", cmd.CommandPath(), what, have, cmd.CommandPath())
	}
	return nil
}
