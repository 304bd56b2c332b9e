/*
 * `caisson-monitor release reads|writes FIFO PID`: lets a created container go on,
 * whose first process PID waits at its OCI runtime's FIFO. That is all that `runc
 * start` and `crun start` do where there are no hooks, and they load a whole runtime
 * for it. What the container's process does at the FIFO is the runtime's choice:
 * crun's reads a byte, runc's writes one.
 *
 * It is a process of its own, a child of the monitor, so that the end of caissond
 * cannot come between its steps. The result is 0, or UNTOUCHED if the container still
 * waits, or has ended, and its runtime is to be asked instead.
 */
#define _GNU_SOURCE
#include "monitor.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { UNTOUCHED = 3, HALF_DONE = 4, PATIENCE_MS = 10000 };

/* crun's order: without the file the container counts as running. */
static int write_byte(const char *path)
{
	int fd = open(path, O_WRONLY | O_NONBLOCK | O_CLOEXEC | O_NOFOLLOW); /* fails if nobody reads */

	if (fd < 0 || unlink(path) < 0)
		return UNTOUCHED;
	return write(fd, "", 1) == 1 ? 0 : HALF_DONE;
}

static int read_byte(const char *path, pid_t pid)
{
	struct pollfd fds[] = {
		{.fd = syscall(SYS_pidfd_open, pid, 0), .events = POLLIN},
		{.fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC | O_NOFOLLOW), .events = POLLIN},
	};
	char byte;

	if (fds[0].fd < 0 || fds[1].fd < 0 || poll(fds, 2, PATIENCE_MS) <= 0 || read(fds[1].fd, &byte, 1) != 1)
		return UNTOUCHED;
	return unlink(path) < 0 && errno != ENOENT ? HALF_DONE : 0;
}

int release(char **args)
{
	if (args[0] == NULL || args[1] == NULL || args[2] == NULL)
		return 2;
	if (strcmp(args[0], "reads") == 0)
		return write_byte(args[1]);
	return read_byte(args[1], atoi(args[2]));
}
