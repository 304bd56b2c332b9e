package crisuite

import (
	"fmt"
	"testing"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"caisson/test/image"
	"caisson/test/registry"
)

const (
	// suiteImage is what containers run unless a spec is about something else.
	suiteImage = "registry.example/suite:1"
	pauseImage = "registry.example/pause:1"
)

// images is what the registry has.
var images = map[string]image.Options{
	suiteImage: {Files: map[string]string{"/etc/marked": "by the image\n"}},
	pauseImage: {Cmd: []string{"sleep", "1000000"}},
}

func fill(r *registry.Registry) error {
	for ref, opts := range images {
		opts.Ref = ref
		if _, err := r.Add(opts); err != nil {
			return fmt.Errorf("image %s: %w", ref, err)
		}
	}
	return nil
}

// pull makes the server have an image.
func (s *server) pull(ref string) (id string) {
	s.t.Helper()
	resp, err := s.Images.PullImage(s.Host.Context(time.Minute), &runtime.PullImageRequest{Image: &runtime.ImageSpec{Image: ref}})
	if err != nil {
		s.t.Fatalf("PullImage %s: %v", ref, err)
	}
	return resp.ImageRef
}

// container is the configuration of a container of the suite's image that runs
// a command of the shell.
func (s *server) container(name, script string) *runtime.ContainerConfig {
	s.t.Helper()
	s.pull(suiteImage)
	cfg := s.ContainerConfig(name, script)
	cfg.Image.Image = suiteImage
	return cfg
}

// TestPull: what is pulled is listed, and runs.
func TestPull(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		id := s.pull(suiteImage)
		resp, err := s.Images.ImageStatus(s.Host.Context(time.Minute), &runtime.ImageStatusRequest{Image: &runtime.ImageSpec{Image: suiteImage}})
		if err != nil || resp.GetImage().GetId() != id {
			t.Errorf("ImageStatus: %v, %v, want ID %s", resp, err, id)
		}
		cfg := s.PodConfig(runtime.NamespaceMode_POD)
		pod := s.RunPod(cfg)
		c := s.RunContainer(pod, cfg, s.container("c", "exec sleep 1000"))
		if got := s.Shell(c, "cat /etc/marked; hostname"); got != "by the image\n"+cfg.Hostname+"\n" {
			t.Errorf("in the container: %q", got)
		}
	})
}
