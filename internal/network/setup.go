package network

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/containerd/errdefs"

	"caisson/internal/fault"
	"caisson/internal/tracing"
	"caisson/internal/undo"
)

// Setup makes the network of a sandbox. A name that is in use is
// AlreadyExists, a CNI configuration that is missing or cannot do what is
// asked FailedPrecondition. After an error nothing remains, or the error says
// what does and Teardown can try again.
func (m *Manager) Setup(ctx context.Context, req Request) (_ Result, err error) {
	ctx, done := tracing.Child(ctx, "network.setup")
	defer func() { done(err) }()
	fail := func(err error) (Result, error) {
		return Result{}, fmt.Errorf("network of sandbox %q: set up: %w", req.ID, err)
	}
	switch req.Mode {
	case Host, Given:
		return Result{}, nil
	case None, CNI:
	default:
		return fail(fmt.Errorf("mode %q is unknown: %w", req.Mode, errdefs.ErrInvalidArgument))
	}
	if err := m.check(req); err != nil {
		return fail(err)
	}
	var plugins *plugins
	if req.Mode == CNI {
		// First what needs no undo.
		if plugins, err = m.configured(req); err != nil {
			return fail(err)
		}
	}
	if err := os.MkdirAll(m.cfg.NetNSDir, 0o700); err != nil {
		return fail(classify(err))
	}
	var steps undo.Stack
	path := m.nsPath(req.Name)
	if err := makeNetNS(path, req.UIDs, req.GIDs); err != nil {
		return fail(fmt.Errorf("network namespace %s: %w", path, err))
	}
	// Teardown keeps what it needs to be tried again if a plugin fails in it.
	steps.Add("network", func(ctx context.Context) error { return m.Teardown(ctx, req) })
	result := Result{NetNSPath: path}
	if plugins != nil {
		if err = m.saveRecord(req.Name, plugins.record); err == nil {
			err = plugins.add(ctx, path, &result)
		}
		if err == nil {
			plugins.record.Adding = false
			err = m.saveRecord(req.Name, plugins.record)
		}
	}
	fault.Point("network:made")
	if err != nil {
		return fail(errors.Join(err, steps.Run(ctx)))
	}
	return result, nil
}

// Teardown takes down what Setup made, and whatever an interrupted Setup or
// Teardown left. It may be repeated, also when namespace or record are gone.
// If a plugin fails, the rest is kept, so that Teardown can be tried again.
func (m *Manager) Teardown(ctx context.Context, req Request) error {
	fail := func(err error) error {
		return fmt.Errorf("network of sandbox %q: take down: %w", req.ID, err)
	}
	if req.Mode == Host || req.Mode == Given {
		return nil
	}
	if !nameRE.MatchString(req.Name) {
		return fail(fmt.Errorf("name %q: %w", req.Name, errdefs.ErrInvalidArgument))
	}
	path := m.nsPath(req.Name)
	// The record decides, not the mode: it is there if plugins may have run.
	plugins, err := m.recorded(req.Name)
	if err != nil {
		return fail(err)
	}
	if plugins != nil {
		if plugins.record.Adding {
			// Plugins outlive a daemon that is killed, and their own children a plugin
			// that is: what they do after DEL nobody would take back.
			if err := endPlugins(ctx, plugins.record.ContainerID, pluginPatience); err != nil {
				return fail(err)
			}
		}
		ns := path
		if !isNetNS(path) {
			ns = "" // gone, after a reboot for example; addresses are still held
		}
		if err := plugins.del(ctx, ns); err != nil {
			return fail(err)
		}
	}
	// The record goes last: while it is there, the rest is still to be done.
	if err := removeNetNS(path); err != nil {
		return fail(err)
	}
	if err := m.removeRecord(req.Name); err != nil {
		return fail(err)
	}
	return nil
}
