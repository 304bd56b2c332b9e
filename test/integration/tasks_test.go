package integration

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	apievents "github.com/containerd/containerd/api/events"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/typeurl/v2"
	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"caisson/test/daemon"
	"caisson/test/harness"
)

// container makes a container of the test image that runs a command of the shell.
func container(t *testing.T, h *harness.Host, id, script string, opts ...oci.SpecOpts) containerd.Container {
	t.Helper()
	c, err := newContainer(h, id, nil, append([]oci.SpecOpts{oci.WithProcessArgs("/bin/sh", "-c", script)}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// newContainer makes a container of the test image, in its own sandbox or the
// one that more names.
func newContainer(h *harness.Host, id string, more []containerd.NewContainerOpts, opts ...oci.SpecOpts) (containerd.Container, error) {
	ctx := h.In(time.Minute)
	client := h.Client("")
	image, err := client.GetImage(ctx, harness.Image)
	if err != nil {
		return nil, err
	}
	all := append([]containerd.NewContainerOpts{
		containerd.WithRuntime(harness.Runtime, nil),
		containerd.WithNewSnapshot(id, image),
		containerd.WithNewSpec(append([]oci.SpecOpts{oci.WithImageConfig(image)}, opts...)...),
	}, more...)
	return client.NewContainer(ctx, id, all...)
}

// fifos keeps the FIFOs of tasks in the daemon's directory.
func fifos(h *harness.Host) cio.Opt { return cio.WithFIFODir(filepath.Join(h.Dir, "fifo")) }

func loadTask(h *harness.Host, id string) (containerd.Task, error) {
	ctx := h.In(time.Minute)
	c, err := h.Client("").LoadContainer(ctx, id)
	if err != nil {
		return nil, err
	}
	return c.Task(ctx, nil)
}

// remove ends a container and deletes it with its task and its snapshot.
func remove(t *testing.T, h *harness.Host, id string) {
	t.Helper()
	ctx := h.In(time.Minute)
	c, err := h.Client("").LoadContainer(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	if task, err := c.Task(ctx, nil); err == nil {
		if _, err := task.Delete(ctx, containerd.WithProcessKill); err != nil {
			t.Errorf("delete task %s: %v", id, err)
		}
	}
	if err := c.Delete(ctx, containerd.WithSnapshotCleanup); err != nil {
		t.Errorf("delete container %s: %v", id, err)
	}
}

// taskEvents collects the events of tasks until the task of id is deleted.
func taskEvents(t *testing.T, ctx context.Context, client *containerd.Client, id string) func() ([]string, error) {
	t.Helper()
	const probe = "/test/probe"
	envelopes, errs := client.Subscribe(ctx, `topic~="^/tasks/"`, `topic=="`+probe+`"`)
	// Subscribe returns before the daemon has subscribed us: wait for an event of our own.
	if err := daemon.Poll(ctx, 10*time.Second, func() error {
		if err := client.EventService().Publish(ctx, probe, &apievents.ContainerDelete{ID: id}); err != nil {
			return err
		}
		select {
		case <-envelopes:
			return nil
		default:
			return errors.New("no event arrives")
		}
	}); err != nil {
		t.Fatal(err)
	}
	return func() ([]string, error) {
		var seen []string
		for {
			select {
			case e := <-envelopes:
				line, last, err := eventLine(e, id)
				if err != nil {
					return seen, err
				}
				if line != "" {
					seen = append(seen, line)
				}
				if last {
					return seen, nil
				}
			case err := <-errs:
				return seen, err
			case <-ctx.Done():
				return seen, ctx.Err()
			}
		}
	}
}

// eventLine describes an event of the task id; last is its deletion.
func eventLine(e *events.Envelope, id string) (line string, last bool, err error) {
	v, err := typeurl.UnmarshalAny(e.Event)
	if err != nil {
		return "", false, err
	}
	topic, ok := strings.CutPrefix(e.Topic, "/tasks/")
	if !ok {
		return "", false, nil
	}
	switch e := v.(type) {
	case *apievents.TaskExit:
		if e.ContainerID != id {
			return "", false, nil
		}
		who := e.ID
		if who == id {
			who = "init"
		}
		return fmt.Sprintf("%s %s %d", topic, who, e.ExitStatus), false, nil
	case *apievents.TaskDelete:
		if e.ContainerID != id {
			return "", false, nil
		}
		if e.ID != "" && e.ID != id {
			return fmt.Sprintf("%s %s %d", topic, e.ID, e.ExitStatus), false, nil
		}
		return fmt.Sprintf("%s init %d", topic, e.ExitStatus), true, nil
	case interface{ GetContainerID() string }:
		if e.GetContainerID() != id {
			return "", false, nil
		}
	}
	if e, ok := v.(interface{ GetExecID() string }); ok {
		topic += " " + e.GetExecID()
	}
	return topic, false, nil
}

func TestTaskEvents(t *testing.T) {
	h := harness.Start(t, daemon.Options{})
	ctx := h.In(2 * time.Minute)

	t.Run("exec first", func(t *testing.T) {
		const id = "ev"
		collect := taskEvents(t, ctx, h.Client(""), id)
		c := container(t, h, id, "sleep 1000")
		task, err := c.NewTask(ctx, cio.NullIO)
		if err != nil {
			t.Fatal(err)
		}
		exited, err := task.Wait(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := task.Start(ctx); err != nil {
			t.Fatal(err)
		}
		spec, err := c.Spec(ctx)
		if err != nil {
			t.Fatal(err)
		}
		p := *spec.Process
		p.Args = []string{"sleep", "1000"}
		exec, err := task.Exec(ctx, "e1", &p, cio.NullIO)
		if err != nil {
			t.Fatal(err)
		}
		if err := exec.Start(ctx); err != nil {
			t.Fatal(err)
		}
		// The end of the init process takes the exec with it: its exit comes first.
		if err := task.Kill(ctx, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		<-exited
		if _, err := exec.Delete(ctx); err != nil {
			t.Error(err)
		}
		if _, err := task.Delete(ctx); err != nil {
			t.Error(err)
		}
		got, err := collect()
		if err != nil {
			t.Fatal(err)
		}
		want := []string{"create", "start", "exec-added e1", "exec-started e1", "exit e1 137", "exit init 137"}
		deletes := slices.DeleteFunc(slices.Clone(got), func(l string) bool { return !strings.HasPrefix(l, "delete") })
		got = slices.DeleteFunc(got, func(l string) bool { return strings.HasPrefix(l, "delete") })
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
		if len(deletes) == 0 || deletes[len(deletes)-1] != "delete init 137" {
			t.Errorf("deletions: %q", deletes)
		}
		remove(t, h, id)
	})

	t.Run("start before exit", func(t *testing.T) {
		for i := range 5 {
			id := fmt.Sprintf("quick%d", i)
			collect := taskEvents(t, ctx, h.Client(""), id)
			c := container(t, h, id, "exit 6")
			task, err := c.NewTask(ctx, cio.NullIO)
			if err != nil {
				t.Fatal(err)
			}
			exited, err := task.Wait(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if err := task.Start(ctx); err != nil {
				t.Fatal(err)
			}
			if status := <-exited; status.ExitCode() != 6 {
				t.Errorf("exit code %d (%v)", status.ExitCode(), status.Error())
			}
			if _, err := task.Delete(ctx); err != nil {
				t.Error(err)
			}
			got, err := collect()
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([]string{"create", "start", "exit init 6", "delete init 6"}, got); diff != "" {
				t.Error(diff)
			}
			remove(t, h, id)
		}
	})
}

// bind mounts a file of the host at the same place in the container.
func bind(path string) []specs.Mount {
	return []specs.Mount{{Source: path, Destination: path, Type: "bind", Options: []string{"bind", "ro"}}}
}

// withNamespacePath joins a namespace by its path.
func withNamespacePath(kind specs.LinuxNamespaceType, path string) oci.SpecOpts {
	return oci.WithLinuxNamespace(specs.LinuxNamespace{Type: kind, Path: path})
}
