package crisuite

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
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
	// userImage has a user that is not root, by name, and a group by number.
	userImage = "registry.example/user:1"
	// setuidImage has a su that runs as root whoever starts it.
	setuidImage = "registry.example/setuid:1"
	// volumeImage is mounted, not run.
	volumeImage = "registry.example/volume:1"
)

// images is what the registry has.
var images = map[string]image.Options{
	suiteImage: {Files: map[string]string{"/etc/marked": "by the image\n"}},
	// The first process of a pod without PID namespaces of its containers' own:
	// it reaps whatever becomes its child.
	pauseImage:  {Cmd: []string{"sh", "-c", "trap 'exit 0' TERM; sleep 1000000 & while :; do wait; done"}},
	userImage:   {User: "app:1003"},
	volumeImage: {Files: map[string]string{"/data/deep/file": "of the volume\n"}},
}

func fill(r *registry.Registry) error {
	busybox, err := readBusybox()
	if err != nil {
		return err
	}
	images[setuidImage] = image.Options{Files: map[string]string{"/suid/su": busybox}, Modes: map[string]int64{"/suid/su": 0o4755}}
	maps.Copy(images, imagesOfImages)
	for ref, opts := range images {
		opts.Ref = ref
		if _, err := r.Add(opts); err != nil {
			return fmt.Errorf("image %s: %w", ref, err)
		}
	}
	return nil
}

// readBusybox is the program that images consist of.
func readBusybox() (string, error) {
	path, err := exec.LookPath("busybox")
	if err != nil {
		return "", image.ErrNoBusybox
	}
	content, err := os.ReadFile(path)
	return string(content), err
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
