/* Descriptors kept open under names, for a daemon that may die and come back. */
#define _GNU_SOURCE
#include "monitor.h"

#include <errno.h>
#include <string.h>
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

int do_keep(struct request *rq)
{
	const char *name;
	struct kept *k;
	long old;
	int err = name_of(rq, &name);

	if (err)
		return err;
	if (rq->nfds < 1 || rq->nfds > MAX_KEEP_FDS)
		return fail(EINVAL, "number of descriptors", "");
	old = find(name);
	if (n_fds + rq->nfds - (old < 0 ? 0 : ((struct kept *)table_at(&kept, old))->n) > limit())
		return fail(ENOSPC, "too many descriptors", "");
	if (!table_reserve(&kept, kept.n + 1))
		return fail(ENOMEM, "grow table", "");
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
