package eventtest_test

import (
	"strings"
	"testing"

	"caisson/libcontainerd"
	"caisson/libcontainerd/eventtest"
)

// feed has a letter for each event: c s x of the container, a b y of the exec e.
func feed(t *testing.T, log *eventtest.Log, letters string) {
	t.Helper()
	events := map[rune]libcontainerd.EventType{
		'c': libcontainerd.EventCreate, 's': libcontainerd.EventStart, 'x': libcontainerd.EventExit,
		'a': libcontainerd.EventExecAdded, 'b': libcontainerd.EventExecStarted, 'y': libcontainerd.EventExit,
		'p': libcontainerd.EventPaused, 'r': libcontainerd.EventResumed, 'o': libcontainerd.EventOOM,
	}
	for _, c := range letters {
		ei := libcontainerd.EventInfo{ContainerID: "k", ProcessID: "k", Pid: 7}
		if strings.ContainsRune("aby", c) {
			ei.ProcessID = "e"
		}
		if err := log.ProcessEvent("k", events[c], ei); err != nil {
			t.Fatal(err)
		}
	}
}

func TestCheckFindsWhatBreaksTheGuarantee(t *testing.T) {
	good := []string{"", "csx", "cs", "csabyx", "csaabyx", "ccsx", "csxcsx", "csprx", "csopx", "csabyabyx", "csax"}
	for _, letters := range good {
		var log eventtest.Log
		feed(t, &log, letters)
		if err := log.Check(false); err != nil {
			t.Errorf("%q: %v", letters, err)
		}
	}
	bad := map[string]string{
		"sx":      "start without creation",
		"cx":      "exit without start",
		"csxx":    "two exits",
		"css":     "two starts",
		"csc":     "creation while it runs",
		"csabxy":  "exec's exit after the container's",
		"csay":    "exec's exit without start",
		"csb":     "exec's start without its addition",
		"csabyy":  "two exits of an exec",
		"csaba":   "exec added while it runs",
		"csxab":   "exec after the container's exit",
		"csppx":   "paused twice",
		"csrx":    "resumed before paused",
		"cpsx":    "paused before start",
		"csabyxy": "exec's second exit after everything",
	}
	for letters, why := range bad {
		var log eventtest.Log
		feed(t, &log, letters)
		if log.Check(false) == nil {
			t.Errorf("%q: %s is not found", letters, why)
		}
	}
	var log eventtest.Log
	feed(t, &log, "cs")
	if log.Check(true) == nil {
		t.Error("a container that never exits is not found")
	}
}
