package integration

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"caisson/test/daemon"
	"caisson/test/harness"
)

// keeper finds a pod's monitor or holder.
func keeper(t *testing.T, h *harness.Host, name, pod string) int {
	t.Helper()
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range lines {
		line, err := os.ReadFile(path)
		if err == nil && bytes.HasPrefix(line, []byte("caisson-"+name+"\x00"+harness.CRINamespace+"/"+pod+"\x00")) {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			if err != nil {
				t.Fatal(err)
			}
			return pid
		}
	}
	t.Fatalf("pod %s has no %s", pod, name)
	return 0
}

// zombies lists the zombies among a process's children.
func zombies(t *testing.T, parent int) (list []string) {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range stats {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // gone
		}
		at := bytes.LastIndexByte(b, ')')
		if f := strings.Fields(string(b[at+1:])); f[0] == "Z" && f[1] == strconv.Itoa(parent) {
			list = append(list, string(b[:at+1]))
		}
	}
	return list
}

// TestPodsWhoseKeepersDie kills the monitors and holders of pods as kubelet has
// them, with and without a daemon that sees it. The pods are NotReady at once, their
// containers exited, nothing of them is left, not even a zombie, and the pod beside
// them goes on.
func TestPodsWhoseKeepersDie(t *testing.T) {
	h := harness.Start(t, daemon.Options{})
	cri := h.CRI()
	ctx := h.Context(4 * time.Minute)
	spared := cri.PodConfig(runtime.NamespaceMode_POD)
	other := cri.RunPod(spared)
	lives := cri.RunContainer(other, spared, cri.ContainerConfig("lives", "exec sleep 1000"))
	for _, away := range []bool{false, true} {
		for _, victim := range []string{"monitor", "holder"} {
			t.Run(fmt.Sprintf("%s/away=%t", victim, away), func(t *testing.T) {
				cfg := cri.PodConfig(runtime.NamespaceMode_POD)
				pod := cri.RunPod(cfg)
				c := cri.RunContainer(pod, cfg, cri.ContainerConfig("c", "sleep 1000 & exec sleep 1000"))
				go cri.ExecSync(ctx, &runtime.ExecSyncRequest{ContainerId: c, Cmd: []string{"sleep", "1000"}}) //nolint:errcheck // it is cut off
				resp, err := cri.ContainerStatus(ctx, &runtime.ContainerStatusRequest{ContainerId: c, Verbose: true})
				if err != nil {
					t.Fatal(err)
				}
				process := pidfd(t, verbosePid(t, resp.Info))
				holder := pidfd(t, keeper(t, h, "holder", pod))
				pid := keeper(t, h, victim, pod)
				if away {
					h.Crash()
				}
				kill(t, pid)
				if away {
					h.StartDaemon()
				}
				status := cri.AwaitState(c, runtime.ContainerState_CONTAINER_EXITED)
				if want := int32(137); status.ExitCode != want && !(away && victim == "monitor" && status.ExitCode == 255) {
					t.Errorf("exit code %d", status.ExitCode)
				}
				state := func() error {
					s, err := cri.PodSandboxStatus(ctx, &runtime.PodSandboxStatusRequest{PodSandboxId: pod})
					if err == nil && s.Status.State != runtime.PodSandboxState_SANDBOX_NOTREADY {
						err = fmt.Errorf("the pod is %v", s.Status.State)
					}
					return err
				}
				// CRI learns it from an event.
				if err := daemon.Poll(ctx, 10*time.Second, state); err != nil {
					t.Error(err)
				}
				awaitEnd(t, h, process)
				awaitEnd(t, h, holder)
				// What the daemon is the nearest ancestor of, it reaps.
				err = daemon.Poll(ctx, 10*time.Second, func() error {
					if left := zombies(t, h.Pid()); len(left) > 0 {
						return fmt.Errorf("zombies %q", left)
					}
					if err := unix.PidfdSendSignal(process, 0, nil, 0); err != unix.ESRCH && !away {
						return fmt.Errorf("the container's process is still a zombie: %w", err)
					}
					return nil
				})
				if err != nil {
					t.Error(err)
				}
				if _, err := cri.StopPodSandbox(ctx, &runtime.StopPodSandboxRequest{PodSandboxId: pod}); err != nil {
					t.Errorf("stop: %v", err)
				}
				if _, err := cri.RemovePodSandbox(ctx, &runtime.RemovePodSandboxRequest{PodSandboxId: pod}); err != nil {
					t.Errorf("remove: %v", err)
				}
				cri.AwaitState(lives, runtime.ContainerState_CONTAINER_RUNNING)
			})
		}
	}
	cri.Shell(lives, "true")
}
