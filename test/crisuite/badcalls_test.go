package crisuite

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// verdict is the code that a call is answered with.
type verdict codes.Code

func (v verdict) String() string { return codes.Code(v).String() }

// sameVerdict lets Caisson say more than Unknown.
var sameVerdict = cmp.Comparer(func(a, b verdict) bool {
	ok, unknown := verdict(codes.OK), verdict(codes.Unknown)
	return a == b || (a != ok && b != ok && (a == unknown || b == unknown))
})

func answer[Req, Resp any](s *server, call call[Req, Resp], req Req) verdict {
	s.t.Helper()
	_, err := call(s.Host.Context(time.Minute), req)
	return verdict(status.Code(err))
}

// TestUnknown makes every call about what does not exist.
func TestUnknown(t *testing.T) {
	const id = "0123456789abcdef"
	compare(t, func(t *testing.T, s *server) map[string]verdict {
		command := []string{"true"}
		got := map[string]verdict{
			"StopPodSandbox":            answer(s, s.StopPodSandbox, &runtime.StopPodSandboxRequest{PodSandboxId: id}),
			"RemovePodSandbox":          answer(s, s.RemovePodSandbox, &runtime.RemovePodSandboxRequest{PodSandboxId: id}),
			"PodSandboxStatus":          answer(s, s.PodSandboxStatus, &runtime.PodSandboxStatusRequest{PodSandboxId: id}),
			"PodSandboxStats":           answer(s, s.PodSandboxStats, &runtime.PodSandboxStatsRequest{PodSandboxId: id}),
			"UpdatePodSandboxResources": answer(s, s.UpdatePodSandboxResources, &runtime.UpdatePodSandboxResourcesRequest{PodSandboxId: id}),
			"PortForward":               answer(s, s.PortForward, &runtime.PortForwardRequest{PodSandboxId: id, Port: []int32{1}}),
			"CreateContainer":           answer(s, s.CreateContainer, &runtime.CreateContainerRequest{PodSandboxId: id, Config: s.container("c", "exit"), SandboxConfig: &runtime.PodSandboxConfig{}}),
			"StartContainer":            answer(s, s.StartContainer, &runtime.StartContainerRequest{ContainerId: id}),
			"StopContainer":             answer(s, s.StopContainer, &runtime.StopContainerRequest{ContainerId: id}),
			"RemoveContainer":           answer(s, s.RemoveContainer, &runtime.RemoveContainerRequest{ContainerId: id}),
			"ContainerStatus":           answer(s, s.ContainerStatus, &runtime.ContainerStatusRequest{ContainerId: id}),
			"ContainerStats":            answer(s, s.ContainerStats, &runtime.ContainerStatsRequest{ContainerId: id}),
			"UpdateContainerResources":  answer(s, s.UpdateContainerResources, &runtime.UpdateContainerResourcesRequest{ContainerId: id, Linux: &runtime.LinuxContainerResources{}}),
			"ReopenContainerLog":        answer(s, s.ReopenContainerLog, &runtime.ReopenContainerLogRequest{ContainerId: id}),
			"ExecSync":                  answer(s, s.ExecSync, &runtime.ExecSyncRequest{ContainerId: id, Cmd: command}),
			"Exec":                      answer(s, s.Exec, &runtime.ExecRequest{ContainerId: id, Cmd: command, Stdout: true}),
			"Attach":                    answer(s, s.Attach, &runtime.AttachRequest{ContainerId: id, Stdout: true}),
			"CheckpointContainer":       answer(s, s.CheckpointContainer, &runtime.CheckpointContainerRequest{ContainerId: id, Location: "/nowhere"}),
			"ImageStatus":               answer(s, s.Images.ImageStatus, &runtime.ImageStatusRequest{Image: &runtime.ImageSpec{Image: "registry.example/unknown:1"}}),
			"RemoveImage":               answer(s, s.Images.RemoveImage, &runtime.RemoveImageRequest{Image: &runtime.ImageSpec{Image: "registry.example/unknown:1"}}),
			"PullImage":                 answer(s, s.Images.PullImage, &runtime.PullImageRequest{Image: &runtime.ImageSpec{Image: "registry.example/unknown:1"}}),
		}
		for _, idempotent := range []string{"StopPodSandbox", "RemovePodSandbox", "StopContainer", "RemoveContainer", "ImageStatus", "RemoveImage"} {
			if got[idempotent] != verdict(codes.OK) {
				t.Errorf("%s: %s", idempotent, got[idempotent])
			}
		}
		return got
	}, sameVerdict)
}

// TestRefusedPods asks for pods that cannot be.
func TestRefusedPods(t *testing.T) {
	compare(t, func(t *testing.T, s *server) map[string]verdict {
		run := func(change func(*runtime.RunPodSandboxRequest)) verdict {
			req := &runtime.RunPodSandboxRequest{Config: s.PodConfig(runtime.NamespaceMode_POD), RuntimeHandler: s.Handler}
			change(req)
			resp, err := s.RunPodSandbox(s.Host.Context(time.Minute), req)
			if err == nil {
				s.Remove(resp.PodSandboxId)
			}
			return verdict(status.Code(err))
		}
		got := map[string]verdict{
			"handler":                run(func(r *runtime.RunPodSandboxRequest) { r.RuntimeHandler = "unknown" }),
			"metadata":               run(func(r *runtime.RunPodSandboxRequest) { r.Config.Metadata = nil }),
			"config":                 run(func(r *runtime.RunPodSandboxRequest) { r.Config = nil }),
			"a group without a user": run(func(r *runtime.RunPodSandboxRequest) { r.Config.Linux.SecurityContext.RunAsGroup = value(1000) }),
			"sysctl": run(func(r *runtime.RunPodSandboxRequest) {
				r.Config.Linux.Sysctls = map[string]string{"kernel.no_such_thing": "1"}
			}),
		}
		for what, code := range got {
			if code == verdict(codes.OK) {
				t.Errorf("%s was not refused", what)
			}
		}
		return got
	}, sameVerdict)
}

// TestRefusedContainers asks for containers that cannot be, and of others what
// their state forbids.
func TestRefusedContainers(t *testing.T) {
	compare(t, func(t *testing.T, s *server) map[string]verdict {
		p, stopped := s.pod(), s.pod()
		make := func(p *pod, name string, change func(*runtime.ContainerConfig)) verdict {
			return answer(s, s.CreateContainer, &runtime.CreateContainerRequest{PodSandboxId: p.id, Config: p.config(name, "exit", change), SandboxConfig: p.cfg})
		}
		late := stopped.create("late", "exit")
		stopped.stop()
		running, created, ended := p.sleeper("running"), p.create("created", "exit"), p.launch("ended", "exit 3")
		s.AwaitState(ended, stateExited)
		got := map[string]verdict{
			"a name that is taken":     make(p, "running", func(*runtime.ContainerConfig) {}),
			"an unknown image":         make(p, "a", func(cfg *runtime.ContainerConfig) { cfg.Image.Image = "registry.example/unknown:1" }),
			"no metadata":              make(p, "c", func(cfg *runtime.ContainerConfig) { cfg.Metadata = nil }),
			"a missing source":         make(p, "d", func(cfg *runtime.ContainerConfig) { cfg.Mounts = []*runtime.Mount{{ContainerPath: "/mnt"}} }),
			"in a stopped pod":         make(stopped, "e", func(*runtime.ContainerConfig) {}),
			"start in a stopped pod":   answer(s, s.StartContainer, &runtime.StartContainerRequest{ContainerId: late}),
			"start what runs":          answer(s, s.StartContainer, &runtime.StartContainerRequest{ContainerId: running}),
			"start what has ended":     answer(s, s.StartContainer, &runtime.StartContainerRequest{ContainerId: ended}),
			"stop what never ran":      answer(s, s.StopContainer, &runtime.StopContainerRequest{ContainerId: created}),
			"update what has ended":    answer(s, s.UpdateContainerResources, &runtime.UpdateContainerResourcesRequest{ContainerId: ended, Linux: &runtime.LinuxContainerResources{CpuShares: 99}}),
			"statistics before it ran": answer(s, s.ContainerStats, &runtime.ContainerStatsRequest{ContainerId: created}),
			"statistics after it ran":  answer(s, s.ContainerStats, &runtime.ContainerStatsRequest{ContainerId: ended}),
			"statistics of the pod":    answer(s, s.PodSandboxStats, &runtime.PodSandboxStatsRequest{PodSandboxId: stopped.id}),
			"pod resources":            answer(s, s.UpdatePodSandboxResources, &runtime.UpdatePodSandboxResourcesRequest{PodSandboxId: stopped.id}),
		}
		for state, id := range map[string]string{"created": created, "ended": ended} {
			got["exec sync in "+state] = answer(s, s.ExecSync, &runtime.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}})
			got["exec in "+state] = answer(s, s.Exec, &runtime.ExecRequest{ContainerId: id, Cmd: []string{"true"}, Stdout: true})
			got["attach to "+state] = answer(s, s.Attach, &runtime.AttachRequest{ContainerId: id, Stdout: true})
			got["reopen the log of "+state] = answer(s, s.ReopenContainerLog, &runtime.ReopenContainerLogRequest{ContainerId: id})
		}
		got["exec of nothing"] = answer(s, s.ExecSync, &runtime.ExecSyncRequest{ContainerId: running, Cmd: []string{"/no/such/program"}})
		if s.status(running).State != stateRunning || s.status(created).State != stateCreated || s.status(ended).ExitCode != 3 {
			t.Errorf("states after it: %v, %v, %v", s.status(running), s.status(created), s.status(ended))
		}
		return got
	}, sameVerdict)
}

// TestFailedStart compares what is told of containers that could not start, and
// removes them.
func TestFailedStart(t *testing.T) {
	type failure struct {
		Code          verdict
		State, Reason string
		ExitCode      int32
	}
	compare(t, func(t *testing.T, s *server) map[string]failure {
		p := s.pod()
		got := map[string]failure{}
		for name, command := range map[string][]string{
			"missing":       {"/no/such/program"},
			"not-in-path":   {"no-such-program"},
			"no-permission": {"/etc/passwd"},
			"directory":     {"/etc"},
		} {
			id := p.create(name, "", func(cfg *runtime.ContainerConfig) { cfg.Command = command })
			code := refuse(s, s.StartContainer, &runtime.StartContainerRequest{ContainerId: id})
			c := s.status(id)
			got[name] = failure{verdict(code), c.State.String(), c.Reason, c.ExitCode}
			if c.Message == "" || c.FinishedAt == 0 {
				t.Errorf("%s: %v", name, c)
			}
			s.removeContainer(id)
		}
		p.sleeper("after") // nothing is broken
		return got
	}, sameVerdict)
}
