package crisuite

import (
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// told is all that a server says of a container in one state.
type told struct {
	Status *runtime.ContainerStatus
	Listed *runtime.Container
	// Info are the fields of the verbose status that are there, Spec those of the
	// OCI specification in it.
	Info, Spec []string
}

// TestContainerAnswers compares what is told of a container, state by state,
// but for IDs, paths and times.
func TestContainerAnswers(t *testing.T) {
	compare(t, func(t *testing.T, s *server) map[string]told {
		p := s.pod()
		id := p.create("c", "read line; exit 3", func(cfg *runtime.ContainerConfig) {
			cfg.Stdin = true
			cfg.Labels, cfg.Annotations = map[string]string{"a": "b"}, map[string]string{"c": "d"}
			cfg.Mounts = []*runtime.Mount{{HostPath: "/etc/hostname", ContainerPath: "/mnt", Readonly: true}}
			cfg.Linux.SecurityContext.RunAsUser = value(1000)
		})
		answers := map[string]told{"created": p.told(id)}
		s.startContainer(id)
		answers["running"] = p.told(id)
		s.say(s.attach(id, false).Stdin, "end\n")
		s.AwaitState(id, stateExited)
		answers["exited"] = p.told(id)
		return answers
	})
}

func (p *pod) told(id string) told {
	p.s.t.Helper()
	resp := ask(p.s, p.s.ContainerStatus, &runtime.ContainerStatusRequest{ContainerId: id, Verbose: true})
	var info map[string]any
	if err := json.Unmarshal([]byte(resp.Info["info"]), &info); err != nil {
		p.s.t.Fatalf("%v in %v", err, resp.Info)
	}
	spec, ok := info["runtimeSpec"].(map[string]any)
	if !ok {
		p.s.t.Errorf("no specification in %v", info)
	}
	status, listed := proto.Clone(resp.Status).(*runtime.ContainerStatus), proto.Clone(p.containers()[0]).(*runtime.Container)
	if status.Id != id || listed.Id != id || listed.PodSandboxId != p.id || !strings.HasPrefix(status.LogPath, p.cfg.LogDirectory) {
		p.s.t.Errorf("%v, %v", status, listed)
	}
	status.Id, listed.Id, listed.PodSandboxId, status.LogPath = "", "", "", ""
	for _, at := range []*int64{&status.CreatedAt, &status.StartedAt, &status.FinishedAt, &listed.CreatedAt} {
		if *at > 0 { // whether there is one is compared
			if since := time.Since(time.Unix(0, *at)); since < 0 || since > time.Hour {
				p.s.t.Errorf("%s ago: %v", since, status)
			}
			*at = 1
		}
	}
	return told{Status: status, Listed: listed, Info: fields(info), Spec: fields(spec)}
}

// fields names those that are not empty.
func fields(object map[string]any) []string {
	var names []string
	for name, v := range object {
		if v != nil && v != "" && v != 0.0 && v != false && name != "runtimeOptions" { // handler runc has options
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// TestStreamedLists: what comes in pieces is what comes at once.
func TestStreamedLists(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		label := map[string]string{"test": t.Name()}
		p := s.pod(func(cfg *runtime.PodSandboxConfig) { cfg.Labels = label })
		id := p.sleeper("c", func(cfg *runtime.ContainerConfig) { cfg.Labels = label })

		pods := &runtime.PodSandboxFilter{LabelSelector: label}
		equal(t, "pods", p.list(), received(s, s.StreamPodSandboxes, &runtime.StreamPodSandboxesRequest{Filter: pods})[0].PodSandboxes)
		containers := &runtime.ContainerFilter{LabelSelector: label}
		equal(t, "containers", p.containers(), received(s, s.StreamContainers, &runtime.StreamContainersRequest{Filter: containers})[0].Containers)
		stats := received(s, s.StreamContainerStats, &runtime.StreamContainerStatsRequest{Filter: &runtime.ContainerStatsFilter{LabelSelector: label}})
		if len(stats) != 1 || len(stats[0].ContainerStats) != 1 || stats[0].ContainerStats[0].Attributes.Id != id {
			t.Errorf("statistics of containers: %v", stats)
		}
		ofPods := received(s, s.StreamPodSandboxStats, &runtime.StreamPodSandboxStatsRequest{Filter: &runtime.PodSandboxStatsFilter{LabelSelector: label}})
		if len(ofPods) != 1 || len(ofPods[0].PodSandboxStats) != 1 || ofPods[0].PodSandboxStats[0].Attributes.Id != p.id {
			t.Errorf("statistics of pods: %v", ofPods)
		}
		s.poll(func() error { // a pod whose metrics fail is left out
			for _, part := range received(s, s.StreamPodSandboxMetrics, &runtime.StreamPodSandboxMetricsRequest{}) {
				if slices.ContainsFunc(part.PodSandboxMetrics, func(m *runtime.PodSandboxMetrics) bool { return m.PodSandboxId == p.id }) {
					return nil
				}
			}
			return errors.New("no metrics of the pod")
		})
		found := false
		for _, part := range received(s, s.Images.StreamImages, &runtime.StreamImagesRequest{}) {
			for _, image := range part.Images {
				found = found || slices.Contains(image.RepoTags, suiteImage)
			}
		}
		if !found {
			t.Errorf("no image %s", suiteImage)
		}
	})
}

// received is all that a stream sends, which is something.
func received[Req, Resp any](s *server, call call[Req, grpc.ServerStreamingClient[Resp]], req Req) []*Resp {
	s.t.Helper()
	stream, err := call(s.Host.Context(time.Minute), req)
	var all []*Resp
	for err == nil {
		var resp *Resp
		if resp, err = stream.Recv(); err == nil {
			all = append(all, resp)
		}
	}
	if !errors.Is(err, io.EOF) || len(all) == 0 {
		s.t.Fatalf("%T: %d answers, %v", req, len(all), err)
	}
	return all
}
