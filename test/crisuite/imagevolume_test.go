package crisuite

import (
	"errors"
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// imageMount is the content of volumeImage in a container.
func imageMount(subPath string) *runtime.Mount {
	return &runtime.Mount{
		ContainerPath: "/volume", Readonly: true, ImageSubPath: subPath,
		Image: &runtime.ImageSpec{Image: volumeImage, UserSpecifiedImage: volumeImage},
	}
}

// TestImageVolume: another image's files are there, run, and cannot be changed.
func TestImageVolume(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		p := s.pod()
		id := s.pull(volumeImage)
		a, b := p.sleeper("a", mounts(imageMount(""))), p.sleeper("b", mounts(imageMount("")))
		for _, c := range []string{a, b} {
			s.expect(c, "cat /volume/data/deep/file; /volume/bin/busybox echo runs", "of the volume\nruns\n")
			s.refused(c, "Read-only file system", "touch", "/volume/a")
		}
		got := s.status(a).Mounts
		if len(got) != 1 || got[0].GetImage().GetImage() != volumeImage || got[0].ContainerPath != "/volume" {
			t.Errorf("mounts of the status: %v", got)
		}
		t.Run("digest", func(t *testing.T) {
			var err error
			if ref := got[0].GetImage().GetImageRef(); ref != id {
				err = errors.New("image_ref is " + ref + ", not " + id)
			}
			use(t, s.Name).shared(err, "containerd 2.4 does not say in a container's status which image a volume is")
		})
	})
}

// TestImageVolumeUser: a user namespace does not keep the files from its pod.
func TestImageVolumeUser(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		s.needMappedMounts()
		s.pull(volumeImage)
		ids := mapping(0, firstUser, userCount)
		p := s.pod(userNamespace(ids, ids))
		mount := imageMount("")
		mount.UidMappings, mount.GidMappings = ids, ids
		id := p.sleeper("c", mounts(mount))
		s.expect(id, "cat /volume/data/deep/file; stat -c '%u %g' /volume/data", "of the volume\n0 0\n")
	})
}

// TestImageVolumeSubPath: a directory of the image, and nothing outside of it.
func TestImageVolumeSubPath(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		p := s.pod()
		s.pull(volumeImage)
		s.expect(p.sleeper("dir", mounts(imageMount("data"))), "cat /volume/deep/file; ls /volume", "of the volume\ndeep\n")
		for name, path := range map[string]string{"a file": "data/deep/file", "absent": "data/absent", "climbs": "../../..", "absolute": "/etc"} {
			if id, err := p.start(p.config(name, "exec sleep 1000", mounts(imageMount(path)))); err == nil {
				t.Errorf("%s: container %s runs", name, id)
			}
		}
	})
}

// TestImageVolumeRefused: an image that is not there.
func TestImageVolumeRefused(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		p := s.pod()
		mount := imageMount("")
		mount.Image.Image = "registry.example/never-pulled:1"
		_, err := p.start(p.config("c", "exec sleep 1000", mounts(mount)))
		if err == nil || !strings.Contains(err.Error(), "never-pulled") {
			t.Errorf("got %v, want a refusal", err)
		}
	})
}

// TestImageVolumeWritable: a volume that may be written is to be refused.
func TestImageVolumeWritable(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		p := s.pod()
		s.pull(volumeImage)
		mount := imageMount("")
		mount.Readonly = false
		if id, err := p.start(p.config("c", "exec sleep 1000", mounts(mount))); err == nil {
			t.Errorf("container %s runs", id)
		}
	})
}
