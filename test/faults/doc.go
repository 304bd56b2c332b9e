// Package faults kills caissond, or lets an operation of its fail, at every fault
// point (internal/fault), one after the other, and looks at what is left.
//
// A life is a list of calls that begins and ends with nothing there. Each case
// takes a life and lets one fault happen in one of its calls; then a daemon is
// there again, the call is repeated, and the life goes on to its end. A call through a
// connection that outlives the daemon is also made once with a client that does not
// notice: the next daemon has to answer it. Meanwhile
// another sandbox must not notice anything, and at the end nothing may be left,
// lost or doubled. See lives_test.go for the lives and check_test.go for what is
// checked.
//
// The lives talk to the sandboxer itself (engine "none"): to the sockets of the
// Controller, of the Store, of each sandbox's Task API and of the shim binary. That
// shows what a containerd in between would repair or hide. Events are received
// where containerd would receive them.
//
// `make faults` runs all cases and prints a table; `make test` runs each point
// with each of its faults once.
package faults
