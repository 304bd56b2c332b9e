package faults

import (
	"golang.org/x/sys/unix"

	options "caisson/api/caisson/sandbox/v1"
)

// life is a list of calls that begins and ends with nothing there. Faults happen
// in those of the calls that are named in armed.
type life struct {
	name  string
	make  func(*world) *run // the ID comes later
	calls []call
	armed []int // indices of calls
}

// bridged is a sandbox with an address.
var bridged = &options.Options{Network: options.Network_NETWORK_CNI}

// full is a sandbox with everything.
var full = &options.Options{
	Network:   options.Network_NETWORK_CNI,
	Sysctls:   map[string]string{"kernel.shmmax": "123456789"},
	Resources: &options.Resources{PidsLimit: 50},
}

var userns = &options.Options{
	Network: options.Network_NETWORK_NONE,
	Namespaces: &options.Namespaces{
		Uids: []*options.IDMapping{{HostId: 100000, Size: 65536}},
		Gids: []*options.IDMapping{{HostId: 100000, Size: 65536}},
	},
}

var (
	term    = kill("task kill", unix.SIGTERM, false)
	killAll = kill("task kill, all", unix.SIGKILL, true)
)

var lives = []life{
	{"sandbox", sandboxWith(full), []call{callSandboxCreate, callSandboxStart, callSandboxUpdate, callSandboxStop, callSandboxShutdown}, []int{0, 1, 2, 3, 4}},
	{"sandbox with a user namespace", sandboxWith(userns), []call{callSandboxCreate, callSandboxStart, callSandboxShutdown}, []int{1}},
	{"sandbox that is stopped", living, []call{callSandboxCreate, callSandboxStart, callTaskCreate, callTaskStart, callSandboxStop, callEnded, callTaskDelete, callSandboxShutdown}, []int{4}},
	{"sandbox that is removed", lost, []call{callSandboxCreate, callSandboxStart, callTaskCreate, callTaskStart, callSandboxShutdown}, []int{4}},
	{"sandbox whose holder dies", lost, []call{callSandboxCreate, callSandboxStart, callTaskCreate, callTaskStart, callHolderDies, callSandboxShutdown}, []int{4}},
	{"container", member, []call{callTaskCreate, callTaskStart, term, callTaskDelete}, []int{0, 1, 2, 3}},
	{"container that is killed", killed, []call{callTaskCreate, callTaskStart, killAll, callTaskDelete}, []int{2}},
	{"container that is told something", listening, []call{callTaskCreate, callTaskStart, callTellAll, term, callTaskDelete}, []int{2}},
	{"container with a terminal", terminal, []call{callTaskCreate, callTaskStart, term, callTaskDelete}, []int{0, 1, 2, 3}},
	{"container that is paused", paused, []call{callTaskCreate, callTaskStart, callTaskPause, callTaskResume, term, callTaskDelete}, []int{2, 3}},
	{"container that is updated", member, []call{callTaskCreate, callTaskStart, callTaskUpdate, term, callTaskDelete}, []int{2}},
	{"container that is checkpointed", checkpointed, []call{callTaskCreate, callTaskStart, callCheckpoint, term, callTaskDelete}, []int{2}},
	{"container that cannot be checkpointed", uncheckpointed, []call{callTaskCreate, callTaskStart, callCheckpointFails, term, callTaskDelete}, []int{2}},
	{"container that cannot be", impossible, []call{callCreateInVain}, []int{0}},
	{"container never started", unstarted, []call{callTaskCreate, callTaskDelete}, []int{1}},
	{"container alone", alone, []call{callEndpoint, callCreateAlone, callTaskStart, term, callTaskDelete, callRelease, callShimDelete}, []int{0, 1, 2, 3, 4, 5}},
	{"container given up", alone, []call{callEndpoint, callCreateAlone, callTaskStart, term, callShimDelete}, []int{4}},
	{"sandbox given up in create", sandboxWith(full), []call{giveUp(callSandboxCreate), callSandboxGone}, []int{0}},
	{"sandbox given up in start", sandboxWith(full), []call{callSandboxCreate, giveUp(callSandboxStart), callSandboxGone}, []int{1}},
	{"container given up in create", untold, []call{giveUp(callTaskCreate), callTaskGone}, []int{0}},
	{"exec", extra, []call{callExecAdd, callExecRun, callTaskDelete}, []int{0, 1, 2}},
	{"exec with a terminal", extraTerminal, []call{callExecAdd, callExecRun, callTaskDelete}, []int{1}},

	{"restart", member, []call{callTaskCreate, callTaskStart, unseen, callRestart, callEnded, callTaskDelete}, []int{3}},
	{"restart in task create", member, []call{crash(callTaskCreate, "runtime:ended"), callRestart, callTaskCreate, callTaskStart, term, callTaskDelete}, []int{1}},
	{"restart in task start", member, []call{callTaskCreate, crash(callTaskStart, "runtime:started"), callRestart, again(callTaskStart), term, callTaskDelete}, []int{2}},
	{"restart in task pause", paused, []call{callTaskCreate, callTaskStart, crash(callTaskPause, "task:turned"), callRestart, again(callTaskPause), callTaskResume, term, callTaskDelete}, []int{3}},
	{"restart in task pause, half way", paused, []call{callTaskCreate, callTaskStart, crash(callTaskPause, "cgroup:freeze"), callRestart, callTaskPause, callTaskResume, term, callTaskDelete}, []int{3}},
	{"restart in task resume", paused, []call{callTaskCreate, callTaskStart, callTaskPause, crash(callTaskResume, "task:turned"), callRestart, again(callTaskResume), term, callTaskDelete}, []int{4}},
	{"restart in task checkpoint", checkpointed, []call{callTaskCreate, callTaskStart, crash(callCheckpoint, "runtime:checkpointed"), callRestart, again(callCheckpoint), term, callTaskDelete}, []int{3}},
	{"restart in task checkpoint, in vain", uncheckpointed, []call{callTaskCreate, callTaskStart, crash(callCheckpointFails, "runtime:checkpointed"), callRestart, callCheckpointFails, term, callTaskDelete}, []int{3}},
	{"restart in task delete", member, []call{callTaskCreate, callTaskStart, term, crash(callTaskDelete, "task:forget"), callRestart, again(callTaskDelete)}, []int{4}},
	{"restart in exec start", extra, []call{callExecAdd, crash(callExecRun, "runtime:ended"), callRestart, again(callExecRun), callTaskDelete}, []int{2}},
	{"restart in sandbox create", sandboxWith(full), []call{crash(callSandboxCreate, "store:committed"), callRestart, callSandboxCreate, callSandboxStart, callSandboxShutdown}, []int{1}},
	{"restart in sandbox start", sandboxWith(full), []call{callSandboxCreate, crash(callSandboxStart, "monitor:runs"), callRestart, again(callSandboxStart), callSandboxShutdown}, []int{2}},
	{"restart in sandbox stop", living, []call{callSandboxCreate, callSandboxStart, callTaskCreate, callTaskStart, crash(callSandboxStop, "sandbox:stop:walls"), callRestart, callSandboxStop, callEnded, callTaskDelete, callSandboxShutdown}, []int{5}},
	{"restart in sandbox shutdown", sandboxWith(full), []call{callSandboxCreate, callSandboxStart, crash(callSandboxShutdown, "sandbox:remove:dir"), callRestart, again(callSandboxShutdown)}, []int{3}},
	{"upgrade", sandboxWith(full), []call{upgraded, callRestart}, []int{1}},
}

// again is a call after a fault, as a life goes on with it.
func again(c call) call {
	if c.again == nil {
		return c
	}
	return call{name: c.name, do: c.again}
}

func sandboxWith(o *options.Options) func(*world) *run {
	return func(w *world) *run { return &run{world: w, opts: o} }
}

// member is a container in the sandbox beside.
func member(w *world) *run {
	return &run{world: w, address: w.beside.address, fifos: true, script: untilTerm, printed: begin + "end\n", status: 7}
}

// listening has two processes that get signals.
func listening(w *world) *run {
	r := member(w)
	r.script = `trap : USR1; trap 'echo end; exit 7' TERM; (trap : USR1; echo begin; while :; do sleep 1000 & wait; done) & while :; do wait; done`
	return r
}

// paused is one that rests for a while.
func paused(w *world) *run {
	r := member(w)
	r.want = []string{"create", "start", "paused", "resumed", "exit 7", "delete 7"}
	return r
}

// checkpointed is one whose OCI runtime needs no CRIU.
func checkpointed(w *world) *run {
	r := member(w)
	r.runtime = w.withoutCRIU("whole")
	r.want = []string{"create", "start", "checkpointed", "exit 7", "delete 7"}
	return r
}

func uncheckpointed(w *world) *run {
	r := member(w)
	r.runtime = w.withoutCRIU("half")
	return r
}

// extra is an exec in the container beside.
func extra(w *world) *run {
	return &run{world: w, address: w.beside.address, within: w.beside.id, fifos: true, script: "echo begin; exit 3", printed: begin, status: 3}
}

func extraTerminal(w *world) *run {
	r := extra(w)
	r.tty, r.printed = true, "begin\r\n"
	return r
}

func killed(w *world) *run {
	r := member(w)
	r.printed, r.status = begin, 137
	return r
}

func terminal(w *world) *run {
	r := member(w)
	r.tty, r.printed = true, "begin\r\nend\r\n"
	return r
}

func impossible(w *world) *run {
	r := member(w)
	r.program, r.want = "/no/such/program", []string{}
	return r
}

func unstarted(w *world) *run {
	r := member(w)
	r.status, r.want = 137, []string{"create", "exit 137", "delete 137"}
	return r
}

// alone is a container without a sandbox.
func alone(w *world) *run {
	r := member(w)
	r.address = ""
	return r
}

// living is a container in a sandbox of its own, which tells it to end.
func living(w *world) *run {
	r := member(w)
	r.opts = full
	return r
}

// lost is one that is killed with its sandbox, and forgotten with it.
func lost(w *world) *run {
	r := killed(w)
	r.opts = full
	return r
}

// untold is a container of whose end nothing certain is told.
func untold(w *world) *run {
	r := member(w)
	r.untold = true
	return r
}
