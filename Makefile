# make demo   runs two containers in one sandbox and shows what they printed
# make test   unit and integration tests (root)
# make build  leaves the binaries in bin/
# make test-libcontainerd   the library's suite and two minutes of its soak, on three servers (root)
# make soak   its soak alone: SOAK='-soak 1h -seed 7 -server runc' (root)
# make faults   kills the daemon at each of its fault points, or lets them fail, and prints a table (root)
# make test-load  a thousand sandboxes, ten thousand execs, a GiB of output (root)
# make fuzz FUZZTIME=5m   each fuzz test, and libFuzzer on the monitor, for so long (root)
# make chaos  pod lives while everything that may die is killed: CHAOS_DURATION, CHAOS_SEED (root)
# make bench  Caisson beside its peers; make bench-report puts the results into docs/ (root)
# make test-cri   Kubernetes' conformance suite for the CRI (root; its first build takes minutes)
# make test-conformance   runs what docs/conformance.md has to run (root; slow)
# make test-containerd-versions   a smoke test of other versions of containerd (root)
# make test-kubernetes   a real Kubernetes, with static pods and an API server (root; its first build takes minutes)
# make docs   docs/reference/ and man pages in build/man, from the commands themselves; docs/configuration.md
# make install PREFIX=/usr/local DESTDIR=   programs, systemd unit, completions, man pages; and make uninstall
# make deb, make release   a Debian package; that, an archive, SBOMs and checksums, in dist/
# make test-release   builds a release twice, in two clones, and compares (slow)
# make test-contributing   follows CONTRIBUTING.md in a fresh clone (root; slow)
# The rest: deps lint proto test-vm test-vm-cri clean.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build

GO      ?= go
# What a build says of itself. The date is the commit's, so that all builds of a
# commit are the same, wherever and whenever they are made.
VERSION           := $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
COMMIT            ?= $(shell git rev-parse HEAD 2>/dev/null)
SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || echo 0)
DATE              := $(shell date -u -d @$(SOURCE_DATE_EPOCH) +%FT%TZ)
export VERSION SOURCE_DATE_EPOCH

pkg     := caisson/internal/version
LDFLAGS := -s -w -X $(pkg).current=$(VERSION) -X $(pkg).commit=$(COMMIT) -X $(pkg).date=$(DATE)
GOBUILD := CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -ldflags '$(LDFLAGS)'

SHIM    := bin/containerd-shim-caisson-v2

.PHONY: build deps monitor shim daemon cli ctr earlier test lint proto demo faults caissond-faults test-libcontainerd soak test-load fuzz critest test-cri test-conformance test-containerd-versions test-kubernetes test-vm test-vm-cri clean chaos bench bench-report docs registry install uninstall deb release test-release test-contributing

build: daemon cli shim

# Debian packages that are missing; does nothing, and needs no root, when none is.
deps:
	@script/deps base

monitor:
	@$(MAKE) --no-print-directory -C internal/monitor/c

shim:
	@mkdir -p bin
	@$(MAKE) --no-print-directory -C cmd/containerd-shim-caisson-v2 OUT=$(abspath $(SHIM))

# The monitor is embedded in the daemon, so it comes first.
daemon: monitor
	@mkdir -p bin
	$(GOBUILD) -o bin/caissond ./cmd/caissond

cli:
	@mkdir -p bin
	$(GOBUILD) -o bin/caisson ./cmd/caisson

# The stock client, server and shim that the integration tests run, of the
# containerd version in go.mod.
ctr:
	@mkdir -p build
	CGO_ENABLED=0 $(GO) build -trimpath -o build/ $(addprefix github.com/containerd/containerd/v2/cmd/,ctr containerd containerd-shim-runc-v2)

# The registry that the tests pull from and push to.
registry:
	@script/registry build

# The daemons of these commits, for the test of upgrades: the last of the first
# version of the monitor's protocol, and the last without a keeper.
EARLIER ?= e7c1ab1 7e6c7c6
earlier:
	@script/earlier $(EARLIER)

test: deps
	@script/test

lint: deps monitor
	@script/lint

proto:
	@script/deps proto
	@script/proto

# docs/reference and docs/configuration.md are committed; a test says when they are stale. Man pages have the date of
# the commit, so that a build can be repeated.
docs: monitor
	@mkdir -p build/man docs/reference
	SOURCE_DATE_EPOCH="$$(git log -1 --format=%ct 2>/dev/null || echo 0)" CGO_ENABLED=0 $(GO) run ./internal/reference -markdown docs/reference -man build/man -configuration docs/configuration.md

demo: deps
	@$(MAKE) --no-print-directory build
	@CGO_ENABLED=0 $(GO) run ./test/demo

# FAULTS are flags: -only the cases with a text in their name; -logs a directory
# for the daemons' logs of those that fail.
faults: deps
	@$(MAKE) --no-print-directory build caissond-faults
	CGO_ENABLED=0 $(GO) test -count=1 -timeout 1h -v ./test/faults -args -all $(FAULTS)

caissond-faults: monitor
	@mkdir -p build
	$(GOBUILD) -tags faults -o build/caissond-faults ./cmd/caissond

# What goes wrong in the soak is kept in build/soak.
test-libcontainerd: deps
	@$(MAKE) --no-print-directory build ctr
	@mkdir -p build/soak
	CGO_ENABLED=1 $(GO) test -race -count=1 -timeout 20m -parallel 6 -v ./test/libcontainerd -args -soak 2m -logs $(abspath build/soak)

# SOAK are flags: -soak how long, all servers together; -seed what it decides by;
# -server the only one.
SOAK ?= -soak 10m
soak: deps
	@$(MAKE) --no-print-directory build ctr
	@mkdir -p build/soak
	CGO_ENABLED=0 $(GO) test -count=1 -timeout 0 -v -run TestSoak ./test/libcontainerd -args -logs $(abspath build/soak) $(SOAK)

# The integration tests of the same names, with more of everything.
test-load: deps
	@$(MAKE) --no-print-directory build ctr
	CAISSON_TEST_SANDBOXES=1000 CAISSON_TEST_EXECS=10000 CAISSON_TEST_OUTPUT=1024 CGO_ENABLED=0 \
		$(GO) test -count=1 -timeout 60m -v -run '^(TestLoad|TestManyExecs|TestNoisyContainers)$$' ./test/integration

# FUZZ is a pattern of names, for example: FUZZ=Monitor, or FUZZ=libFuzzer for the C code.
FUZZTIME ?= 5m
fuzz: deps monitor
	@script/fuzz $(FUZZTIME) $(FUZZ)
# CHAOS_SEED repeats a run. CHAOSFLAGS are more flags: -engine stock for a containerd
# beside caissond; -only the disturbances to choose from. The logs of a run that fails
# are in build/chaos.
CHAOS_DURATION ?= 3m
CHAOS_SEED     ?= 0
chaos: deps
	@$(MAKE) --no-print-directory build ctr
	CGO_ENABLED=0 $(GO) test -count=1 -timeout 0 -v -run TestChaos ./test/chaos -args -chaos $(CHAOS_DURATION) -seed $(CHAOS_SEED) -logs $(abspath build/chaos) $(CHAOSFLAGS)

# Caisson and its peers, side by side: wants a machine that does nothing else. BENCH
# are flags, for example: BENCH='-rounds 10 -parts calls,logs' or BENCH='-parts idle
# -idle 100,1000'; test/bench/doc.go says which parts there are. bench-report makes
# docs/benchmarks.md of the last run. RUNC is what all sides run, newer than Debian's.
RUNC ?= v1.5.2
bench: deps
	@script/deps bench
	@script/runc $(RUNC)
	@$(MAKE) --no-print-directory build ctr
	@mkdir -p build/bench
	PATH="$(abspath build/runc-$(RUNC)):$$PATH" CGO_ENABLED=0 $(GO) test -count=1 -timeout 0 -v -run '^TestBench$$' ./test/bench -args -o $(abspath build/bench/results.json) $(BENCH)
bench-report:
	$(GO) run ./test/bench/report

# CRITEST is critest's binary, which is no part of this module; unless one is named, that
# of this version of cri-tools is built. CRIFLAGS go to test/cri, for example:
# CRIFLAGS='-focus UserNamespaces'. CRIFOCUS is such a focus for where CRIFLAGS has none.
CRITOOLS ?= v1.37.0
CRITEST  ?= build/critest-$(CRITOOLS)/critest
critest:
	@[[ "$(origin CRITEST)" != file ]] || script/critest $(CRITOOLS)
	@[[ -x "$(CRITEST)" ]] || { echo 'make: there is no program $(CRITEST): say where critest is, as in CRITEST=/path/to/critest, or leave that out' >&2; exit 2; }
test-cri: critest
	@script/deps cri
	@$(MAKE) --no-print-directory build
	@test/cri/busybox.sh build/cri/busybox
	@CGO_ENABLED=0 $(GO) build -trimpath -o build/cri/webserver ./test/cri/webserver
	@CGO_ENABLED=0 $(GO) build -o build/cri/test-cri ./test/cri
	@build/cri/test-cri -critest "$(CRITEST)" $(CRIFOCUS:%=-focus %) $(CRIFLAGS)

# The page's own commands, each with a few specs: the patience of somebody who tries it.
# CRIFOCUS= runs all specs.
test-conformance: export CRIFOCUS ?= Idempotence
test-conformance: deps
	@script/test-conformance

# Other versions of containerd than the one in go.mod: a smoke test of each.
CONTAINERDS ?= v2.0.14 v2.1.9 v2.2.9 v2.3.7
test-containerd-versions: deps
	@$(MAKE) --no-print-directory build ctr
	@script/containerd-versions $(CONTAINERDS)
	CGO_ENABLED=0 CAISSON_TEST_CONTAINERDS='$(CONTAINERDS)' $(GO) test -count=1 -timeout 20m -v -run TestStockVersions ./test/integration

# Kubernetes of this version. KUBEFLAGS go to go test, for example: KUBEFLAGS='-run Cluster/stock'.
KUBERNETES ?= v1.36.3
test-kubernetes: deps
	@$(MAKE) --no-print-directory build ctr
	@script/kubernetes $(KUBERNETES)
	CGO_ENABLED=0 CAISSON_TEST_KUBERNETES='$(abspath build/kubernetes/$(KUBERNETES))' $(GO) test -count=1 -timeout 30m -v $(KUBEFLAGS) ./test/kubernetes

test-vm: deps
	@script/deps vm
	@script/test-vm

# critest in the same guest. VMCRI says what runs, of reference, runc and crun.
test-vm-cri: deps critest
	@script/deps cri
	@script/deps vm
	@CRITEST='$(CRITEST)' CRIFLAGS="$(CRIFOCUS:%=-focus %) $(CRIFLAGS)" script/test-vm-cri $(VMCRI)

# Where things go, as the GNU conventions have it: DESTDIR is put before all of it, for
# those who make packages.
PREFIX  ?= /usr/local
DESTDIR ?=
bindir  ?= $(PREFIX)/bin
datadir ?= $(PREFIX)/share
mandir  ?= $(datadir)/man
unitdir ?= $(PREFIX)/lib/systemd/system
bashdir ?= $(datadir)/bash-completion/completions
zshdir  ?= $(datadir)/zsh/site-functions
fishdir ?= $(datadir)/fish/vendor_completions.d

# Man pages come along if make docs has made them.
install: build
	install -d $(addprefix $(DESTDIR),$(bindir) $(unitdir) $(bashdir) $(zshdir) $(fishdir))
	install -m 755 bin/caisson bin/caissond $(SHIM) $(DESTDIR)$(bindir)
	sed 's,@bindir@,$(bindir),' packaging/caissond.service >$(DESTDIR)$(unitdir)/caissond.service
	bin/caisson completion bash >$(DESTDIR)$(bashdir)/caisson
	bin/caisson completion zsh >$(DESTDIR)$(zshdir)/_caisson
	bin/caisson completion fish >$(DESTDIR)$(fishdir)/caisson.fish
	chmod 644 $(addprefix $(DESTDIR),$(unitdir)/caissond.service $(bashdir)/caisson $(zshdir)/_caisson $(fishdir)/caisson.fish)
	for page in $(wildcard build/man/*.[1-8]); do install -D -m 644 -t $(DESTDIR)$(mandir)/man$${page##*.} $$page; done

# What the daemon has made, in /var/lib/caisson, stays.
uninstall:
	rm -f $(addprefix $(DESTDIR)$(bindir)/,caisson caissond $(notdir $(SHIM)))
	rm -f $(addprefix $(DESTDIR),$(unitdir)/caissond.service $(bashdir)/caisson $(zshdir)/_caisson $(fishdir)/caisson.fish)
	rm -f $(DESTDIR)$(mandir)/man[1-8]/caisson{,d,-*}.[1-8]

deb: build
	@mkdir -p dist
	@script/deb dist

release: deps build
	@script/release

test-release: deps
	@script/test-release

test-contributing:
	@script/test-contributing

clean:
	rm -rf bin build dist
	@$(MAKE) --no-print-directory -C internal/monitor/c clean
	@$(MAKE) --no-print-directory -C cmd/containerd-shim-caisson-v2 clean
