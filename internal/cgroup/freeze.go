package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"caisson/internal/fault"
)

// States of the v1 freezer.
const (
	v1Frozen = "FROZEN"
	v1Thawed = "THAWED"
)

// Freeze stops every process of the group and returns when all have stopped.
// If that cannot be reached in time, the group is thawed again.
func (g *Group) Freeze(ctx context.Context) error {
	if err := g.mayFreeze("freeze"); err != nil {
		return err
	}
	bounded, cancel := context.WithTimeout(ctx, freezeTimeout)
	defer cancel()
	err := fault.Fail("cgroup:freeze", unix.EBUSY, unix.EMFILE)
	if err == nil {
		err = g.freeze(bounded)
	}
	if err == nil {
		if !g.exists() {
			return fmt.Errorf("cgroup %q: freeze: %w", g.path, errdefs.ErrNotFound)
		}
		return nil
	}
	if !gone(err) {
		err = errors.Join(err, g.writeThawed())
	}
	return fmt.Errorf("cgroup %q: freeze: %w", g.path, classify(err))
}

func (g *Group) freeze(ctx context.Context) error {
	if g.host.mode != Unified {
		return g.freezeV1(ctx)
	}
	dir := g.host.unifiedDir(g.path)
	if err := writeFile(filepath.Join(dir, "cgroup.freeze"), "1"); err != nil {
		return err
	}
	return awaitEvents(ctx, dir, "frozen", 1)
}

// Thaw lets the processes of the group run and returns when they do. A group
// that is held by a frozen ancestor is FailedPrecondition.
func (g *Group) Thaw(ctx context.Context) error {
	if err := g.mayFreeze("thaw"); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, freezeTimeout)
	defer cancel()
	err := fault.Fail("cgroup:thaw", unix.EMFILE)
	if err == nil {
		err = g.writeThawed()
	}
	if err != nil {
		return fmt.Errorf("cgroup %q: thaw: %w", g.path, classify(err))
	}
	if above := g.frozenAncestor(); above != "" {
		return fmt.Errorf("cgroup %q: thaw: the group %q above it is frozen: %w", g.path, above, errdefs.ErrFailedPrecondition)
	}
	if g.host.mode == Unified {
		err = awaitEvents(ctx, g.host.unifiedDir(g.path), "frozen", 0)
	} else {
		var b backoff
		for err == nil {
			var state string
			if state, err = g.stateV1(); err != nil || state == v1Thawed {
				break
			}
			err = b.wait(ctx)
		}
	}
	if err != nil {
		return fmt.Errorf("cgroup %q: thaw: %w", g.path, classify(err))
	}
	return nil
}

// Frozen reports whether every process of the group is stopped, by the group
// itself or by one above it.
func (g *Group) Frozen() (bool, error) {
	if g.host.mode == Unified {
		keys, err := readKeys(filepath.Join(g.host.unifiedDir(g.path), "cgroup.events"))
		if err == nil && keys == nil {
			err = fs.ErrNotExist
		}
		if err != nil {
			return false, fmt.Errorf("cgroup %q: freezer state: %w", g.path, classify(err))
		}
		return keys["frozen"] == 1, nil
	}
	if !g.host.has("freezer") {
		return false, nil
	}
	state, err := g.stateV1()
	if err != nil {
		return false, fmt.Errorf("cgroup %q: freezer state: %w", g.path, classify(err))
	}
	return state == v1Frozen, nil
}

func (g *Group) mayFreeze(verb string) error {
	if g.host.mode != Unified && !g.host.has("freezer") {
		return fmt.Errorf("cgroup %q: %s: the host has no freezer controller: %w", g.path, verb, errdefs.ErrFailedPrecondition)
	}
	return g.mayChange(verb)
}

func (g *Group) stateV1() (string, error) {
	path := g.path
	if p, ok := g.perController["freezer"]; ok {
		path = p
	}
	b, err := os.ReadFile(filepath.Join(g.host.dirOf("freezer", path), "freezer.state"))
	return strings.TrimSpace(string(b)), err
}

// freezeV1 asks until the state is reached. The v1 freezer can get stuck on
// processes that fork or wait for one already frozen; thawing for a moment
// lets them pass.
func (g *Group) freezeV1(ctx context.Context) error {
	const stuck = 20 // looks after which to let the group go once
	file := filepath.Join(g.host.dirOf("freezer", g.path), "freezer.state")
	var b backoff
	for look := 1; ; look++ {
		if err := writeFile(file, v1Frozen); err != nil {
			return err
		}
		state, err := g.stateV1()
		if err != nil || state == v1Frozen {
			return err
		}
		if err := b.wait(ctx); err != nil {
			return err
		}
		if look%stuck == 0 {
			if err := writeFile(file, v1Thawed); err != nil {
				return err
			}
			b = backoff{}
		}
	}
}

func (g *Group) writeThawed() error {
	if g.host.mode == Unified {
		return writeFile(filepath.Join(g.host.unifiedDir(g.path), "cgroup.freeze"), "0")
	}
	return writeFile(filepath.Join(g.host.dirOf("freezer", g.path), "freezer.state"), v1Thawed)
}

// thawAllV1 thaws the group and every descendant that was frozen by itself.
// v2 needs none of it: there SIGKILL ends frozen processes.
func (g *Group) thawAllV1() error {
	dir := g.host.dirOf("freezer", g.path)
	if g.host.mode == Unified || dir == "" {
		return nil
	}
	// Any order will do: a group runs when neither it nor one above is frozen.
	return walk(dir, func(dir string) error {
		file := filepath.Join(dir, "freezer.state")
		b, err := os.ReadFile(file)
		if err != nil || strings.TrimSpace(string(b)) == v1Thawed {
			return err
		}
		return writeFile(file, v1Thawed)
	})
}

// frozenAncestor is the nearest group above that is asked to be frozen.
func (g *Group) frozenAncestor() string {
	dir, file := g.host.dirOf("freezer", "/"), "freezer.self_freezing"
	if g.host.mode == Unified {
		dir, file = g.host.unified, "cgroup.freeze"
	}
	for p := filepath.Dir(g.path); p != "/"; p = filepath.Dir(p) {
		b, err := os.ReadFile(filepath.Join(dir, p, file))
		if err == nil && strings.TrimSpace(string(b)) == "1" {
			return p
		}
	}
	return ""
}
