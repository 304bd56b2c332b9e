// Package version holds the version of the build, which the linker sets
// (see the Makefile); a plain `go build` leaves it at "dev".
package version

// current is set by -ldflags "-X caisson/internal/version.current=...".
var current = "dev"

// String is the version of this build, for example "v0.1.0-3-gabc1234".
func String() string { return current }
