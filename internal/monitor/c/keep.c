/* Descriptors kept open under names, for a daemon that may die and come back. */
#define _GNU_SOURCE
#include "monitor.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

struct kept {
	uint64_t order; /* of its KEEP, to page the names */
	unsigned n;
	int fds[MAX_KEEP_FDS];
	char name[MAX_TAG + 1];
};

static struct table kept = {.elem = sizeof(struct kept)};
static uint64_t last_order;
static unsigned n_fds; /* in all entries */

static long find(const char *name)
{
	for (size_t i = 0; i < kept.n; i++)
		if (strcmp(((struct kept *)table_at(&kept, i))->name, name) == 0)
			return i;
	return -1;
}

static void drop(size_t i)
{
	struct kept *k = table_at(&kept, i);

	for (unsigned j = 0; j < k->n; j++)
		close(k->fds[j]);
	n_fds -= k->n;
	table_del(&kept, i);
}

static int name_of(struct request *rq, const char **name)
{
	*name = get_string(&rq->body, MAX_TAG);
	if (!at_end(&rq->body) || **name == 0)
		return fail(EINVAL, "name", "");
	return 0;
}

/* The monitor must keep some descriptors for itself: connections, pipes, children. */
static unsigned limit(void)
{
	struct rlimit now;

	if (getrlimit(RLIMIT_NOFILE, &now) == 0 && now.rlim_cur < MAX_KEPT + 2 * MAX_FDS)
		return now.rlim_cur > 2 * MAX_FDS ? now.rlim_cur - 2 * MAX_FDS : now.rlim_cur / 4;
	return MAX_KEPT;
}

/* Makes room for n descriptors under name, in place of those there; *old: its entry or -1. */
static int make_room(const char *name, unsigned n, long *old)
{
	*old = find(name);
	if (n_fds + n - (*old < 0 ? 0 : ((struct kept *)table_at(&kept, *old))->n) > limit())
		return fail(ENOSPC, "too many descriptors", "");
	if (!table_reserve(&kept, kept.n + 1))
		return fail(ENOMEM, "grow table", "");
	return 0;
}

/* After make_room. The request's descriptors are the entry's from now on. */
static int enter(struct request *rq, const char *name, long old)
{
	struct kept *k;

	if (old >= 0)
		drop(old);
	k = table_add(&kept);
	if (k == NULL)
		return fail(ENOMEM, "grow table", "");
	k->order = ++last_order;
	k->n = rq->nfds;
	for (unsigned i = 0; i < k->n; i++) {
		k->fds[i] = rq->fds[i];
		rq->fds[i] = -1;
	}
	n_fds += k->n;
	strcpy(k->name, name);
	return 0;
}

/* The path of a descriptor, which opens anew what it refers to. */
static void fd_path(char path[32], int fd)
{
	char digits[12], *p = digits + sizeof(digits) - 1;

	*p = 0;
	do
		*--p = '0' + fd % 10;
	while ((fd /= 10) > 0);
	strcat(strcpy(path, "/proc/self/fd/"), p);
}

/* Puts FIFOs, opened for reading and writing, in place of the paths to them. */
static int open_fifos(struct request *rq)
{
	for (unsigned i = 0; i < rq->nfds; i++) {
		char path[32];
		struct stat st;
		int fd;

		if (fstat(rq->fds[i], &st) < 0 || !S_ISFIFO(st.st_mode))
			return fail(EINVAL, "not a FIFO", "");
		fd_path(path, rq->fds[i]);
		fd = open(path, O_RDWR | O_CLOEXEC);
		if (fd < 0)
			return fail(errno, "open a FIFO", "");
		close(rq->fds[i]);
		rq->fds[i] = fd;
	}
	return 0;
}

/* The reply has the first n descriptors of what was entered last. */
static void answer_with(struct request *rq, unsigned n)
{
	rq->reply_fds = ((struct kept *)table_at(&kept, kept.n - 1))->fds;
	rq->n_reply_fds = n;
}

int do_keep(struct request *rq)
{
	const char *name;
	long old;
	int err = name_of(rq, &name);

	if (err)
		return err;
	if (rq->nfds < 1 || rq->nfds > MAX_KEEP_FDS)
		return fail(EINVAL, "number of descriptors", "");
	err = make_room(name, rq->nfds, &old);
	if (!err && rq->flags & KEEP_OPEN)
		err = open_fifos(rq);
	if (!err)
		err = enter(rq, name, old);
	if (!err && rq->flags & KEEP_OPEN)
		answer_with(rq, rq->nfds);
	return err;
}

int do_accept(struct request *rq)
{
	const char *listener = get_string(&rq->body, MAX_TAG), *name;
	long at, old;
	int fd, err = name_of(rq, &name);

	if (err)
		return err;
	if (rq->nfds >= MAX_KEEP_FDS)
		return fail(EINVAL, "number of descriptors", "");
	at = find(listener);
	if (at < 0)
		return fail(ENOENT, "nothing kept as ", listener);
	if (strcmp(listener, name) == 0)
		return fail(EINVAL, "name", "");
	err = make_room(name, rq->nfds + 1, &old);
	if (err)
		return err;
	/* Whoever made it, the monitor must not wait. */
	fd = ((struct kept *)table_at(&kept, at))->fds[0];
	fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
	fd = accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	if (fd < 0)
		return fail(errno, "accept on ", listener);
	memmove(rq->fds + 1, rq->fds, rq->nfds * sizeof(int));
	rq->fds[0] = fd;
	rq->nfds++;
	err = enter(rq, name, old);
	if (err)
		return err;
	answer_with(rq, 1);
	return 0;
}

static struct {
	char listener[MAX_TAG + 1], prefix[MAX_TAG + 1];
	unsigned max, n;
	uint32_t last; /* number given; names are not used again when another GREET comes */
	unsigned char bytes[MAX_GREETING];
} greeting;

int do_greet(struct request *rq)
{
	const char *listener = get_string(&rq->body, MAX_TAG);
	const char *prefix = get_string(&rq->body, MAX_TAG - 10); /* and a number */
	unsigned max = get(&rq->body, 2), n = get(&rq->body, 2);

	if (rq->body.bad || n > MAX_GREETING || (size_t)(rq->body.end - rq->body.p) != n || *prefix == 0)
		return fail(EINVAL, "message", "");
	strcpy(greeting.listener, listener);
	strcpy(greeting.prefix, prefix);
	memcpy(greeting.bytes, rq->body.p, n);
	greeting.max = max;
	greeting.n = n;
	return 0;
}

/* Those that a daemon did not live to take count, too. */
static unsigned waiting(void)
{
	size_t len = strlen(greeting.prefix);
	unsigned n = 0;

	for (size_t i = 0; i < kept.n; i++)
		n += strncmp(((struct kept *)table_at(&kept, i))->name, greeting.prefix, len) == 0;
	return n;
}

int greeting_fd(void)
{
	long at = greeting.max > 0 && waiting() < greeting.max ? find(greeting.listener) : -1;

	return at < 0 ? -1 : ((struct kept *)table_at(&kept, at))->fds[0];
}

/* A name with the prefix that nothing is kept under. */
static void new_name(char name[MAX_TAG + 1])
{
	char *start = name + strlen(strcpy(name, greeting.prefix)), *p;
	uint32_t v;

	do {
		p = start;
		v = ++greeting.last;
		do /* any order of the digits will do */
			*p++ = '0' + v % 10;
		while ((v /= 10) > 0);
		*p = 0;
	} while (find(name) >= 0);
}

void greet_one(void)
{
	struct request rq = {.nfds = 1};
	char name[MAX_TAG + 1];
	long old;
	int fd = greeting_fd();

	fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
	rq.fds[0] = accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	if (rq.fds[0] < 0) {
		if (errno != EAGAIN && errno != ECONNABORTED)
			greeting.max = 0; /* no use in trying again and again */
		return;
	}
	if (!is_root(rq.fds[0])) {
		close(rq.fds[0]);
		return;
	}
	new_name(name);
	if (send(rq.fds[0], greeting.bytes, greeting.n, MSG_NOSIGNAL) != (ssize_t)greeting.n ||
	    make_room(name, 1, &old) || enter(&rq, name, old))
		close(rq.fds[0]);
}

int do_fetch(struct request *rq)
{
	const char *name;
	long i;
	int err = name_of(rq, &name);

	if (err)
		return err;
	i = find(name);
	if (i < 0)
		return fail(ENOENT, "nothing kept as ", name);
	rq->reply_fds = ((struct kept *)table_at(&kept, i))->fds;
	rq->n_reply_fds = ((struct kept *)table_at(&kept, i))->n;
	return 0;
}

int do_drop(struct request *rq)
{
	const char *name;
	size_t len;
	int err = name_of(rq, &name);

	if (err)
		return err;
	len = strlen(name) + !(rq->flags & DROP_PREFIX); /* with the NUL, it is equality */
	for (size_t i = kept.n; i-- > 0;)
		if (strncmp(((struct kept *)table_at(&kept, i))->name, name, len) == 0)
			drop(i);
	return 0;
}

int do_kept(struct request *rq)
{
	uint64_t after = get(&rq->body, 8), last = after;
	size_t at = rq->reply->n;
	unsigned n = 0;

	if (!at_end(&rq->body))
		return fail(EINVAL, "message", "");
	rq->reply->n += 10;
	for (size_t i = 0; i < kept.n; i++) {
		struct kept *k = table_at(&kept, i);

		if (k->order <= after)
			continue;
		if (put_room(rq->reply) < sizeof(k->name) + 8) {
			rq->reply_flags |= MORE;
			break;
		}
		put_string(rq->reply, k->name);
		last = k->order;
		n++;
	}
	put_at(rq->reply, at, last, 8);
	put_at(rq->reply, at + 8, n, 2);
	return 0;
}
