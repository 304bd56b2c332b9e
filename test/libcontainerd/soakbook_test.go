package libcontainerd

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"caisson/libcontainerd"
	"caisson/libcontainerd/eventtest"
)

// book has what is known of processes from the calls that were made.
type book struct {
	mu    sync.Mutex
	kinds map[string]*entry
}

type entry struct {
	code     uint32
	any      bool // code is not known before
	started  int  // successful starts
	attempts []*attempt
}

// attempt is a start that was asked for. Those of a name come one after another, for
// the process before has ended.
type attempt struct {
	at     time.Time
	killed bool // its code may be 137
	lost   bool // another program may have deleted it
}

func (a *attempt) String() string { return a.at.Format("15:04:05.000") }

func (e *entry) begin() { e.attempts = append(e.attempts, &attempt{at: time.Now()}) }

// last is the attempt that is under way, or one that nobody sees if there was none.
func (e *entry) last() *attempt {
	if len(e.attempts) == 0 {
		return &attempt{}
	}
	return e.attempts[len(e.attempts)-1]
}

// soakClock is how much the times of the server and of the test may differ.
const soakClock = time.Second

// attemptsAt are those that an exit at that time may be of: as a rule one.
func (e *entry) attemptsAt(at time.Time) []*attempt {
	after := slices.IndexFunc(e.attempts, func(a *attempt) bool { return a.at.After(at.Add(soakClock)) })
	if after < 0 {
		after = len(e.attempts)
	}
	all := e.attempts[:after]
	for len(all) > 1 && all[1].at.Before(at.Add(-soakClock)) {
		all = all[1:]
	}
	return all
}

func name(id, exec string) string { return id + "/" + exec }

func (b *book) note(id, exec string, change func(*entry)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.kinds == nil {
		b.kinds = map[string]*entry{}
	}
	e := b.kinds[name(id, exec)]
	if e == nil {
		e = &entry{}
		b.kinds[name(id, exec)] = e
	}
	change(e)
}

// check compares the exits that were told with what is known, and with when that was.
func (b *book) check(events []eventtest.Event, told func(eventtest.Event) time.Time, excused func(eventtest.Event, time.Time) bool) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	var errs []error
	exits := map[string]int{}
	for _, e := range events {
		if e.Type != libcontainerd.EventExit {
			continue
		}
		exec := e.Info.ProcessID
		if exec == e.ID {
			exec = ""
		}
		entry := b.kinds[name(e.ID, exec)]
		if entry == nil {
			errs = append(errs, fmt.Errorf("%s: nobody asked for that process", e))
			continue
		}
		exits[name(e.ID, exec)]++
		attempts := entry.attemptsAt(e.Info.ExitedAt)
		mayBe := func(what func(*attempt) bool) bool { return slices.ContainsFunc(attempts, what) }
		killed := e.Info.ExitCode == 137 && e.Info.Error == nil && mayBe(func(a *attempt) bool { return a.killed })
		lost := errdefs.IsDataLoss(e.Info.Error) && mayBe(func(a *attempt) bool { return a.lost })
		ended := entry.any && e.Info.Error == nil
		gone := len(attempts) > 0 && excused(e, attempts[0].at)
		if !ended && !killed && !lost && !gone && (e.Info.ExitCode != entry.code || e.Info.Error != nil) {
			errs = append(errs, fmt.Errorf("%s: the code is %d", e, entry.code))
		}
		if at := told(e); len(attempts) == 0 || e.Info.ExitedAt.After(at.Add(soakClock)) {
			errs = append(errs, fmt.Errorf("%s: the time is wrong: asked for since %v, told at %v", e, entry.attempts, at))
		}
	}
	for n, entry := range b.kinds {
		if exits[n] < entry.started || exits[n] > len(entry.attempts) {
			errs = append(errs, fmt.Errorf("%s: %d exits were told of %d starts that succeeded and %d in all", n, exits[n], entry.started, len(entry.attempts)))
		}
	}
	return errors.Join(errs...)
}

// TestBookFindsWhatIsWrong: what the soak lets pass, and what it does not.
func TestBookFindsWhatIsWrong(t *testing.T) {
	type exit struct {
		code uint32
		at   time.Duration // after the process was asked for
	}
	for name, test := range map[string]struct {
		killed  string // before or after the exit was told
		exit    exit
		correct bool
	}{
		"its code":                     {"", exit{7, 0}, true},
		"another code":                 {"", exit{8, 0}, false},
		"137 of one that nobody kills": {"", exit{137, 0}, false},
		"killed":                       {"before", exit{137, 0}, true},
		"killed too late":              {"before", exit{7, 0}, true},
		"killed when it had ended":     {"after", exit{137, 0}, false},
		"another code, killed":         {"before", exit{8, 0}, false},
		"a time before it began":       {"", exit{7, -time.Minute}, false},
		"a time that is to come":       {"", exit{7, time.Minute}, false},
	} {
		t.Run(name, func(t *testing.T) {
			k := &soak{log: &eventtest.Log{}, exits: map[string]time.Time{}, ended: map[string]time.Time{}, changed: make(chan struct{})}
			w := &life{k: k, plan: plan{id: "k"}}
			w.begin("", 7)
			w.began("")
			if test.killed == "before" {
				w.mayDie("")
			}
			time.Sleep(time.Millisecond)
			ei := libcontainerd.EventInfo{ContainerID: "k", ProcessID: "k", Pid: 1, ExitCode: test.exit.code, ExitedAt: time.Now().Add(test.exit.at)}
			must(t, "tell", k.ProcessEvent("k", libcontainerd.EventExit, ei))
			if test.killed == "after" {
				w.mayDie("")
			}
			err := k.book.check(k.log.Events(""), k.told, k.excused)
			if (err == nil) != test.correct {
				t.Errorf("check: %v", err)
			}
		})
	}
}

// TestExcusesOfContainerd: only what containerd's log says of the container, and since
// the process was asked for, excuses the loss of an exit.
func TestExcusesOfContainerd(t *testing.T) {
	const log = `time="2026-01-02T03:04:05.100000000Z" level=info msg="cleaning up after shim disconnected" id=deleted namespace=n
time="2026-01-02T03:04:07Z" level=warning msg="Configuration migrated from version 3, use ` + "`containerd config migrate`" + ` to avoid migration"
time="2026-01-02T03:04:07.100000000Z" level=info msg="connecting to shim runs" address="unix:///s" namespace=n protocol=ttrpc version=3
time="2026-01-02T03:04:07.200000000Z" level=info msg="cleaning leaked shim process" id=ended namespace=n
time="2026-01-02T03:04:07.300000000Z" level=info msg="cleaning leaked shim process" error="container not created: not found" id=made namespace=n
time="2026-01-02T03:04:07.400000000Z" level=info msg="cleaning up after shim disconnected" id=dead namespace=n
`
	start := time.Date(2026, 1, 2, 3, 4, 6, 0, time.UTC)
	k := &soak{thrown: thrownAway(log, start)}
	lost := fmt.Errorf("lost: %w", errdefs.ErrDataLoss)
	for name, test := range map[string]struct {
		id    string
		code  uint32
		err   error
		asked time.Duration // after the start
		at    time.Duration
		want  bool
	}{
		"lost":                     {"ended", 255, lost, -time.Minute, time.Minute, true},
		"its shim was dead":        {"dead", 255, lost, -time.Minute, time.Minute, true},
		"its task was being made":  {"made", 255, lost, -time.Minute, time.Minute, true},
		"made up":                  {"ended", 137, nil, -time.Minute, 2 * time.Second, true},
		"another code":             {"ended", 7, nil, -time.Minute, time.Minute, false},
		"asked for afterwards":     {"ended", 255, lost, 2 * time.Second, time.Minute, false},
		"ended before":             {"ended", 137, nil, -time.Minute, time.Second, false},
		"deleted before the start": {"deleted", 255, lost, -time.Minute, time.Minute, false},
		"kept":                     {"runs", 255, lost, -time.Minute, time.Minute, false},
	} {
		e := eventtest.Event{ID: test.id, Type: libcontainerd.EventExit, Info: libcontainerd.EventInfo{
			ContainerID: test.id, ProcessID: test.id, ExitCode: test.code, ExitedAt: start.Add(test.at), Error: test.err,
		}}
		if got := k.excused(e, start.Add(test.asked)); got != test.want {
			t.Errorf("%s: excused %v", name, got)
		}
	}
}
