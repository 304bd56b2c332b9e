// Package crisuite checks CRI, as kubelet uses it, on three servers in one go:
// the embedded engine, a stock containerd with caissond as its proxy plugin, and
// the reference, that containerd with its own pause containers and
// containerd-shim-runc-v2. A spec is written once and runs on each as a subtest
// of that name, so that a difference is seen at once.
//
//	func TestHostname(t *testing.T) {
//		each(t, func(t *testing.T, s *server) {
//			cfg := s.PodConfig(runtime.NamespaceMode_POD)
//			...
//		})
//	}
//
// Specs run side by side on servers that they share: they look at their own pods
// only, and whatever they make is removed with them (RunPod sees to that). The
// servers pull from a registry on loopback that stands in for all of the world's;
// what it has is in images_test.go. All of it happens in network, mount and IPC
// namespaces of its own, with a /run of its own, so specs may open host ports and
// make mounts.
//
// What the host cannot do is left out with s.lacks, what the reference fails
// too with s.shared: both print why, and shared looks whether it is still so.
//
// The tests need root and the binaries of `make build ctr`. CAISSON_TEST_RUNTIME
// is the path of another OCI runtime than Debian's runc, for all three servers.
package crisuite
