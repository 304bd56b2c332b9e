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
	meanwhile string // a command line that is repeated until it ends
	never     string // why the condition cannot arise: nothing is run
}

func never(why string) []run { return []run{{never: why}} }
func like(runs ...run) []run { return runs }

// usual is what most commands do.
func (t trial) usual(path string, c condition) run {
	r := run{args: t.args, code: 1}
	if path == "run" || path == "exec" {
		r.code = 125
	}
	switch c {
	case interrupted:
		r.code, r.waits, r.says = 130, "daemon", "caisson: interrupted"
	case unread:
		r.code = 141
	case full:
		r.says = "no space left on device"
	case denied:
		r.says = "run caisson as the user it belongs to"
	case noTerminal:
		r.never = "it wants none, and has none under the other conditions"
	}
	return r
}

const (
	silent = "it writes nothing to standard output"
	alone  = "it asks nobody, and is done at once"
	public = "it uses neither a socket nor a file"
	criu   = "without CRIU it has nothing to print, and with it what `stop` prints"
)

// local are commands that print what they know themselves.
var local = map[condition][]run{interrupted: never(alone), denied: never(public)}

var trials = map[string]trial{
	"run": {"run --rm --net none {image} echo hi", map[condition][]run{
		interrupted: like(
			run{args: "run --name {} {image} true", code: 130, waits: "daemon", says: "caisson: interrupted"},
			run{args: "run --name {} {tcp}/demo:1", code: 130, waits: "daemon", says: "caisson: interrupted"},
			run{args: "run --rm --net none -v {dir}:/m {image} sh /m/wait", code: 3, waits: "output"},
		),
		unread: like(
			run{args: "run --rm --net none {image} echo hi", code: 141},
			run{args: "run --rm --net none {image} yes", code: 141},
			run{args: "run -d --name {} --net none {image} true", code: 141},
		),
		denied: like(
			run{args: "run --rm {image} true", code: 125, says: "run caisson as the user it belongs to"},
			run{args: "--root {fixed} run -d --name {} {image} true", code: 125, says: "read-only file system"},
		),
		noTerminal: like(run{args: "run --rm -it {image} sh", code: 125, says: "needs a terminal"}),
	}},
	"exec": {"exec box echo hi", map[condition][]run{
		interrupted: like(
			run{args: "exec box true", code: 130, waits: "daemon", says: "caisson: interrupted"},
			run{args: "exec box sh /m/wait", code: 3, waits: "output"},
		),
		noTerminal: like(run{args: "exec -it box sh", code: 125, says: "needs a terminal"}),
	}},
	"attach": {"attach box", map[condition][]run{
		interrupted: like(
			run{args: "attach box", code: 130, waits: "daemon", says: "caisson: interrupted"},
			run{args: "attach chatty", code: 130, waits: "output", says: "caisson: interrupted"},
		),
		full:       like(run{args: "attach chatty", code: 1, says: "no space left on device"}),
		noTerminal: never("it connects to what there is"),
	}},
	"logs": {"logs -f box", map[condition][]run{
		interrupted: like(
			run{args: "logs box", code: 130, waits: "daemon", says: "caisson: interrupted"},
			run{args: "logs -f box", code: 130, waits: "output", says: "caisson: interrupted"},
			run{args: "logs long", code: 130, waits: "reader", says: "caisson: interrupted"},
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
		unread: never(criu),
		full:   like(run{args: "checkpoint --image-path {tiny}/{} box", code: 1, says: "--log-driver none"}),
	}},
	"restore": {"restore done", map[condition][]run{unread: never(criu), full: never(criu)}},
	"stats": {"stats box", map[condition][]run{
		interrupted: like(run{args: "stats", code: 0, waits: "daemon"}, run{args: "stats box", code: 0, waits: "output"}),
	}},
	"top": {"top --no-stream box", map[condition][]run{
		noTerminal: like(run{args: "top box", code: 0, says: "SANDBOX"}),
	}},
	"events": {"events", map[condition][]run{
		interrupted: like(run{args: "events", code: 0, waits: "daemon"}, run{args: "events", code: 0, waits: "output", meanwhile: "image tag {image} {}"}),
		full:        like(run{args: "events", code: 1, says: "no space left on device", meanwhile: "image tag {image} {}"}),
	}},
	"cp": {"cp box:/bin/busybox {tiny}/{}", map[condition][]run{
		unread: never(silent),
		denied: like(
			run{args: "cp box:/bin/busybox {dir}/{}", code: 1, says: "run caisson as the user it belongs to"},
			run{args: "cp box:/bin/busybox {fixed}/{}", code: 1, says: "read-only file system"},
		),
	}},
	"port-forward": {"port-forward pod :80", map[condition][]run{
		interrupted: like(
			run{args: "port-forward pod :80", code: 130, waits: "daemon", says: "caisson: interrupted"},
			run{args: "port-forward pod :80", code: 0, waits: "output"},
		),
	}},
	"prune": {"prune -f", map[condition][]run{
		unread:     never("it would remove what the others work on; it prints what `rm` prints"),
		full:       never("it would remove what the others work on; it prints what `rm` prints"),
		noTerminal: like(run{args: "prune", code: 1, says: "add --force"}),
	}},

	"sandbox apply": {"sandbox apply --net none -f {pod}", map[condition][]run{
		interrupted: like(
			run{args: "sandbox apply -f {pod}", code: 130, waits: "daemon", says: "caisson: interrupted"},
			run{args: "sandbox apply -f -", code: 130, waits: "input", says: "caisson: interrupted"},
		),
		unread: like(run{args: "sandbox apply --net none -f -", input: pod, code: 141}),
		full: like(
			run{args: "sandbox apply --net none -f -", input: pod, code: 1, says: "no space left on device"},
			run{args: "--root {tiny} sandbox apply --net none -f -", input: pod, code: 1, says: "no space left on device"},
		),
		denied: like(
			run{args: "sandbox apply --net none -f {pod}", code: 1, says: "run caisson as the user it belongs to"},
			run{args: "--root {fixed} sandbox apply --net none -f -", input: pod, code: 1, says: "read-only file system"},
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
			run{args: "image pull demo", code: 130, waits: "daemon", says: "caisson: interrupted"},
			run{args: "image pull {tcp}/demo:1", code: 130, waits: "daemon", says: "caisson: interrupted"},
		),
	}},
	"image push": {"image push {registry}/demo:1", map[condition][]run{
		interrupted: like(
			run{args: "image push demo", code: 130, waits: "daemon", says: "caisson: interrupted"},
			run{args: "image push {tcp}/demo:1", first: "image tag {image} {tcp}/demo:1", code: 130, waits: "daemon", says: "caisson: interrupted"},
		),
	}},
	"image import": {"image import {archive}", map[condition][]run{
		interrupted: like(
			run{args: "image import {archive}", code: 130, waits: "daemon", says: "caisson: interrupted"},
			run{args: "image import -", code: 130, waits: "input", says: "caisson: interrupted"},
		),
		full: like(
			run{args: "image import {archive}", code: 1, says: "no space left on device"},
			run{args: "TMPDIR={tiny} image import - {}", input: strings.Repeat("x", 1<<20), code: 1, says: "no space left on device"},
		),
	}},
	"image ls":      {args: "image ls"},
	"image rm":      {args: "image rm -f {}"},
	"image inspect": {args: "image inspect {image}"},
	"image tag":     {args: "image tag {image} {}"},
	"image save": {"image save {image}", map[condition][]run{
		interrupted: like(
			run{args: "image save {image}", code: 130, waits: "daemon", says: "caisson: interrupted"},
			run{args: "image save {image}", code: 130, waits: "reader", says: "caisson: interrupted"},
		),
		full: like(
			run{args: "image save {image}", code: 1, says: "no space left on device"},
			run{args: "image save -o {tiny}/{} {image}", code: 1, says: "no space left on device"},
		),
		denied: like(
			run{args: "image save -o {dir}/{} {image}", code: 1, says: "run caisson as the user it belongs to"},
			run{args: "image save -o {fixed}/{} {image}", code: 1, says: "read-only file system"},
		),
	}},

	"system df": {args: "system df"},
	"login": {"login -u dev --password-stdin {registry}", map[condition][]run{
		interrupted: like(
			run{args: "login -u dev --password-stdin {registry}", code: 130, waits: "input", says: "caisson: interrupted"},
			run{args: "login -u dev --password-stdin {tcp}", input: "secret", code: 130, waits: "daemon", says: "caisson: interrupted"},
		),
		unread: like(run{args: "login -u dev --password-stdin {registry}", input: "secret", code: 141}),
		full: like(
			run{args: "login -u dev --password-stdin {registry}", input: "secret", code: 1, says: "no space left on device"},
			run{args: "DOCKER_CONFIG={tiny}/docker login -u dev --password-stdin {registry}", input: "secret", code: 1, says: "no space left on device"},
		),
		denied: like(
			run{args: "login -u dev --password-stdin {registry}", input: "secret", code: 1, says: "permission denied"},
			run{args: "DOCKER_CONFIG={fixed}/docker login -u dev --password-stdin {registry}", input: "secret", code: 1, says: "read-only file system"},
		),
		noTerminal: like(run{args: "login {registry}", code: 1, says: "add --username and --password-stdin"}),
	}},
	"logout": {"logout {registry}", map[condition][]run{
		interrupted: never(alone),
		unread:      never(silent),
		full:        like(run{args: "DOCKER_CONFIG={tiny}/docker logout kept.example", code: 1, says: "no space left on device"}),
		denied:      like(run{args: "logout {registry}", code: 1, says: "permission denied"}),
	}},
	"version": {args: "version"},
	"info":    {args: "info"},
	"doctor": {"doctor --state {state}", map[condition][]run{
		denied: like(run{args: "doctor --state {state}", code: 1, says: "run caisson doctor as root"}),
	}},
	"debug dump": {"debug dump -o -", map[condition][]run{
		interrupted: like(
			run{args: "debug dump -o -", code: 130, waits: "daemon", says: "caisson: interrupted"},
			run{args: "debug dump -o {dir}/{}", code: 130, waits: "daemon", says: "caisson: interrupted"},
		),
		full: like(
			run{args: "debug dump -o -", code: 1, says: "no space left on device"},
			run{args: "debug dump -o {tiny}/{}", code: 1, says: "no space left on device"},
		),
		denied: like(
			run{args: "debug dump -o -", code: 1, says: "only root may look into the daemon"},
			run{args: "debug dump -o {fixed}/{}", code: 1, says: "read-only file system"},
		),
	}},
	"config containerd":     {"config containerd", local},
	"config kubernetes":     {"config kubernetes", local},
	"completion bash":       {"completion bash", local},
	"completion fish":       {"completion fish", local},
	"completion powershell": {"completion powershell", local},
	"completion zsh":        {"completion zsh", local},
}

// frozen are the runs of pause and unpause that work, each with a container of its own.
func frozen(verb, first string) map[condition][]run {
	first = "run -d --name {} --net none {image} sleep 1000" + first
	return map[condition][]run{
		unread: like(run{args: verb + " {}", first: first, code: 141}),
		full:   like(run{args: verb + " {}", first: first, code: 1, says: "no space left on device"}),
	}
}

const pod = `{apiVersion: v1, kind: Pod, metadata: {name: "{}"}, spec: {
  volumes: [{name: v, configMap: {name: c}}],
  containers: [{name: a, image: "{image}", command: [sleep, "1000"], volumeMounts: [{name: v, mountPath: /v}]}]}}
---
{apiVersion: v1, kind: ConfigMap, metadata: {name: c}, data: {file: text}}
`
