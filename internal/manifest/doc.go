// Package manifest reads Kubernetes manifests and says which sandboxes their Pods
// ask for. It is translation and nothing else: it touches no file, daemon or clock,
// so the same text always gives the same answer.
//
// Read looks at the whole file before it answers, and tells all that is wrong with
// it at once. What a Pod asks for and caisson leaves undone is a warning, unless to
// leave it undone would run the Pod with less protection than it asks for: that is
// an error (fields.go says which is which).
package manifest
