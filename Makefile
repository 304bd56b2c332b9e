# make demo   runs two containers in one sandbox and shows what they printed
# make test   unit and integration tests (root)
# make build  leaves the binaries in bin/
# The rest: deps lint proto test-vm clean.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build

GO      ?= go
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X caisson/internal/version.current=$(VERSION)
GOBUILD := CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)'

SHIM    := bin/containerd-shim-caisson-v2

.PHONY: build deps monitor shim daemon cli ctr test lint proto demo test-vm clean

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

# The stock client that the integration tests run, of the containerd version in go.mod.
ctr:
	@mkdir -p build
	CGO_ENABLED=0 $(GO) build -trimpath -o build/ctr github.com/containerd/containerd/v2/cmd/ctr

test: deps
	@script/test

lint: deps monitor
	@script/lint

proto:
	@script/deps proto
	@script/proto

demo: deps
	@$(MAKE) --no-print-directory build
	@CGO_ENABLED=0 $(GO) run ./test/demo

test-vm: deps
	@script/deps vm
	@script/test-vm

clean:
	rm -rf bin build
	@$(MAKE) --no-print-directory -C internal/monitor/c clean
	@$(MAKE) --no-print-directory -C cmd/containerd-shim-caisson-v2 clean
