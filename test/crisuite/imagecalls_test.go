package crisuite

import (
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"caisson/test/image"
)

// The images that specs about images pull and remove: nobody else uses them.
const (
	taggedImage = "registry.example/tagged" // :1, :2 and :3 are one image
	latestImage = "registry.example/latest"
	digestImage = "registry.example/digest"
	goneImage   = "registry.example/gone:1"
)

// imagesOfImages is what the registry has for these specs.
var imagesOfImages = map[string]image.Options{
	taggedImage + ":1":      {Files: map[string]string{"/tagged": ""}},
	taggedImage + ":2":      {Files: map[string]string{"/tagged": ""}},
	taggedImage + ":3":      {Files: map[string]string{"/tagged": ""}},
	latestImage + ":latest": {Files: map[string]string{"/latest": ""}},
	digestImage + ":1":      {Files: map[string]string{"/digest": ""}},

	goneImage: {Files: map[string]string{"/gone": ""}},

	"registry.example/uid:1":       {User: "1002"},
	"registry.example/uid-gid:1":   {User: "1002:1003"},
	"registry.example/username:1":  {User: "app"},
	"registry.example/name-name:1": {User: "app:staff"},
}

// eachImageStore runs a spec on one server after the other: two of them are one
// containerd, with one store of images.
func eachImageStore(t *testing.T, spec func(t *testing.T, s *server)) {
	t.Helper()
	t.Parallel()
	eachAlone(t, spec)
}

func (s *server) imageStatus(ref string) *runtime.Image {
	s.t.Helper()
	return ask(s, s.Images.ImageStatus, &runtime.ImageStatusRequest{Image: &runtime.ImageSpec{Image: ref}}).Image
}

func (s *server) removeImage(ref string) {
	s.t.Helper()
	ask(s, s.Images.RemoveImage, &runtime.RemoveImageRequest{Image: &runtime.ImageSpec{Image: ref}})
}

// listed is the image of an ID, as ListImages tells it.
func (s *server) listed(id string) *runtime.Image {
	s.t.Helper()
	for _, image := range ask(s, s.Images.ListImages, &runtime.ListImagesRequest{}).Images {
		if image.Id == id {
			return image
		}
	}
	return nil
}

// TestImageLife pulls an image by each kind of name, looks at it by each kind of
// name, and removes it.
func TestImageLife(t *testing.T) {
	eachImageStore(t, func(t *testing.T, s *server) {
		digest := ""
		for name, tags := range map[string][]string{
			digestImage + ":1": {digestImage + ":1"},
			latestImage:        {latestImage + ":latest"},
		} {
			id := s.pull(name)
			got := s.imageStatus(name)
			if got.GetId() != id || !slices.Equal(got.GetRepoTags(), tags) || len(got.GetRepoDigests()) != 1 || got.Size == 0 || got.Pinned {
				t.Fatalf("pulled %s: %v", name, got)
			}
			if !strings.HasPrefix(got.RepoDigests[0], strings.TrimSuffix(name, ":1")+"@sha256:") {
				t.Errorf("digests of %s: %v", name, got.RepoDigests)
			}
			for _, other := range []string{id, strings.TrimPrefix(id, "sha256:")[:12], tags[0], got.RepoDigests[0]} {
				equal(t, "status by "+other, got, s.imageStatus(other))
			}
			equal(t, "listed", got, s.listed(id))
			if name != latestImage {
				digest = got.RepoDigests[0]
			}
			for range 2 {
				s.removeImage(name)
			}
			if s.imageStatus(name) != nil || s.imageStatus(id) != nil || s.listed(id) != nil {
				t.Errorf("%s is there after its removal", name)
			}
		}

		id := s.pull(digest)
		if got := s.imageStatus(digest); got.GetId() != id || len(got.GetRepoTags()) != 0 || !slices.Equal(got.GetRepoDigests(), []string{digest}) {
			t.Errorf("pulled by its digest: %v", got)
		}
		s.removeImage(id)
		if s.imageStatus(digest) != nil {
			t.Error("it is there after its removal by ID")
		}
	})
}

// TestImageTags: names of one content are one image, and go together.
func TestImageTags(t *testing.T) {
	eachImageStore(t, func(t *testing.T, s *server) {
		// The registry stands in for others, too.
		names := []string{"another.example/tagged:1", taggedImage + ":1", taggedImage + ":2", taggedImage + ":3"}
		id := ""
		for _, name := range names {
			next := s.pull(name)
			if id != "" && next != id {
				t.Errorf("%s is image %s, not %s", name, next, id)
			}
			id = next
		}
		got := s.listed(id)
		slices.Sort(got.RepoTags)
		equal(t, "tags", names, got.RepoTags)
		if len(got.RepoDigests) != 2 {
			t.Errorf("digests: %v", got.RepoDigests)
		}
		s.removeImage(names[2])
		for _, name := range append(names, id) {
			if image := s.imageStatus(name); image != nil {
				t.Errorf("%s is there after the removal of another tag: %v", name, image)
			}
		}
	})
}

// TestImageUser: who an image's containers run as is told apart by ID and by name.
func TestImageUser(t *testing.T) {
	eachImageStore(t, func(t *testing.T, s *server) {
		for name, want := range map[string]*runtime.Image{
			"uid": {Uid: value(1002)}, "uid-gid": {Uid: value(1002)}, "username": {Username: "app"}, "name-name": {Username: "app"},
		} {
			ref := "registry.example/" + name + ":1"
			s.pull(ref)
			got := s.imageStatus(ref)
			equal(t, name, want, &runtime.Image{Uid: got.GetUid(), Username: got.GetUsername()})
			s.removeImage(ref)
		}
	})
}

// TestImageRunning: a container keeps running without its image.
func TestImageRunning(t *testing.T) {
	eachImageStore(t, func(t *testing.T, s *server) {
		s.pull(goneImage)
		p := s.pod()
		id := p.sleeper("c", func(cfg *runtime.ContainerConfig) { cfg.Image.Image = goneImage })
		before := s.status(id)
		s.removeImage(goneImage)
		s.expect(id, "ls /gone", "/gone\n")
		if got := s.status(id); got.State != stateRunning || got.ImageId != before.ImageId {
			t.Errorf("without its image: %v", got)
		}
		if code := refuse(s, s.CreateContainer, &runtime.CreateContainerRequest{PodSandboxId: p.id, SandboxConfig: p.cfg,
			Config: p.config("next", "exit", func(cfg *runtime.ContainerConfig) { cfg.Image.Image = goneImage })}); code == codes.OK {
			t.Error("a container of an image that is gone")
		}
		s.removeContainer(id)
	})
}

// TestImagePullCancelled: a pull ends with its client's patience.
func TestImagePullCancelled(t *testing.T) {
	eachImageStore(t, func(t *testing.T, s *server) {
		_, err := s.Images.PullImage(s.Host.Context(time.Millisecond), &runtime.PullImageRequest{Image: &runtime.ImageSpec{Image: taggedImage + ":9"}})
		if err == nil {
			t.Error("pulled in a millisecond what is not there")
		}
	})
}

// TestImageFilesystem compares what is told of where images are.
func TestImageFilesystem(t *testing.T) {
	compare(t, func(t *testing.T, s *server) []int {
		s.pull(suiteImage)
		got := ask(s, s.Images.ImageFsInfo, &runtime.ImageFsInfoRequest{})
		for _, fs := range slices.Concat(got.ImageFilesystems, got.ContainerFilesystems) {
			if dir := fs.GetFsId().GetMountpoint(); !strings.HasPrefix(dir, s.Host.Dir) || !exists(dir) {
				t.Errorf("file system %v", fs)
			}
			if at := time.Unix(0, fs.Timestamp); time.Since(at) > time.Hour || time.Since(at) < 0 {
				t.Errorf("measured at %s", at)
			}
		}
		return []int{len(got.ImageFilesystems), len(got.ContainerFilesystems)}
	})
}

// TestNoPauseImage: the embedded engine pulls no pause image, although its
// configuration names one.
func TestNoPauseImage(t *testing.T) {
	eachImageStore(t, func(t *testing.T, s *server) {
		if s.Name == stock {
			s.lacks("it has its images with the reference; TestStockProcesses looks")
		}
		s.pod().sleeper("c")
		if got := s.imageStatus(pauseImage); (got != nil) != (s.Name == reference) {
			t.Errorf("pause image: %v", got)
		}
	})
}
