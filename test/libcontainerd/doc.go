// Package libcontainerd checks package caisson/libcontainerd on three servers in
// one go: caissond with its embedded engine, a stock containerd with its own
// containerd-shim-runc-v2, and that containerd with Caisson, as proxy plugin and as
// shim binary. A spec is written once and runs on each as a subtest; containers of
// Caisson are made without a sandbox and in one.
//
// Specs share their servers and look at their own containers only; those that
// restart a server run alone. When a spec is over, everything that it was told must
// keep the guarantee, and the client's StateDir must be empty.
//
// TestSoak churns containers while everything that can break is broken; its flags
// are in soak_test.go.
//
// All of it happens in network, mount and IPC namespaces of its own, with a /run of
// its own. The tests need root and the binaries of `make build ctr`.
package libcontainerd
