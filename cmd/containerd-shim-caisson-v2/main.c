/*
 * containerd-shim-caisson-v2: what containerd starts where it would start a
 * shim. There is no shim process: this program hands its command line, its
 * working directory and its standard input to caissond, prints what comes back
 * and exits with the code it is given. containerd starts it for every task
 * that ends, so it is small, static, and allocates nothing but the request.
 * If no daemon answers it starts one (start.c).
 *
 * The protocol is described in docs/shim-protocol.md.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "shim.h"

#define SOCKET_DEFAULT "/run/caisson/shim.sock"
#define REQUEST_MAGIC "CSQ1"
#define REPLY_MAGIC "CSR1"
#define MAX_BODY (1u << 20)
#define HEAD 8
#define TIMEOUT_SECONDS 60
#define ATTEMPTS 3

void fail(const char *format, ...)
{
	va_list args;

	fputs(NAME ": ", stderr);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
	exit(1);
}

/* The request: a head of HEAD bytes, then the body. */
static unsigned char request[HEAD + MAX_BODY];
static size_t used = HEAD;

static void put_number(size_t at, uint32_t n)
{
	request[at] = n >> 24;
	request[at + 1] = n >> 16;
	request[at + 2] = n >> 8;
	request[at + 3] = n;
}

static uint32_t get_number(const unsigned char *p)
{
	return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static void append_number(uint32_t n)
{
	if (sizeof(request) - used < 4)
		fail("the command line is longer than %u bytes", MAX_BODY);
	put_number(used, n);
	used += 4;
}

static void append_string(const char *s)
{
	size_t n = strlen(s);

	if (n > MAX_BODY)
		fail("the command line is longer than %u bytes", MAX_BODY);
	append_number(n);
	if (sizeof(request) - used < n)
		fail("the command line is longer than %u bytes", MAX_BODY);
	memcpy(request + used, s, n);
	used += n;
}

/* Appends standard input up to its end, unless a person sits there. */
static void append_stdin(void)
{
	size_t length = used;

	append_number(0);
	while (!isatty(STDIN_FILENO)) {
		ssize_t n;

		if (used == sizeof(request))
			fail("the command line and the standard input are longer than %u bytes", MAX_BODY);
		n = read(STDIN_FILENO, request + used, sizeof(request) - used);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno != EBADF)
			fail("read standard input: %s", strerror(errno));
		if (n <= 0)
			break;
		used += n;
	}
	put_number(length, used - length - 4);
}

int dial(const char *path)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	struct timeval timeout = { .tv_sec = TIMEOUT_SECONDS };
	int fd;

	if (strlen(path) >= sizeof(address.sun_path))
		fail("%s is longer than a socket's path can be", path);
	strcpy(address.sun_path, path);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		fail("socket: %s", strerror(errno));
	if (setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout)) < 0 ||
	    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof(timeout)) < 0)
		fail("socket: %s", strerror(errno));
	while (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
		if (errno == EINTR)
			continue;
		if (errno != ENOENT && errno != ECONNREFUSED)
			fail("caissond at %s: %s", path, strerror(errno));
		close(fd);
		return -1;
	}
	return fd;
}

static void send_all(int fd, const unsigned char *p, size_t n)
{
	while (n > 0) {
		ssize_t sent = send(fd, p, n, MSG_NOSIGNAL);

		if (sent < 0 && errno == EINTR)
			continue;
		/* A daemon that refuses the request may say so and close early. */
		if (sent < 0 && (errno == EPIPE || errno == ECONNRESET))
			return;
		if (sent < 0)
			fail("send to caissond: %s", strerror(errno));
		p += sent;
		n -= sent;
	}
}

/*
 * Fills p with n bytes of the reply. Only if may_end, a daemon that goes away
 * before the first byte is no error, and the result -1.
 */
static int receive(int fd, unsigned char *p, size_t n, int may_end)
{
	size_t all = n;

	while (n > 0) {
		ssize_t got = read(fd, p, n);

		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0 && errno == EAGAIN)
			fail("caissond did not answer within %d seconds", TIMEOUT_SECONDS);
		if (may_end && n == all && (got == 0 || (got < 0 && errno == ECONNRESET)))
			return -1;
		if (got < 0)
			fail("read from caissond: %s", strerror(errno));
		if (got == 0)
			fail("caissond closed the connection before it answered; its log may say why");
		p += got;
		n -= got;
	}
	return 0;
}

/* Copies one output of the reply to fd. */
static void print(int from, int to)
{
	unsigned char chunk[4096];
	uint32_t left;

	receive(from, chunk, 4, 0);
	left = get_number(chunk);
	if (left > MAX_BODY)
		fail("caissond's answer is longer than %u bytes", MAX_BODY);
	while (left > 0) {
		size_t n = left < sizeof(chunk) ? left : sizeof(chunk), done = 0;

		receive(from, chunk, n, 0);
		while (done < n) {
			ssize_t written = write(to, chunk + done, n - done);

			if (written < 0 && errno == EINTR)
				continue;
			if (written < 0)
				fail("write: %s", strerror(errno));
			done += written;
		}
		left -= n;
	}
}

int main(int argc, char **argv)
{
	static char directory[PATH_MAX];
	const char *path = getenv(SOCKET_ENV);
	unsigned char head[HEAD];
	uint32_t code;
	int fd = -1;

	if (!path || !*path)
		path = SOCKET_DEFAULT;
	append_number(argc);
	for (int i = 0; i < argc; i++)
		append_string(argv[i]);
	/* The bundle may be gone already; then the directory has no name. */
	append_string(getcwd(directory, sizeof(directory)) ? directory : "");
	append_stdin();
	memcpy(request, REQUEST_MAGIC, 4);
	put_number(4, used - HEAD);

	/* A daemon that is killed while it has the request leaves it to the next:
	 * every request may be repeated. */
	for (int attempt = 0;; attempt++) {
		fd = dial(path);
		if (fd < 0)
			fd = start_daemon(path, argc, argv);
		send_all(fd, request, used);
		if (receive(fd, head, sizeof(head), attempt < ATTEMPTS - 1) == 0)
			break;
		close(fd);
	}
	if (memcmp(head, REPLY_MAGIC, 4) != 0)
		fail("caissond at %s speaks another version of the protocol", path);
	code = get_number(head + 4);
	print(fd, STDOUT_FILENO);
	print(fd, STDERR_FILENO);
	return code > 255 ? 1 : (int)code;
}
