// Package version says which build this is. The Makefile lets the linker write it
// down; a plain `go build` in a clone has what Go itself notes of the commit.
package version

import (
	"fmt"
	"runtime"
	"runtime/debug"
)

// Set by -ldflags "-X caisson/internal/version.current=...".
var (
	current = "dev"
	commit  string
	date    string // of the commit, RFC 3339: the time of a build says nothing, and differs
)

// Info describes a build; what nobody noted is "unknown".
type Info struct {
	Version string // for example "v0.1.0-3-gabc1234"
	Commit  string
	Date    string // of the commit
	Go      string
}

// String is the version of this build alone.
func String() string { return current }

// Long is the version with everything else that is known of the build.
func Long() string {
	i := Build()
	return fmt.Sprintf("%s (commit %s, %s, %s %s/%s)", i.Version, i.Commit, i.Date, i.Go, runtime.GOOS, runtime.GOARCH)
}

// Build describes this build.
func Build() Info {
	i := Info{Version: current, Commit: commit, Date: date, Go: runtime.Version()}
	if noted, ok := debug.ReadBuildInfo(); ok {
		for _, s := range noted.Settings {
			switch {
			case s.Key == "vcs.revision" && i.Commit == "":
				i.Commit = s.Value
			case s.Key == "vcs.time" && i.Date == "":
				i.Date = s.Value
			}
		}
	}
	for _, s := range []*string{&i.Commit, &i.Date} {
		if *s == "" {
			*s = "unknown"
		}
	}
	return i
}
