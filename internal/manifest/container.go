package manifest

import (
	"path"
	"strings"

	"github.com/containerd/containerd/v2/pkg/identifiers"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Container is one container of a Pod.
type Container struct {
	ID    string // unique among all containers of the daemon's namespace
	Name  string
	Image string
	Pull  corev1.PullPolicy // Always, Never or IfNotPresent

	// Sidecar marks one of Init that goes on while the others run.
	Sidecar bool

	Dir string // "" for the image's
	TTY bool

	Mounts    []Mount
	Resources Resources
	Security  Security

	command, args []string // with references to variables
	env           []variable
}

// Mount is a volume in a container.
type Mount struct {
	Volume      string
	Path        string // in the container, clean and absolute
	ReadOnly    bool
	Propagation corev1.MountPropagationMode // "" for None

	subPath string // with references to variables
}

func (t *translator) container(c *corev1.Container, at *field.Path, init bool, names map[string]bool) Container {
	n := Container{
		ID: t.pod.Name + "-" + c.Name, Name: c.Name, Image: c.Image, Pull: c.ImagePullPolicy,
		Dir: c.WorkingDir, TTY: c.TTY, command: c.Command, args: c.Args,
	}
	t.containerName(c.Name, n.ID, at.Child("name"), names)
	if c.Image == "" {
		t.fail(at.Child("image"), "is missing")
	}
	switch c.ImagePullPolicy {
	case "":
		n.Pull = corev1.PullIfNotPresent
	case corev1.PullAlways, corev1.PullNever, corev1.PullIfNotPresent:
	default:
		t.fail(at.Child("imagePullPolicy"), "%q is not one of Always, IfNotPresent and Never", c.ImagePullPolicy)
	}
	if c.RestartPolicy != nil {
		switch {
		case init && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways:
			n.Sidecar = true
		case init && *c.RestartPolicy != corev1.ContainerRestartPolicyNever, !init:
			t.warn(at.Child("restartPolicy").String(), "nobody starts a container again that has ended: left to Kubernetes")
		}
	}
	if c.WorkingDir != "" && !path.IsAbs(c.WorkingDir) {
		t.fail(at.Child("workingDir"), "%q is not absolute: begin it with /", c.WorkingDir)
	}
	n.env = t.environment(c, at)
	n.Mounts = t.mounts(c, at)
	n.Resources = t.resources(c.Resources, at.Child("resources"))
	n.Security = t.security(c, at)
	// What refers to no address is known to work before anything is made.
	if _, err := n.Process([]string{"192.0.2.1"}); err != nil {
		t.fail(at, "%v", err)
	}
	return n
}

func (t *translator) containerName(name, id string, at *field.Path, names map[string]bool) {
	if name == "" {
		t.fail(at, "is missing")
		return
	}
	for _, problem := range validation.IsDNS1123Label(name) {
		t.fail(at, "%q: %s", name, problem)
	}
	if names[name] {
		t.fail(at, "%q is the name of another container of this Pod", name)
	}
	names[name] = true
	if identifiers.Validate(t.pod.Name) == nil && identifiers.Validate(id) != nil {
		t.fail(at, "the container would be called %q, which is longer than 76 characters: choose a shorter name for it or for the Pod", id)
	}
}

func (t *translator) mounts(c *corev1.Container, at *field.Path) []Mount {
	var mounts []Mount
	taken := map[string]bool{}
	for i, m := range c.VolumeMounts {
		at := at.Child("volumeMounts").Index(i)
		n := Mount{Volume: m.Name, Path: path.Clean(m.MountPath), ReadOnly: m.ReadOnly, subPath: m.SubPath}
		if !t.volumes[m.Name] {
			t.fail(at.Child("name"), "spec.volumes has no %q", m.Name)
		}
		switch {
		case !path.IsAbs(m.MountPath) || n.Path == "/" || strings.ContainsRune(m.MountPath, 0):
			t.fail(at.Child("mountPath"), "%q is not an absolute path below /", m.MountPath)
		case taken[n.Path]:
			t.fail(at.Child("mountPath"), "%s is mounted on twice", n.Path)
		}
		taken[n.Path] = true
		if m.SubPathExpr != "" {
			if n.subPath != "" {
				t.fail(at.Child("subPathExpr"), "excludes subPath: give one of them")
			}
			n.subPath = m.SubPathExpr
		} else {
			n.subPath = strings.ReplaceAll(n.subPath, "$", "$$") // nothing in it is a reference
		}
		if m.MountPropagation != nil {
			n.Propagation = *m.MountPropagation
		}
		switch n.Propagation {
		case "", corev1.MountPropagationNone:
			n.Propagation = ""
		case corev1.MountPropagationHostToContainer:
		case corev1.MountPropagationBidirectional:
			if c.SecurityContext == nil || c.SecurityContext.Privileged == nil || !*c.SecurityContext.Privileged {
				t.fail(at.Child("mountPropagation"), "Bidirectional is for privileged containers")
			}
			if n.subPath != "" {
				t.fail(at.Child("mountPropagation"), "Bidirectional excludes subPath: mount the whole volume")
			}
		default:
			t.fail(at.Child("mountPropagation"), "%q is not one of None, HostToContainer and Bidirectional", n.Propagation)
		}
		if m.RecursiveReadOnly != nil && *m.RecursiveReadOnly == corev1.RecursiveReadOnlyEnabled {
			t.fail(at.Child("recursiveReadOnly"), "cannot be done: leave it out, or run it in Kubernetes")
		}
		mounts = append(mounts, n)
	}
	return mounts
}
