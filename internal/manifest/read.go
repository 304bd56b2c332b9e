package manifest

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	sandboxapi "caisson/api/caisson/sandbox/v1"
)

// MaxSize bounds a file: a manifest is text, and the objects in it are at most 1.5 MiB
// each in Kubernetes.
const MaxSize = 16 << 20

// Options are what a manifest does not say itself.
type Options struct {
	// Network is that of Pods without hostNetwork; CNI if unspecified, as in a cluster.
	Network sandboxapi.Network
}

// Set is what a file asks for.
type Set struct {
	Pods     []Pod // in the order of the file
	Warnings []string
}

// document is one of the documents of a file, decoded as far as its kind is known.
type document struct {
	report
	kind    string
	raw     map[string]any
	json    []byte          // with sorted keys
	unknown map[string]bool // paths of fields that its kind does not have

	pod    *corev1.Pod
	config *corev1.ConfigMap
	secret *corev1.Secret
}

// Read translates the content of a file; name is for messages. Its error is of class
// errdefs.ErrInvalidArgument and, if it is about more than the file as a whole, Errors.
func Read(name string, data []byte, opts Options) (*Set, error) {
	if len(data) > MaxSize {
		return nil, &Error{File: name, Problem: fmt.Sprintf("is larger than %d bytes", MaxSize)}
	}
	var docs []*document
	for i, text := range split(data) {
		d := &document{report: report{at: Error{File: name, Document: i + 1}}, unknown: map[string]bool{}}
		if d.decode(text); d.kind != "" || len(d.errs) > 0 {
			docs = append(docs, d)
		}
	}
	files := newFileSet(docs)
	set := &Set{}
	var errs Errors
	for _, d := range docs {
		if d.pod != nil && len(d.errs) == 0 {
			pod := d.translate(files, opts)
			if slices.ContainsFunc(set.Pods, func(p Pod) bool { return p.Name == pod.Name }) {
				d.fail(nil, "there is another Pod of that name in the file")
			}
			set.Pods = append(set.Pods, pod)
		}
		errs = append(errs, d.errs...)
		set.Warnings = append(set.Warnings, d.warnings...)
	}
	if len(errs) > 0 {
		return nil, errs
	}
	if len(set.Pods) == 0 {
		return nil, &Error{File: name, Problem: "holds no Pod (kind: Pod, apiVersion: v1)"}
	}
	return set, nil
}

// split cuts a file where a line begins with three dashes, as kubectl does.
func split(data []byte) [][]byte {
	data = bytes.ReplaceAll(data, []byte("\r\n"), []byte("\n"))
	var docs [][]byte
	begin := 0
	for at := 0; at < len(data); {
		end := len(data)
		if i := bytes.IndexByte(data[at:], '\n'); i >= 0 {
			end = at + i + 1
		}
		if line := data[at:end]; bytes.HasPrefix(line, []byte("---")) {
			// A comment may come before the first separator.
			if at > 0 && len(bytes.TrimSpace(stripComments(data[begin:at]))) > 0 || len(docs) > 0 {
				docs = append(docs, data[begin:at])
			}
			begin = at
			if len(bytes.TrimSpace(line)) == len("---") {
				begin = end
			}
		}
		at = end
	}
	return append(docs, data[begin:])
}

func stripComments(text []byte) []byte {
	var kept []byte
	for line := range bytes.Lines(text) {
		if !bytes.HasPrefix(bytes.TrimSpace(line), []byte("#")) {
			kept = append(kept, line...)
		}
	}
	return kept
}

// decode reads a document. An empty one has no kind in the end.
func (d *document) decode(text []byte) {
	var err error
	if d.json, err = yaml.YAMLToJSONStrict(text); err != nil {
		d.fail(nil, "%v", err)
		return
	}
	var whole any
	if err := json.UnmarshalCaseSensitivePreserveInts(d.json, &whole); err != nil {
		d.fail(nil, "%v", err)
		return
	}
	if whole == nil {
		return
	}
	var ok bool
	if d.raw, ok = whole.(map[string]any); !ok {
		d.fail(nil, "is no object of Kubernetes: it has no kind")
		return
	}
	kind, _ := d.raw["kind"].(string)
	version, _ := d.raw["apiVersion"].(string)
	if kind == "" || version == "" {
		d.fail(nil, "is no object of Kubernetes: kind and apiVersion must be given, such as kind: Pod, apiVersion: v1")
		return
	}
	d.kind, d.at.Object = kind, kind
	if version != "v1" {
		kind = "" // another group's
	}
	switch kind {
	case "Pod":
		d.pod = &corev1.Pod{}
		d.into(d.pod, &d.pod.ObjectMeta)
		d.warnUnused()
	case "ConfigMap":
		d.config = &corev1.ConfigMap{}
		d.into(d.config, &d.config.ObjectMeta)
	case "Secret":
		d.secret = &corev1.Secret{}
		d.into(d.secret, &d.secret.ObjectMeta)
	default:
		d.warn("", "%s of %s is left to Kubernetes, ignored", d.kind, version)
	}
}

// into decodes the document into its type, and warns of fields that the type does not have.
func (d *document) into(object any, meta *metav1.ObjectMeta) {
	strict, err := json.UnmarshalStrict(d.json, object)
	if err != nil {
		path, problem := locate(d.raw, object, err)
		d.fail(path, "%s", problem)
		return
	}
	if meta.Name == "" {
		d.fail(metadataPath.Child("name"), "is missing")
		return
	}
	d.at.Object = fmt.Sprintf("%s %q", d.kind, meta.Name)
	for _, err := range strict {
		d.warnUnknown(err)
	}
}

// digest tells whether two documents are the same, however they are written.
func digest(parts ...[]byte) string {
	h := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(h, "%d:", len(p)) // a hash takes all writes
		h.Write(p)
	}
	return hex.EncodeToString(h.Sum(nil))
}
