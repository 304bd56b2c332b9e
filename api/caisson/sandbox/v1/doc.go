// Package sandbox holds the options that Caisson's controller understands when
// its client is not Kubernetes' CRI: a command line, an engine, a CI system.
//
// They travel as a typeurl Any with the URL "caisson.sandbox.v1.Options".
package sandbox
