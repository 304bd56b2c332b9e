package integration

import "strings"

// The conditions that every command has to cope with.
type condition string

const (
	interrupted condition = "interrupted" // SIGINT while it waits for a daemon that does not answer
	unread      condition = "unread"      // nobody reads its standard output
	full        condition = "full"        // no space left where it writes
	denied      condition = "denied"      // another user than root, or a file system that is read-only
	noTerminal  condition = "no terminal" // where one would be wanted
)

// trial is how a command is run under the conditions: args is a command line that works
// and prints, as runs says where that will not do.
type trial struct {
	args string
	runs map[condition][]run
}

// run is one run of a command, and how it must end. In args and input, {} is a name of the
// run's own, and other words in braces are what is there for all of them.
type run struct {
	args      string // assignments first, which go to the environment
	code      int
	says      string // is in what it writes
	input     string // on standard input
	waits     string // what it waits for when it is interrupted: daemon, input, reader, output
	first     string // command lines before it, with ; between them
	meanwhile string // command lines that are repeated until it ends
	never     string // why the condition cannot arise: nothing is run
	alone     bool   // when all others have ended, because it takes what they have
	criu      bool   // only where CRIU works
}

func never(why string) []run { return []run{{never: why}} }
func like(runs ...run) []run { return runs }

// stops is a command that waits for something when it is interrupted.
func stops(args, waits string) run {
	return run{args: args, code: 130, waits: waits, says: "caisson: interrupted"}
}

// ends is one that is there to be interrupted, or whose process says how it ends.
func ends(args, waits string, code int) run { return run{args: args, code: code, waits: waits} }

// unheard is one that nobody reads.
func unheard(args string) run { return run{args: args, code: 141} }

// fails is a command that says why it cannot do it.
func fails(args, says string) run { return run{args: args, code: 1, says: says} }

func (r run) given(input string) run  { r.input = input; return r }
func (r run) after(lines string) run  { r.first = lines; return r }
func (r run) during(lines string) run { r.meanwhile = lines; return r }
func (r run) last() run               { r.alone = true; return r }
func (r run) withCRIU() run           { r.criu = true; return r }

const (
	noSpace  = "no space left on device"
	readOnly = "read-only file system"
	noRights = "run caisson as the user it belongs to"
)

// usual is what most commands do.
func (t trial) usual(path string, c condition) run {
	r := run{never: "it wants no terminal, and has none under the other conditions"}
	switch c {
	case interrupted:
		return stops(t.args, "daemon")
	case unread:
		return unheard(t.args)
	case full:
		r = fails(t.args, noSpace)
	case denied:
		r = fails(t.args, noRights)
	}
	if path == "run" || path == "exec" {
		r.code = 125
	}
	return r
}

const (
	silent = "it writes nothing to standard output"
	alone  = "it asks nobody, and is done at once"
	public = "it uses neither a socket nor a file"
)

// local are commands that print what they know themselves.
var local = map[condition][]run{interrupted: never(alone), denied: never(public)}

var trials = map[string]trial{
	"run": {"run --rm --net none {image} echo hi", map[condition][]run{
		interrupted: like(
			stops("run --name {} {image} true", "daemon"),
			stops("run --name {} {tcp}/demo:1", "daemon"),
			ends("run --rm --net none -v {dir}:/m {image} sh /m/wait", "output", 3),
		),
		unread: like(
			unheard("run --rm --net none {image} echo hi"),
			unheard("run --rm --net none {image} yes"),
			unheard("run -d --name {} --net none {image} true"),
		),
		denied: like(
			run{args: "run --rm {image} true", code: 125, says: noRights},
			run{args: "--root {fixed} run -d --name {} {image} true", code: 125, says: readOnly},
		),
		noTerminal: like(run{args: "run --rm -it {image} sh", code: 125, says: "needs a terminal"}),
	}},
	"exec": {"exec box echo hi", map[condition][]run{
		interrupted: like(
			stops("exec box true", "daemon"),
			ends("exec box sh /m/wait", "output", 3),
		),
		noTerminal: like(run{args: "exec -it box sh", code: 125, says: "needs a terminal"}),
	}},
	"attach": {"attach box", map[condition][]run{
		interrupted: like(
			stops("attach box", "daemon"),
			stops("attach chatty", "output"),
		),
		full:       like(fails("attach chatty", noSpace)),
		noTerminal: never("it connects to what there is"),
	}},
	"logs": {"logs -f box", map[condition][]run{
		interrupted: like(
			stops("logs box", "daemon"),
			stops("logs -f box", "output"),
			stops("logs long", "reader"),
		),
	}},
	"stop":    {args: "stop done"},
	"kill":    {args: "kill -s CONT box"},
	"rm":      {args: "rm -f {}"},
	"wait":    {args: "wait done"},
	"ps":      {args: "ps -a"},
	"inspect": {args: "inspect box"},
	"pause":   {"pause {}", frozen("pause", "")},
	"unpause": {"unpause {}", frozen("unpause", ";pause {}")},
	"checkpoint": {"checkpoint box", map[condition][]run{
		unread: like(unheard("checkpoint {}").after(sleeper).withCRIU()),
		full: like(
			fails("checkpoint --image-path {tiny}/{} chatty", noSpace),
			fails("checkpoint {}", noSpace).after(sleeper).withCRIU(),
		),
		denied: like(
			fails("checkpoint box", noRights),
			fails("checkpoint --image-path {fixed}/{} chatty", readOnly),
		),
	}},
	"restore": {"restore done", map[condition][]run{
		unread: like(unheard("restore {}").after(sleeper + ";checkpoint {}").withCRIU()),
		full:   like(fails("restore {}", noSpace).after(sleeper + ";checkpoint {}").withCRIU()),
	}},
	"stats": {"stats box", map[condition][]run{
		interrupted: like(ends("stats", "daemon", 0), ends("stats box", "output", 0)),
	}},
	"top": {"top --no-stream box", map[condition][]run{
		noTerminal: like(run{args: "top box", code: 0, says: "SANDBOX"}),
	}},
	"events": {"events", map[condition][]run{
		interrupted: like(ends("events", "daemon", 0), ends("events", "output", 0).during("image tag {image} {}")),
		full:        like(fails("events", noSpace).during("image tag {image} {}")),
	}},
	"cp": {"cp box:/bin/busybox {tiny}/{}", map[condition][]run{
		unread: never(silent),
		denied: like(
			fails("cp box:/bin/busybox {dir}/{}", noRights),
			fails("cp box:/bin/busybox {fixed}/{}", readOnly),
		),
	}},
	"port-forward": {"port-forward pod :80", map[condition][]run{
		interrupted: like(
			stops("port-forward pod :80", "daemon"),
			ends("port-forward pod :80", "output", 0),
		),
	}},
	"prune": {"prune -f", map[condition][]run{
		unread:     like(unheard("prune -f").after(ended).last()),
		full:       like(fails("prune -f", noSpace).after(ended).last()),
		noTerminal: like(fails("prune", "add --force")),
	}},

	"sandbox apply": {"sandbox apply --net none -f {pod}", map[condition][]run{
		interrupted: like(
			stops("sandbox apply -f {pod}", "daemon"),
			stops("sandbox apply -f -", "input"),
		),
		unread: like(unheard("sandbox apply --net none -f -").given(pod)),
		full: like(
			fails("sandbox apply --net none -f -", noSpace).given(pod),
			fails("--root {tiny} sandbox apply --net none -f -", noSpace).given(pod),
		),
		denied: like(
			fails("sandbox apply --net none -f {pod}", noRights),
			fails("--root {fixed} sandbox apply --net none -f -", readOnly).given(pod),
		),
	}},
	"sandbox create":  {args: "sandbox create {}"},
	"sandbox start":   {args: "sandbox start pod"},
	"sandbox stop":    {args: "sandbox stop stopped"},
	"sandbox rm":      {args: "sandbox rm -f {}"},
	"sandbox ls":      {args: "sandbox ls"},
	"sandbox inspect": {args: "sandbox inspect pod"},
	"sandbox wait":    {args: "sandbox wait stopped"},
	"sandbox metrics": {args: "sandbox metrics pod"},
	"sandbox update":  {args: "sandbox update --label a=b pod"},

	"image pull": {"image pull {registry}/demo:1", map[condition][]run{
		interrupted: like(
			stops("image pull demo", "daemon"),
			stops("image pull {tcp}/demo:1", "daemon"),
		),
	}},
	"image push": {"image push {registry}/demo:1", map[condition][]run{
		interrupted: like(
			stops("image push demo", "daemon"),
			stops("image push {tcp}/demo:1", "daemon").after("image tag {image} {tcp}/demo:1"),
		),
	}},
	"image import": {"image import {archive}", map[condition][]run{
		interrupted: like(
			stops("image import {archive}", "daemon"),
			stops("image import -", "input"),
		),
		full: like(
			fails("image import {archive}", noSpace),
			fails("TMPDIR={tiny} image import - {}", noSpace).given(strings.Repeat("x", 1<<20)),
		),
	}},
	"image ls":      {args: "image ls"},
	"image rm":      {args: "image rm -f {}"},
	"image inspect": {args: "image inspect {image}"},
	"image tag":     {args: "image tag {image} {}"},
	"image save": {"image save {image}", map[condition][]run{
		interrupted: like(
			stops("image save {image}", "daemon"),
			stops("image save {image}", "reader"),
		),
		full: like(
			fails("image save {image}", noSpace),
			fails("image save -o {tiny}/{} {image}", noSpace),
		),
		denied: like(
			fails("image save -o {dir}/{} {image}", noRights),
			fails("image save -o {fixed}/{} {image}", readOnly),
		),
	}},

	"system df": {args: "system df"},
	"login": {"login -u dev --password-stdin {registry}", map[condition][]run{
		interrupted: like(
			stops("login -u dev --password-stdin {registry}", "input"),
			stops("login -u dev --password-stdin {tcp}", "daemon").given("secret"),
		),
		unread: like(unheard("login -u dev --password-stdin {registry}").given("secret")),
		full: like(
			fails("login -u dev --password-stdin {registry}", noSpace).given("secret"),
			fails("DOCKER_CONFIG={tiny}/docker login -u dev --password-stdin {registry}", noSpace).given("secret"),
		),
		denied: like(
			fails("login -u dev --password-stdin {registry}", "permission denied").given("secret"),
			fails("DOCKER_CONFIG={fixed}/docker login -u dev --password-stdin {registry}", readOnly).given("secret"),
		),
		noTerminal: like(fails("login {registry}", "add --username and --password-stdin")),
	}},
	"logout": {"logout {registry}", map[condition][]run{
		interrupted: never(alone),
		unread:      never(silent),
		full:        like(fails("DOCKER_CONFIG={tiny}/docker logout kept.example", noSpace)),
		denied:      like(fails("logout {registry}", "permission denied")),
	}},
	"version": {args: "version"},
	"info":    {args: "info"},
	"doctor": {"doctor --state {state}", map[condition][]run{
		denied: like(fails("doctor --state {state}", "run caisson doctor as root")),
	}},
	"debug dump": {"debug dump -o -", map[condition][]run{
		interrupted: like(
			stops("debug dump -o -", "daemon"),
			stops("debug dump -o {dir}/{}", "daemon"),
		),
		full: like(
			fails("debug dump -o -", noSpace),
			fails("debug dump -o {tiny}/{}", noSpace),
		),
		denied: like(
			fails("debug dump -o -", "only root may look into the daemon"),
			fails("debug dump -o {fixed}/{}", readOnly),
		),
	}},
	"config containerd":     {"config containerd", local},
	"config kubernetes":     {"config kubernetes", local},
	"completion bash":       {"completion bash", local},
	"completion fish":       {"completion fish", local},
	"completion powershell": {"completion powershell", local},
	"completion zsh":        {"completion zsh", local},
}

const (
	sleeper = "run -d --name {} --net none {image} sleep 1000"
	ended   = "run --name {} --net none {image} true"
)

// frozen are the runs of pause and unpause that work, each with a container of its own.
func frozen(verb, first string) map[condition][]run {
	first = sleeper + first
	return map[condition][]run{
		unread: like(unheard(verb + " {}").after(first)),
		full:   like(fails(verb+" {}", noSpace).after(first)),
	}
}

const pod = `{apiVersion: v1, kind: Pod, metadata: {name: "{}"}, spec: {
  volumes: [{name: v, configMap: {name: c}}],
  containers: [{name: a, image: "{image}", command: [sleep, "1000"], volumeMounts: [{name: v, mountPath: /v}]}]}}
---
{apiVersion: v1, kind: ConfigMap, metadata: {name: c}, data: {file: text}}
`
