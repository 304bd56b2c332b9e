package manifest

import (
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Error is one thing wrong with a manifest, of class errdefs.ErrInvalidArgument.
type Error struct {
	File     string
	Document int    // from 1; 0 is the file as a whole
	Object   string // such as Pod "web"; "" where that is not known yet
	Path     string // such as spec.containers[0].image; "" is the document as a whole
	Problem  string
}

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.place())
	if e.Path != "" {
		b.WriteString(": " + e.Path)
	}
	return b.String() + ": " + e.Problem
}

func (e *Error) place() string {
	place := e.File
	if e.Document > 0 {
		place += fmt.Sprintf(": document %d", e.Document)
	}
	if e.Object != "" {
		place += " (" + e.Object + ")"
	}
	return place
}

func (e *Error) Unwrap() error { return errdefs.ErrInvalidArgument }

// Errors are all that is wrong with a manifest.
type Errors []error

func (e Errors) Error() string {
	lines := make([]string, len(e))
	for i, err := range e {
		lines[i] = err.Error()
	}
	return strings.Join(lines, "\n")
}

func (e Errors) Unwrap() []error { return e }

// report collects what is to be said about one document, each thing once: what a Pod
// says is looked at for each of its containers.
type report struct {
	at       Error // with the place only
	errs     Errors
	warnings []string
}

func (r *report) fail(path *field.Path, format string, args ...any) {
	text := ""
	if path != nil {
		text = path.String()
	}
	r.failAt(text, fmt.Sprintf(format, args...))
}

func (r *report) failAt(path, problem string) {
	e := r.at
	e.Path, e.Problem = path, problem
	if !slices.ContainsFunc(r.errs, func(o error) bool { return o.Error() == e.Error() }) {
		r.errs = append(r.errs, &e)
	}
}

func (r *report) warn(path string, format string, args ...any) {
	e := r.at
	e.Path, e.Problem = path, fmt.Sprintf(format, args...)
	if !slices.Contains(r.warnings, e.Error()) {
		r.warnings = append(r.warnings, e.Error())
	}
}
