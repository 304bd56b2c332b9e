package manifest

import (
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/pkg/cap"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Security is what a container's process may do, and as whom.
type Security struct {
	User, Group *int64  // nil for the image's
	Groups      []int64 // more groups
	NonRoot     bool    // refuse to run as root, whoever says so

	Privileged      bool
	ReadOnlyRoot    bool
	NoNewPrivileges bool
	Unconfined      bool // without the default seccomp profile

	AddCapabilities, DropCapabilities []string // as CAP_…; "ALL" for all
}

// security joins what the Pod says and what the container says, which wins.
func (t *translator) security(c *corev1.Container, at *field.Path) Security {
	podAt, at := specPath.Child("securityContext"), at.Child("securityContext")
	pod, own := t.pod.Spec.SecurityContext, c.SecurityContext
	if pod == nil {
		pod = &corev1.PodSecurityContext{}
	}
	if own == nil {
		own = &corev1.SecurityContext{}
	}
	var s Security
	s.User = first(t.id(own.RunAsUser, at.Child("runAsUser")), t.id(pod.RunAsUser, podAt.Child("runAsUser")))
	s.Group = first(t.id(own.RunAsGroup, at.Child("runAsGroup")), t.id(pod.RunAsGroup, podAt.Child("runAsGroup")))
	s.NonRoot = value(first(own.RunAsNonRoot, pod.RunAsNonRoot))
	if s.NonRoot && s.User != nil && *s.User == 0 {
		t.fail(at.Child("runAsNonRoot"), "contradicts runAsUser: 0")
	}
	for i, g := range pod.SupplementalGroups {
		if t.id(&g, podAt.Child("supplementalGroups").Index(i)) != nil {
			s.Groups = append(s.Groups, g)
		}
	}
	if g := pod.FSGroup; g != nil {
		s.Groups = append(s.Groups, *g)
	}
	if p := pod.SupplementalGroupsPolicy; p != nil && *p == corev1.SupplementalGroupsPolicyStrict {
		t.fail(podAt.Child("supplementalGroupsPolicy"), "Strict cannot be done: the groups that the image gives the user are added")
	}
	s.Privileged = value(own.Privileged)
	s.ReadOnlyRoot = value(own.ReadOnlyRootFilesystem)
	if own.AllowPrivilegeEscalation != nil {
		s.NoNewPrivileges = !*own.AllowPrivilegeEscalation
		if s.NoNewPrivileges && s.Privileged {
			t.fail(at.Child("allowPrivilegeEscalation"), "false contradicts privileged: true")
		}
	}
	s.Unconfined = t.unconfined(own.SeccompProfile, at) || own.SeccompProfile == nil && t.unconfined(pod.SeccompProfile, podAt)
	t.appArmor(pod.AppArmorProfile, podAt)
	t.appArmor(own.AppArmorProfile, at)
	if p := own.ProcMount; p != nil && *p != corev1.DefaultProcMount {
		t.fail(at.Child("procMount"), "%q cannot be done: leave it out", *p)
	}
	if caps := own.Capabilities; caps != nil {
		s.AddCapabilities = t.capabilities(caps.Add, at.Child("capabilities", "add"))
		s.DropCapabilities = t.capabilities(caps.Drop, at.Child("capabilities", "drop"))
	}
	return s
}

// unconfined says whether a profile asks for none. Without one the default profile is
// used, as for all containers.
func (t *translator) unconfined(p *corev1.SeccompProfile, at *field.Path) bool {
	if p == nil {
		return false
	}
	switch p.Type {
	case corev1.SeccompProfileTypeUnconfined:
		return true
	case corev1.SeccompProfileTypeRuntimeDefault:
	case corev1.SeccompProfileTypeLocalhost:
		t.fail(at.Child("seccompProfile", "type"), "Localhost profiles are a kubelet's: use RuntimeDefault or Unconfined")
	default:
		t.fail(at.Child("seccompProfile", "type"), "%q is not one of RuntimeDefault and Unconfined", p.Type)
	}
	return false
}

func (t *translator) appArmor(p *corev1.AppArmorProfile, at *field.Path) {
	if p != nil && p.Type == corev1.AppArmorProfileTypeLocalhost {
		t.fail(at.Child("appArmorProfile", "type"), "Localhost profiles are not applied here: leave it out, or run it in Kubernetes")
	} else if p != nil && p.Type == corev1.AppArmorProfileTypeRuntimeDefault {
		t.warn(at.Child("appArmorProfile").String(), "no AppArmor profile is applied here, ignored")
	}
}

func (t *translator) capabilities(list []corev1.Capability, at *field.Path) []string {
	var names []string
	for i, c := range list {
		name := strings.ToUpper(string(c))
		if name != "ALL" {
			name = "CAP_" + strings.TrimPrefix(name, "CAP_")
			if !slices.Contains(cap.Known(), name) {
				t.fail(at.Index(i), "%q is not a capability, such as NET_ADMIN, or ALL", c)
				continue
			}
		}
		names = append(names, name)
	}
	return names
}

func first[T any](list ...*T) *T {
	for _, p := range list {
		if p != nil {
			return p
		}
	}
	return nil
}

func value(b *bool) bool { return b != nil && *b }
