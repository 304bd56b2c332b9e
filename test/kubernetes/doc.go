// Package kubernetes tests Caisson with a real kubelet: alone, with the static
// pods of testdata, and with an API server, which is given the objects of
// testdata/cluster. It needs root, and kubelet, kube-apiserver, kubectl and etcd
// in the directory CAISSON_TEST_KUBERNETES: `make test-kubernetes` builds them.
//
// All of it happens in network, mount and IPC namespaces of its own, since
// kubelet and the host ports of pods change the host.
package kubernetes
