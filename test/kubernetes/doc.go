// Package kubernetes tests Caisson with a real kubelet, which has no API server
// and runs the static pods of testdata. It needs root, and a kubelet whose path
// is in CAISSON_TEST_KUBELET: `make test-kubernetes` builds one.
package kubernetes
