package chaos

import (
	"context"
	"errors"
	"math/rand/v2"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"caisson/internal/monitor"
	"caisson/test/daemon"
)

// kind is something that is done to the daemon or to what it runs.
type kind struct {
	name   string
	weight int
	stock  bool // only where a containerd is beside caissond
	all    bool // it concerns everybody
	do     func(*chaos, *rand.Rand) error
}

var kinds = []kind{
	{name: "caissond", weight: 2, all: true, do: (*chaos).killCaissond},
	{name: "containerd", weight: 1, stock: true, all: true, do: (*chaos).killContainerd},
	{name: "keeper", weight: 1, stock: true, do: (*chaos).killKeeper},
	{name: "monitor", weight: 2, do: killOne("monitor")},
	{name: "holder", weight: 2, do: killOne("holder")},
	{name: "runtime", weight: 2, do: killOne("runtime")},
	{name: "process", weight: 2, do: killOne("process")},
	{name: "exec", weight: 2, do: killOne("exec")},
	{name: "disk", weight: 1, all: true, do: (*chaos).fillDisk},
	{name: "pids", weight: 1, all: true, do: (*chaos).useUpPids},
}

func kindNames() (names []string) {
	for _, k := range kinds {
		names = append(names, k.name)
	}
	return names
}

// disturb does one thing after the other until the time is over, and leaves all whole.
func (c *chaos) disturb(ctx context.Context) {
	chosen, r := c.chosen(), c.rand(1<<32)
	for {
		k, pause := chosen[r.IntN(len(chosen))], time.Duration(200+r.IntN(1500))*time.Millisecond
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
		if k.all {
			c.awaitLife(ctx)
		}
		if err := k.do(c, rand.New(rand.NewPCG(r.Uint64(), 0))); err != nil {
			c.t.Errorf("disturbance %s: %v", k.name, err)
			return
		}
	}
}

// awaitLife waits until some calls were answered: on a busy machine nothing would
// live for long enough to be killed. If nothing goes on, so does the disturbance.
func (c *chaos) awaitLife(ctx context.Context) {
	enough := c.answers.Load() + 2*workers
	_ = daemon.Poll(ctx, 20*time.Second, func() error {
		if c.answers.Load() < enough {
			return errors.New("not enough")
		}
		return nil
	})
}

// away is for how long something is not there: mostly as an init system has it,
// sometimes longer.
func away(r *rand.Rand) time.Duration {
	if r.IntN(5) == 0 {
		return time.Duration(r.IntN(3000)) * time.Millisecond
	}
	return time.Duration(r.IntN(200)) * time.Millisecond
}

func (c *chaos) killCaissond(r *rand.Rand) error {
	defer c.book.begin("caissond", !c.h.Stock())()
	if err := c.h.Kill(); err != nil {
		return err
	}
	time.Sleep(away(r)) // nothing is waited for: this is the outage
	return c.startAgain(c.h.Start)
}

func (c *chaos) killContainerd(r *rand.Rand) error {
	defer c.book.begin("containerd", true)()
	if err := c.h.KillContainerd(); err != nil {
		return err
	}
	time.Sleep(away(r))
	return c.startAgain(c.h.StartContainerd)
}

// killKeeper kills what keeps the connections, which excuses nothing: the daemon has
// them too, and starts another one. It waits for that, since both at once are too many.
func (c *chaos) killKeeper(*rand.Rand) error {
	old, err := c.keeper()
	if err != nil {
		return err
	}
	c.book.kill("keeper", "keeper", false)
	if err := unix.Kill(old, unix.SIGKILL); err != nil {
		return err
	}
	return daemon.Poll(context.Background(), patience, func() error {
		pid, err := c.keeper()
		if err == nil && pid == old {
			err = errors.New("the keeper is still there")
		}
		return err
	})
}

// keeper is the pid of the daemon's.
func (c *chaos) keeper() (int, error) {
	conn, err := monitor.Dial(context.Background(), filepath.Join(c.h.State, "keeper"))
	if err != nil {
		return 0, err
	}
	return conn.Pid(), conn.Close()
}

func (c *chaos) startAgain(start func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return start(ctx)
}
