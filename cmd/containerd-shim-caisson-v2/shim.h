#ifndef SHIM_H
#define SHIM_H

#define NAME "containerd-shim-caisson-v2"
#define SOCKET_ENV "CAISSON_SHIM_SOCKET"
#define CONFIG_ENV "CAISSON_SHIM_CONFIG"

/* Prints a message to standard error and exits with code 1. */
_Noreturn void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Connects to the daemon's socket; -1 if there is none, or nobody behind it. */
int dial(const char *path);

/*
 * Starts the daemon that is to serve the socket, or waits for one that somebody
 * else starts, and connects to it.
 */
int start_daemon(const char *path, int argc, char **argv);

#endif
