package manifest

import (
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	sandboxapi "caisson/api/caisson/sandbox/v1"
)

// variable is one of a container's environment.
type variable struct {
	name, value string
	plain       bool // nothing in the value is a reference
	addresses   int  // how many of the sandbox's are the value; 0: it is known already
}

const allAddresses = 1 << 16

// Process is what a container runs, with nothing left to look up.
type Process struct {
	Command []string // in place of the image's entrypoint and command; nil for those
	Args    []string // in place of the image's command; nil for that
	Env     []string // NAME=value
	// SubPaths are what part of their volume the Mounts show, "" for all of it;
	// relative, and without any "..".
	SubPaths []string
}

// Process resolves references; addresses are the running sandbox's.
func (c *Container) Process(addresses []string) (Process, error) {
	known := map[string]string{}
	lookup := func(name string) (string, bool) {
		v, ok := known[name]
		return v, ok
	}
	var p Process
	for _, v := range c.env {
		value := v.value
		switch {
		case v.addresses > 0 && len(addresses) == 0:
			return p, fmt.Errorf("env %s: the sandbox has no address", v.name)
		case v.addresses > 0:
			value = strings.Join(addresses[:min(v.addresses, len(addresses))], ",")
		case !v.plain:
			value = expand(value, lookup)
		}
		known[v.name] = value
		p.Env = append(p.Env, v.name+"="+value)
	}
	each := func(list []string) []string {
		var out []string
		for _, s := range list {
			out = append(out, expand(s, lookup))
		}
		return out
	}
	p.Command, p.Args = each(c.command), each(c.args)
	for _, m := range c.Mounts {
		sub := expand(m.subPath, lookup)
		if sub != "" && (path.IsAbs(sub) || strings.ContainsRune(sub, 0) || slices.Contains(strings.Split(sub, "/"), "..")) {
			return p, fmt.Errorf("the mount on %s: subPath %q must be relative, and must not go up", m.Path, sub)
		}
		if sub != "" {
			sub = path.Clean(sub)
		}
		if sub == "." {
			sub = ""
		}
		p.SubPaths = append(p.SubPaths, sub)
	}
	return p, nil
}

func (t *translator) environment(c *corev1.Container, at *field.Path) []variable {
	var env []variable
	for i, from := range c.EnvFrom {
		at := at.Child("envFrom").Index(i)
		var values map[string][]byte
		switch {
		case from.ConfigMapRef != nil:
			values = t.files.get(t, "ConfigMap", from.ConfigMapRef.Name, value(from.ConfigMapRef.Optional), at.Child("configMapRef", "name"))
		case from.SecretRef != nil:
			values = t.files.get(t, "Secret", from.SecretRef.Name, value(from.SecretRef.Optional), at.Child("secretRef", "name"))
		default:
			t.fail(at, "names neither a configMapRef nor a secretRef")
		}
		for _, key := range slices.Sorted(maps.Keys(values)) {
			if name := from.Prefix + key; len(validation.IsEnvVarName(name)) == 0 {
				env = append(env, variable{name: name, value: string(values[key]), plain: true})
			}
		}
	}
	for i, e := range c.Env {
		at := at.Child("env").Index(i)
		if e.Name == "" || strings.ContainsAny(e.Name, "=\x00") {
			t.fail(at.Child("name"), "%q cannot name a variable", e.Name)
			continue
		}
		v := variable{name: e.Name, value: e.Value}
		keep := true
		if e.ValueFrom != nil {
			if e.Value != "" {
				t.fail(at.Child("valueFrom"), "excludes value: give one of them")
			}
			v.plain = true
			keep = t.valueFrom(e.ValueFrom, &v, at.Child("valueFrom"))
		}
		if strings.ContainsRune(v.value, 0) {
			t.fail(at.Child("value"), "holds a NUL byte")
		}
		if keep {
			env = append(env, v)
		}
	}
	return env
}

// valueFrom finds the value elsewhere; false says that there is none, and need be none.
func (t *translator) valueFrom(from *corev1.EnvVarSource, v *variable, at *field.Path) bool {
	key := func(kind, name, key string, optional bool, at *field.Path) bool {
		values := t.files.get(t, kind, name, optional, at.Child("name"))
		data, ok := values[key]
		if !ok && values != nil && !optional {
			t.fail(at.Child("key"), "%s %q has no %q", kind, name, key)
		}
		v.value = string(data)
		return ok
	}
	switch {
	case from.ConfigMapKeyRef != nil:
		r := from.ConfigMapKeyRef
		return key("ConfigMap", r.Name, r.Key, value(r.Optional), at.Child("configMapKeyRef"))
	case from.SecretKeyRef != nil:
		r := from.SecretKeyRef
		return key("Secret", r.Name, r.Key, value(r.Optional), at.Child("secretKeyRef"))
	case from.FieldRef != nil:
		t.fieldRef(from.FieldRef.FieldPath, v, at.Child("fieldRef", "fieldPath"))
	case from.ResourceFieldRef != nil:
		t.fail(at.Child("resourceFieldRef"), "is not supported: write the value itself")
	case from.FileKeyRef != nil:
		t.fail(at.Child("fileKeyRef"), "is not supported: write the value itself")
	default:
		t.fail(at, "says nothing of where the value is")
	}
	return true
}

var subscript = regexp.MustCompile(`^metadata\.(labels|annotations)\['(.*)'\]$`)

func (t *translator) fieldRef(ref string, v *variable, at *field.Path) {
	if m := subscript.FindStringSubmatch(ref); m != nil {
		if v.value = t.pod.Labels[m[2]]; m[1] == "annotations" {
			v.value = t.pod.Annotations[m[2]]
		}
		return
	}
	switch ref {
	case "metadata.name":
		v.value = t.pod.Name
	case "metadata.namespace":
		if v.value = t.pod.Namespace; v.value == "" {
			v.value = corev1.NamespaceDefault
		}
	case "spec.serviceAccountName":
		if v.value = t.pod.Spec.ServiceAccountName; v.value == "" {
			v.value = "default"
		}
	case "metadata.uid":
		v.value = string(t.pod.UID)
	case "spec.nodeName":
		v.value = t.pod.Spec.NodeName
	case "status.podIP", "status.podIPs":
		if v.addresses = 1; ref == "status.podIPs" {
			v.addresses = allAddresses
		}
		if t.network != sandboxapi.Network_NETWORK_CNI {
			t.fail(at, "%s is known only of a Pod with a network of its own", ref)
		}
		return
	default:
		t.fail(at, "%q is not known here: only metadata.name, .namespace, .uid, .labels['…'] and .annotations['…'], spec.nodeName, spec.serviceAccountName, status.podIP and status.podIPs are", ref)
		return
	}
	if v.value == "" {
		t.fail(at, "the manifest gives no %s, and nobody else does", ref)
	}
}
