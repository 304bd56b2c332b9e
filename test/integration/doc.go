// Package integration tests the daemon from outside: it runs the real caissond
// and talks to it with the clients that users have.
package integration
