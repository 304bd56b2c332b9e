// Package fault names the steps between which caissond may be killed, and those
// that the kernel may refuse. Its points are for test/faults, which makes a fault
// happen at each of them and looks at what is left: every step of every verb that
// has an effect begins with one.
//
// In a release build both functions are empty, the compiler drops their calls and
// the points' names. Built with the tag "faults", a point obeys orders in the
// directory that the environment variable CAISSON_FAULTS names; see on.go.
//
// Names are constants of the call, and unique: test/faults reads them from the
// source.
package fault
