// Package service puts the sandbox controller and store on the wire, and
// nothing else: each method converts its request, calls one method of an
// interface, converts the result. Protobuf messages and wire errors exist in
// this package only; errors are translated by one interceptor per transport,
// never in a handler.
//
// The sockets are the sandboxer's: gRPC serves
// containerd.services.sandbox.v1.Controller and Store, and
// containerd.runtime.sandbox.v1.Sandbox; ttrpc serves the last as well. The
// shim binary's helper socket has a protocol of its own, see
// docs/shim-protocol.md. All of them take calls from root alone.
package service
