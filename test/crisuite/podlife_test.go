package crisuite

import (
	"encoding/json"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	podReady    = runtime.PodSandboxState_SANDBOX_READY
	podNotReady = runtime.PodSandboxState_SANDBOX_NOTREADY
)

// TestPodLife takes a pod from nothing to nothing, each verb that ends something
// twice.
func TestPodLife(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		before := time.Now()
		p := s.pod(func(cfg *runtime.PodSandboxConfig) {
			cfg.Metadata.Attempt = 3
			cfg.Labels = map[string]string{"app": "life", "io.kubernetes.pod.name": "a"}
			cfg.Annotations = map[string]string{"note": "with spaces, \"quotes\" and\nlines", "empty": ""}
		})
		got := p.status()
		if created := time.Unix(0, got.CreatedAt); created.Before(before) || created.After(time.Now()) {
			t.Errorf("created at %s, but it was between %s and now", created, before)
		}
		if got.Network.GetIp() == "" || len(got.Network.AdditionalIps) != 0 {
			t.Errorf("addresses %v", got.Network)
		}
		want := &runtime.PodSandboxStatus{
			Id: p.id, Metadata: p.cfg.Metadata, State: podReady, CreatedAt: got.CreatedAt, Network: got.Network,
			Linux:  &runtime.LinuxPodSandboxStatus{Namespaces: &runtime.Namespace{Options: p.cfg.Linux.SecurityContext.NamespaceOptions}},
			Labels: p.cfg.Labels, Annotations: p.cfg.Annotations, RuntimeHandler: s.Handler,
		}
		equal(t, "status of the pod", want, got)
		item := &runtime.PodSandbox{
			Id: p.id, Metadata: p.cfg.Metadata, State: podReady, CreatedAt: got.CreatedAt,
			Labels: p.cfg.Labels, Annotations: p.cfg.Annotations, RuntimeHandler: s.Handler,
		}
		equal(t, "listed pod", []*runtime.PodSandbox{item}, p.list())
		id := p.sleeper("sleeper")

		twice(s, s.StopPodSandbox, &runtime.StopPodSandboxRequest{PodSandboxId: p.id})
		want.State, item.State = podNotReady, podNotReady
		want.Network = &runtime.PodSandboxNetworkStatus{}
		equal(t, "status of the stopped pod", want, p.status())
		equal(t, "listed stopped pod", []*runtime.PodSandbox{item}, p.list())
		if c := s.status(id); c.State != stateExited || c.ExitCode != 137 {
			t.Errorf("container of a stopped pod: %v", c)
		}
		twice(s, s.RemovePodSandbox, &runtime.RemovePodSandboxRequest{PodSandboxId: p.id})
		expectNotFound(s, s.PodSandboxStatus, &runtime.PodSandboxStatusRequest{PodSandboxId: p.id})
		expectNotFound(s, s.ContainerStatus, &runtime.ContainerStatusRequest{ContainerId: id})
		if left := p.list(); len(left) > 0 {
			t.Errorf("listed after its removal: %v", left)
		}
	})
}

// TestRemoveReadyPod removes a pod that nobody has stopped.
func TestRemoveReadyPod(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		p := s.pod()
		p.sleeper("sleeper")
		ask(s, s.RemovePodSandbox, &runtime.RemovePodSandboxRequest{PodSandboxId: p.id})
		if pods, containers := p.list(), p.containers(); len(pods)+len(containers) > 0 {
			t.Errorf("listed after the removal: %v, %v", pods, containers)
		}
	})
}

// TestListPods lists pods by everything that a filter can hold.
func TestListPods(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		labels := func(labels ...string) map[string]string {
			all := map[string]string{"test": t.Name()} // others have pods here, too
			for i := 0; i < len(labels); i += 2 {
				all[labels[i]] = labels[i+1]
			}
			return all
		}
		labelled := func(l ...string) func(*runtime.PodSandboxConfig) {
			return func(cfg *runtime.PodSandboxConfig) { cfg.Labels = labels(l...) }
		}
		pods := map[string]*pod{
			"web":     s.pod(labelled("app", "web", "tier", "front")),
			"db":      s.pod(labelled("app", "db")),
			"stopped": s.pod(labelled("app", "web")),
		}
		pods["stopped"].stop()
		ready, notReady := &runtime.PodSandboxStateValue{State: podReady}, &runtime.PodSandboxStateValue{State: podNotReady}
		for name, test := range map[string]struct {
			filter *runtime.PodSandboxFilter
			want   []string
		}{
			"label":             {&runtime.PodSandboxFilter{LabelSelector: labels()}, []string{"db", "stopped", "web"}},
			"ready":             {&runtime.PodSandboxFilter{LabelSelector: labels(), State: ready}, []string{"db", "web"}},
			"not ready":         {&runtime.PodSandboxFilter{LabelSelector: labels(), State: notReady}, []string{"stopped"}},
			"labels":            {&runtime.PodSandboxFilter{LabelSelector: labels("app", "web")}, []string{"stopped", "web"}},
			"more labels":       {&runtime.PodSandboxFilter{LabelSelector: labels("app", "web", "tier", "front")}, []string{"web"}},
			"labels and state":  {&runtime.PodSandboxFilter{LabelSelector: labels("app", "web"), State: notReady}, []string{"stopped"}},
			"another value":     {&runtime.PodSandboxFilter{LabelSelector: labels("app", "cache")}, nil},
			"missing label":     {&runtime.PodSandboxFilter{LabelSelector: labels("app", "web", "zone", "")}, nil},
			"ID":                {&runtime.PodSandboxFilter{Id: pods["db"].id}, []string{"db"}},
			"start of the ID":   {&runtime.PodSandboxFilter{Id: pods["db"].id[:13]}, []string{"db"}},
			"unknown ID":        {&runtime.PodSandboxFilter{Id: "unknown"}, nil},
			"ID and its state":  {&runtime.PodSandboxFilter{Id: pods["web"].id, State: ready}, []string{"web"}},
			"ID, another state": {&runtime.PodSandboxFilter{Id: pods["web"].id, State: notReady}, nil},
			"ID, another label": {&runtime.PodSandboxFilter{Id: pods["web"].id, LabelSelector: labels("app", "db")}, nil},
			"empty":             {&runtime.PodSandboxFilter{}, []string{"db", "stopped", "web"}},
			"none":              {nil, []string{"db", "stopped", "web"}},
		} {
			resp := ask(s, s.ListPodSandbox, &runtime.ListPodSandboxRequest{Filter: test.filter})
			var got []string
			for name, p := range pods {
				if slices.ContainsFunc(resp.Items, func(item *runtime.PodSandbox) bool { return item.Id == p.id }) {
					got = append(got, name)
				}
			}
			slices.Sort(got)
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("filter %s: %s", name, diff)
			}
			if others := len(resp.Items) - len(got); others > 0 && name != "none" && name != "empty" {
				t.Errorf("filter %s: %d more pods", name, others)
			}
		}
	})
}

// TestPodName: name, namespace, UID and attempt together name one pod.
func TestPodName(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		p := s.pod()
		again := &runtime.RunPodSandboxRequest{Config: p.cfg, RuntimeHandler: s.Handler}
		refuse(s, s.RunPodSandbox, again)
		p.cfg.Metadata.Attempt++
		second := ask(s, s.RunPodSandbox, again).PodSandboxId
		s.Remove(second)
		if second == p.id || p.status().State != podReady {
			t.Errorf("the next attempt %s, this one %v", second, p.status())
		}
		p.cfg.Metadata.Attempt--
		s.Remove(p.id)
		s.Remove(ask(s, s.RunPodSandbox, again).PodSandboxId) // the name of a pod that is gone is free
	})
}

// TestPodInfo compares which fields of the verbose status of a pod are there.
func TestPodInfo(t *testing.T) {
	compare(t, func(t *testing.T, s *server) map[string][]string {
		p := s.pod()
		answer := map[string][]string{"ready": p.infoFields()}
		p.stop()
		answer["stopped"] = p.infoFields()
		return answer
	})
}

// infoFields names what is filled in of the verbose status, but for what is about
// a pause container.
func (p *pod) infoFields() []string {
	p.s.t.Helper()
	resp := ask(p.s, p.s.PodSandboxStatus, &runtime.PodSandboxStatusRequest{PodSandboxId: p.id, Verbose: true})
	var info map[string]any
	if err := json.Unmarshal([]byte(resp.Info["info"]), &info); err != nil {
		p.s.t.Fatalf("%v in %v", err, resp.Info)
	}
	var filled []string
	for name, value := range info {
		aboutPause := slices.Contains([]string{"image", "snapshotKey", "snapshotter", "runtimeOptions"}, name)
		if !aboutPause && value != nil && value != "" && value != 0.0 {
			filled = append(filled, name)
		}
	}
	slices.Sort(filled)
	return filled
}
