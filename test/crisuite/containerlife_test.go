package crisuite

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestContainerLife takes a container from nothing to nothing, each verb that
// ends something twice.
func TestContainerLife(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		p := s.pod()
		before := time.Now().UnixNano()
		id := p.create("life", "trap 'exit 7' TERM; echo ready; while :; do sleep 1000 & wait; done", func(cfg *runtime.ContainerConfig) {
			cfg.Metadata.Attempt = 2
			cfg.Labels = map[string]string{"app": "life"}
			cfg.Annotations = map[string]string{"note": "with\nlines"}
		})
		got := s.status(id)
		want := &runtime.ContainerStatus{
			Id: id, Metadata: &runtime.ContainerMetadata{Name: "life", Attempt: 2}, State: stateCreated, CreatedAt: got.CreatedAt,
			Image: got.Image, ImageRef: got.ImageRef, ImageId: got.ImageId,
			Labels: map[string]string{"app": "life"}, Annotations: map[string]string{"note": "with\nlines"},
			LogPath: p.cfg.LogDirectory + "/life.log", Resources: got.Resources, User: got.User, StopSignal: runtime.Signal_SIGNAL_SIGTERM,
		}
		equal(t, "created container", want, got)
		if want.CreatedAt < before || want.ImageId == "" || want.ImageRef == "" || want.User.GetLinux() == nil {
			t.Errorf("created container: %v", want)
		}
		s.startContainer(id)
		got = s.status(id)
		want.State, want.StartedAt = stateRunning, got.StartedAt
		equal(t, "running container", want, got)
		p.awaitLog("life.log", "ready") // until the trap is there, process 1 ignores the signal
		twice(s, s.StopContainer, &runtime.StopContainerRequest{ContainerId: id, Timeout: 30})
		got = s.status(id)
		want.State, want.FinishedAt, want.ExitCode, want.Reason = stateExited, got.FinishedAt, 7, "Error"
		equal(t, "stopped container", want, got)
		if !slices.IsSorted([]int64{want.CreatedAt, want.StartedAt, want.FinishedAt, time.Now().UnixNano()}) {
			t.Errorf("times out of order: %v", want)
		}
		equal(t, "listed container", []*runtime.Container{{
			Id: id, PodSandboxId: p.id, Metadata: want.Metadata, Image: &runtime.ImageSpec{Image: suiteImage, UserSpecifiedImage: got.Image.UserSpecifiedImage}, ImageRef: got.ImageId, ImageId: got.ImageId,
			State: stateExited, CreatedAt: want.CreatedAt, Labels: want.Labels, Annotations: want.Annotations,
		}}, p.containers())
		twice(s, s.RemoveContainer, &runtime.RemoveContainerRequest{ContainerId: id})
		expectNotFound(s, s.ContainerStatus, &runtime.ContainerStatusRequest{ContainerId: id})
		if left := p.containers(); len(left) > 0 {
			t.Errorf("listed after its removal: %v", left)
		}
	})
}

// TestExit looks at what is told of a process that ended.
func TestExit(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		p := s.pod()
		for _, test := range []struct {
			name, script string
			code         int32
			reason       string
		}{
			{"well", "exit 0", 0, "Completed"},
			{"badly", "exit 3", 3, "Error"},
			{"last-code", "exit 255", 255, "Error"},
			{"child-killed", "sh -c 'kill -SEGV $$'; exit $?", 139, "Error"},
		} {
			id := p.launch(test.name, test.script)
			got := s.AwaitState(id, stateExited)
			if got.ExitCode != test.code || got.Reason != test.reason || got.Message != "" || got.FinishedAt < got.CreatedAt || got.StartedAt < got.CreatedAt {
				t.Errorf("%s: %v", test.name, got)
			}
		}
	})
}

// TestStop stops containers with and without patience.
func TestStop(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		p := s.pod()
		const deaf = "trap '' TERM; echo ready; while :; do sleep 1000 & wait; done"
		for _, test := range []struct {
			name, script string
			signal       runtime.Signal
			timeout      int64
			code         int32
			limit        time.Duration
		}{
			{"obedient", "trap 'exit 4' TERM; echo ready; while :; do sleep 1000 & wait; done", 0, 30, 4, 20 * time.Second},
			{"deaf", deaf, 0, 1, 137, 20 * time.Second},
			{"no-patience", deaf, 0, 0, 137, 20 * time.Second},
			{"another-signal", "trap '' TERM; trap 'exit 5' USR1; echo ready; while :; do sleep 1000 & wait; done", runtime.Signal_SIGNAL_SIGUSR1, 30, 5, 20 * time.Second},
		} {
			id := p.launch(test.name, test.script, func(cfg *runtime.ContainerConfig) { cfg.StopSignal = test.signal })
			p.awaitLog(test.name+".log", "ready")
			if test.signal != 0 && s.status(id).StopSignal != test.signal {
				t.Errorf("%s: stop signal %v", test.name, s.status(id).StopSignal)
			}
			start := time.Now()
			ask(s, s.StopContainer, &runtime.StopContainerRequest{ContainerId: id, Timeout: test.timeout})
			took := time.Since(start)
			got := s.status(id)
			if got.State != stateExited || got.ExitCode != test.code || got.Reason != "Error" {
				t.Errorf("%s: %v", test.name, got)
			}
			if took > test.limit || (test.timeout == 1 && took < time.Second) {
				t.Errorf("%s: stopped after %s", test.name, took)
			}
		}
	})
}

// TestRemove removes containers in each state.
func TestRemove(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		p := s.pod()
		first := p.create("created", "exec sleep 1000")
		second := p.launch("running", "exec sleep 1000")
		third := p.launch("exited", "exit 0")
		s.AwaitState(third, stateExited)
		for _, id := range []string{first, second, third} {
			ask(s, s.RemoveContainer, &runtime.RemoveContainerRequest{ContainerId: id})
		}
		if left := p.containers(); len(left) > 0 {
			t.Errorf("listed after their removal: %v", left)
		}
	})
}

// TestContainerFilter lists containers by everything that a filter can hold.
func TestContainerFilter(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		one, two := s.pod(), s.pod()
		label := func(app string) func(*runtime.ContainerConfig) {
			return func(cfg *runtime.ContainerConfig) { cfg.Labels = map[string]string{"app": app, "test": t.Name()} }
		}
		ids := map[string]string{
			"created": one.create("created", "exit", label("a")),
			"running": one.launch("running", "exec sleep 1000", label("b")),
			"exited":  one.launch("exited", "exit 1", label("b")),
			"other":   two.launch("running", "exec sleep 1000", label("a")),
		}
		s.AwaitState(ids["exited"], stateExited)
		state := func(state runtime.ContainerState) *runtime.ContainerStateValue {
			return &runtime.ContainerStateValue{State: state}
		}
		for name, test := range map[string]struct {
			filter *runtime.ContainerFilter
			want   []string
		}{
			"ID":                {&runtime.ContainerFilter{Id: ids["exited"]}, []string{"exited"}},
			"start of the ID":   {&runtime.ContainerFilter{Id: ids["exited"][:13]}, []string{"exited"}},
			"unknown ID":        {&runtime.ContainerFilter{Id: "unknown"}, nil},
			"pod":               {&runtime.ContainerFilter{PodSandboxId: one.id}, []string{"created", "exited", "running"}},
			"start of pod's ID": {&runtime.ContainerFilter{PodSandboxId: two.id[:13]}, []string{"other"}},
			"unknown pod":       {&runtime.ContainerFilter{PodSandboxId: "unknown"}, nil},
			"pod and ID":        {&runtime.ContainerFilter{PodSandboxId: one.id, Id: ids["created"]}, []string{"created"}},
			"another pod, ID":   {&runtime.ContainerFilter{PodSandboxId: two.id, Id: ids["created"]}, nil},
			"created":           {&runtime.ContainerFilter{PodSandboxId: one.id, State: state(stateCreated)}, []string{"created"}},
			"running":           {&runtime.ContainerFilter{PodSandboxId: one.id, State: state(stateRunning)}, []string{"running"}},
			"exited":            {&runtime.ContainerFilter{PodSandboxId: one.id, State: state(stateExited)}, []string{"exited"}},
			"unknown":           {&runtime.ContainerFilter{PodSandboxId: one.id, State: state(runtime.ContainerState_CONTAINER_UNKNOWN)}, nil},
			"label":             {&runtime.ContainerFilter{LabelSelector: map[string]string{"test": t.Name(), "app": "a"}}, []string{"created", "other"}},
			"label and state":   {&runtime.ContainerFilter{LabelSelector: map[string]string{"test": t.Name(), "app": "b"}, State: state(stateExited)}, []string{"exited"}},
			"label and pod":     {&runtime.ContainerFilter{LabelSelector: map[string]string{"app": "a"}, PodSandboxId: two.id}, []string{"other"}},
			"missing label":     {&runtime.ContainerFilter{LabelSelector: map[string]string{"test": t.Name(), "zone": ""}}, nil},
		} {
			resp := ask(s, s.ListContainers, &runtime.ListContainersRequest{Filter: test.filter})
			var got []string
			for _, c := range resp.Containers {
				for name, id := range ids {
					if id == c.Id {
						got = append(got, name)
					}
				}
			}
			slices.Sort(got)
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("filter %s: %s", name, diff)
			}
		}
	})
}

// TestAttempt runs a container again under its name, as kubelet restarts it: it
// is a new container with the next attempt and a log of its own.
func TestAttempt(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		p := s.pod()
		var ids []string
		for attempt := range uint32(2) {
			id := p.launch("again", "echo attempt $ATTEMPT; exit 1", func(cfg *runtime.ContainerConfig) {
				cfg.Metadata.Attempt = attempt
				cfg.Envs = []*runtime.KeyValue{{Key: "ATTEMPT", Value: []byte{byte('0' + attempt)}}}
				cfg.LogPath = "again/" + string(rune('0'+attempt)) + ".log"
			})
			if got := s.AwaitState(id, stateExited); got.Metadata.Attempt != attempt {
				t.Errorf("status of attempt %d: %v", attempt, got)
			}
			ids = append(ids, id)
		}
		for i, path := range []string{"again/0.log", "again/1.log"} {
			want := []logLine{{"stdout", "F", "attempt " + string(rune('0'+i))}}
			if diff := cmp.Diff(want, p.log(path)); diff != "" {
				t.Errorf("log of attempt %d: %s", i, diff)
			}
		}
		if got := len(p.containers()); got != 2 {
			t.Errorf("%d containers are listed", got)
		}
		for i, id := range slices.Backward(ids) { // the first keeps its status and log when the second goes
			if got := s.status(id); got.State != stateExited || got.Metadata.Attempt != uint32(i) {
				t.Errorf("status: %v", got)
			}
			ask(s, s.RemoveContainer, &runtime.RemoveContainerRequest{ContainerId: id})
		}
	})
}

// TestShared runs two containers in a pod: one network, IPC and host name, each
// its own processes and files.
func TestShared(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		p := s.pod()
		a := p.launch("a", "echo from a >/dev/shm/note; echo page >/page; mkdir /www; mv /page /www/index.html; exec httpd -f -p 8080 -h /www")
		b := p.launch("b", "exec sleep 1000")
		namespaces := func(id string) map[string]string {
			got := map[string]string{}
			for line := range strings.Lines(s.Shell(id, "cd /proc/self/ns; for n in net ipc uts pid mnt user cgroup; do echo $n $(readlink $n); done")) {
				name, ns, _ := strings.Cut(strings.TrimSpace(line), " ")
				got[name] = ns
			}
			return got
		}
		ofA, ofB := namespaces(a), namespaces(b)
		for name, same := range map[string]bool{"net": true, "ipc": true, "uts": true, "user": true, "pid": false, "mnt": false} {
			if (ofA[name] == ofB[name]) != same || ofA[name] == "" {
				t.Errorf("namespace %s: %q and %q", name, ofA[name], ofB[name])
			}
		}
		if got := s.Shell(b, "cat /dev/shm/note; until wget -q -O - http://127.0.0.1:8080; do usleep 20000; done; hostname"); got != "from a\npage\n"+p.cfg.Hostname+"\n" {
			t.Errorf("seen by b: %q", got)
		}
		if got := s.Shell(b, "ls / | grep www; ps | grep '[h]ttpd'; cat /proc/1/comm"); got != "sleep\n" {
			t.Errorf("of a, b sees %q", got)
		}
		// The end of one is nothing to the other.
		ask(s, s.StopContainer, &runtime.StopContainerRequest{ContainerId: a})
		if got := s.Shell(b, "cat /dev/shm/note"); got != "from a\n" || s.status(b).State != stateRunning || p.status().State != runtime.PodSandboxState_SANDBOX_READY {
			t.Errorf("after the end of a: %q, %v, %v", got, s.status(b), p.status())
		}
	})
}
