package manifest

import (
	"maps"
	"path"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Volume is a directory, or a file of the host, for the containers of a Pod.
type Volume struct {
	Name string

	// HostPath is where the host has it; "" for one that is made for the Pod.
	HostPath string
	HostType corev1.HostPathType

	Memory bool  // on a file system of its own in memory
	Size   int64 // bytes of that; 0 is the kernel's choice

	Files    []File // what it holds from the beginning
	ReadOnly bool   // to all containers
}

// File is one of a volume's.
type File struct {
	Path string // relative, and without any ".."
	Data []byte
	Mode uint32
}

func (t *translator) volume(v *corev1.Volume, at *field.Path) Volume {
	n := Volume{Name: v.Name}
	for _, problem := range validation.IsDNS1123Label(v.Name) {
		t.fail(at.Child("name"), "%q: %s", v.Name, problem)
	}
	if t.volumes[v.Name] {
		t.fail(at.Child("name"), "%q is the name of another volume", v.Name)
	}
	t.volumes[v.Name] = true
	switch {
	case v.EmptyDir != nil:
		t.emptyDir(&n, v.EmptyDir, at.Child("emptyDir"))
	case v.HostPath != nil:
		n.HostPath = path.Clean(v.HostPath.Path)
		if !path.IsAbs(v.HostPath.Path) || strings.ContainsRune(v.HostPath.Path, 0) {
			t.fail(at.Child("hostPath", "path"), "%q is not an absolute path", v.HostPath.Path)
		}
		if v.HostPath.Type != nil {
			n.HostType = *v.HostPath.Type
		}
		if !slices.Contains(hostTypes, n.HostType) {
			t.fail(at.Child("hostPath", "type"), "%q is not one of %v", n.HostType, hostTypes[1:])
		}
	case v.ConfigMap != nil:
		from := v.ConfigMap
		at := at.Child("configMap")
		data := t.files.get(t, "ConfigMap", from.Name, value(from.Optional), at.Child("name"))
		n.ReadOnly = true
		n.Files = t.volumeFiles(data, from.Items, from.DefaultMode, value(from.Optional), at)
	case v.Secret != nil:
		from := v.Secret
		at := at.Child("secret")
		data := t.files.get(t, "Secret", from.SecretName, value(from.Optional), at.Child("secretName"))
		n.ReadOnly, n.Memory = true, true // a secret is not written to a disk
		n.Files = t.volumeFiles(data, from.Items, from.DefaultMode, value(from.Optional), at)
	case v.VolumeSource == corev1.VolumeSource{}:
		// Kubernetes takes that for an emptyDir.
	default:
		t.fail(at, "only emptyDir, hostPath, configMap and secret volumes are supported")
	}
	return n
}

var hostTypes = []corev1.HostPathType{
	corev1.HostPathUnset, corev1.HostPathDirectory, corev1.HostPathDirectoryOrCreate, corev1.HostPathFile,
	corev1.HostPathFileOrCreate, corev1.HostPathSocket, corev1.HostPathCharDev, corev1.HostPathBlockDev,
}

func (t *translator) emptyDir(n *Volume, from *corev1.EmptyDirVolumeSource, at *field.Path) {
	if limit := from.SizeLimit; limit != nil {
		n.Size = limit.Value()
		if n.Size < 0 {
			t.fail(at.Child("sizeLimit"), "%s is below zero", limit.String())
		}
	}
	switch from.Medium {
	case corev1.StorageMediumDefault:
		if n.Size != 0 {
			t.warn(at.Child("sizeLimit").String(), "only medium: Memory has a limit here, ignored")
			n.Size = 0
		}
	case corev1.StorageMediumMemory:
		n.Memory = true
	default:
		t.fail(at.Child("medium"), "%q is not supported: leave it out, or use Memory", from.Medium)
	}
}

// volumeFiles are all keys of the data, or the items that are picked from it.
func (t *translator) volumeFiles(data map[string][]byte, items []corev1.KeyToPath, defaultMode *int32, optional bool, at *field.Path) []File {
	usual := t.mode(defaultMode, corev1.ConfigMapVolumeSourceDefaultMode, at.Child("defaultMode"))
	var files []File
	if len(items) == 0 {
		for _, key := range slices.Sorted(maps.Keys(data)) {
			files = append(files, File{Path: key, Data: data[key], Mode: usual})
		}
		return files
	}
	for i, item := range items {
		at := at.Child("items").Index(i)
		if !isLocal(item.Path) {
			t.fail(at.Child("path"), "%q must be relative, and must not go up", item.Path)
		}
		content, ok := data[item.Key]
		if !ok {
			if data != nil && !optional {
				t.fail(at.Child("key"), "there is no %q in it", item.Key)
			}
			continue
		}
		files = append(files, File{Path: path.Clean(item.Path), Data: content, Mode: t.mode(item.Mode, int32(usual), at.Child("mode"))})
	}
	for i, f := range files {
		for _, g := range files[i+1:] {
			if f.Path == g.Path || strings.HasPrefix(f.Path, g.Path+"/") || strings.HasPrefix(g.Path, f.Path+"/") {
				t.fail(at.Child("items"), "%s and %s cannot both be files", f.Path, g.Path)
			}
		}
	}
	return files
}

// isLocal says whether a path stays below where it begins.
func isLocal(p string) bool {
	return p != "" && path.Clean(p) != "." && !path.IsAbs(p) && !strings.ContainsRune(p, 0) && !slices.Contains(strings.Split(p, "/"), "..")
}

func (t *translator) mode(given *int32, otherwise int32, at *field.Path) uint32 {
	if given == nil {
		return uint32(otherwise)
	}
	if *given < 0 || *given > 0o777 {
		t.fail(at, "%d is not a file mode from 0 to 0777", *given)
		return 0
	}
	return uint32(*given)
}

// fileSet finds the ConfigMaps and Secrets of a file.
type fileSet struct {
	docs []*document
}

func newFileSet(docs []*document) *fileSet {
	s := &fileSet{}
	for _, d := range docs {
		if d.config == nil && d.secret == nil || len(d.errs) > 0 {
			continue
		}
		if slices.ContainsFunc(s.docs, func(o *document) bool { return o.at.Object == d.at.Object }) {
			d.fail(nil, "there is another one of that name in the file")
		}
		for key := range d.data() {
			for _, problem := range validation.IsConfigMapKey(key) {
				d.fail(nil, "key %q: %s", key, problem)
			}
		}
		s.docs = append(s.docs, d)
	}
	return s
}

func (d *document) data() map[string][]byte {
	all := map[string][]byte{}
	if d.config != nil {
		maps.Copy(all, d.config.BinaryData)
		for k, v := range d.config.Data {
			all[k] = []byte(v)
		}
	}
	if d.secret != nil {
		maps.Copy(all, d.secret.Data)
		for k, v := range d.secret.StringData {
			all[k] = []byte(v)
		}
	}
	return all
}

// get answers what a ConfigMap or Secret holds; nil if there is none, which is an
// error unless it is optional.
func (s *fileSet) get(t *translator, kind, name string, optional bool, at *field.Path) map[string][]byte {
	for _, d := range s.docs {
		if d.kind == kind && (d.config != nil && d.config.Name == name || d.secret != nil && d.secret.Name == name) {
			t.used = append(t.used, d.json)
			return d.data()
		}
	}
	if !optional {
		t.fail(at, "the file holds no %s %q: put it into the same file", kind, name)
	}
	return nil
}
