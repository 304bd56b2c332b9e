// Package bench measures Caisson and its peers side by side, in one run, on the same
// images, in turns: a machine that is slow for a while is slow for all of them.
//
// The sides are a stock containerd with containerd-shim-runc-v2, Caisson on its own,
// and Caisson beside a stock containerd, each with runc and with crun. Every part of
// the run adds samples to one recorder, which knows nothing of what they mean; at the
// end it writes them, summed up, as JSON. The program test/bench/report makes
// docs/benchmarks.md and its plots out of that.
//
// The parts, which -parts chooses from:
//
//   - calls: each CRI call of a pod's life, and the processor time of an exec
//   - parallel: pods up per second, some at a time
//   - memory: PSS per pod, restarts, and pods beside others; -pods says beside how many
//   - idle: processor time of pods that do nothing, per minute, with and without
//     somebody who asks for stats; -idle says how many, -idle-time for how long
//   - logs: a container that writes -log MiB, to CRI's log file and to a client's FIFOs:
//     how fast, and at whose processor time
//   - api: the controller as a library, through its socket, and the C program in floor/
//   - stats: Task.Stats and Controller.Metrics, through sockets and in process
//   - floors: bare runc and crun with a bundle of their own
//   - store: the store beside containerd's
//
// Processor time is that of the servers, shims, monitors and pause containers by
// themselves, without what they have run, unless the measure says more.
//
// `make bench` runs it: BENCH are flags of the test, such as -rounds or -parts. All
// sides run in a mount namespace without the cgroup v2 hierarchy of a hybrid host,
// which crun refuses; Debian's crun refuses containerd's specifications, too, so that
// containerd gets it with a program in front that changes their version (crun/). What
// servers and runtimes keep at run time is on a tmpfs, as /run is on most hosts.
package bench
