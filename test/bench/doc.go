// Package bench measures Caisson and its peers side by side, in one run, on the same
// images, in turns: a machine that is slow for a while is slow for all of them.
//
// The sides are a stock containerd with containerd-shim-runc-v2, Caisson on its own,
// and Caisson beside a stock containerd, each with runc and with crun. Every part of
// the run adds samples to one recorder, which knows nothing of what they mean; at the
// end it writes them, summed up, as JSON. The program test/bench/report makes
// docs/benchmarks.md and its plots out of that.
//
// `make bench` runs it: BENCH are flags of the test, such as -rounds or -parts. All
// sides run in a mount namespace without the cgroup v2 hierarchy of a hybrid host,
// which crun refuses; Debian's crun refuses containerd's specifications, too, so that
// containerd gets it with a program in front that changes their version (crun/).
package bench
