/*
 * Fuzzes the whole monitor, from its main() on, on the kernel of kernel.h. An input is
 * what happens to the monitor, one event after the other:
 *
 *   event = u8 what, u8 n, u16 length (big-endian), that many bytes of data
 *
 * The sources are included, not linked: their state must be reset between inputs, and
 * is compared with the kernel's after each event.
 */
#include "kernel.h"

#include "../wire.c"
#include "../table.c"
#include "../records.c"
#include "../child.c"
#define enter enter_namespaces /* keep.c has one, too */
#include "../holder.c"
#undef enter
#include "../keep.c"
/* The request is looked at again for the child, which nothing can be forked for. */
static struct request child_request;
#define do_spawn(rq) do_spawn((child_request = *(rq), rq))
#define do_hold(rq) do_hold((child_request = *(rq), rq))
#define main monitor_main
#include "../main.c"
#undef main

/* release.c is another program in the same file, with no state and real FIFOs. */
int release(char **args)
{
	return args != NULL;
}

/* what: the event in its low half; then 3 bits that choose a connection, and one more. */
enum {
	PACKET,  /* data, with n descriptors: FIFOs if the top bit is set, else listening sockets; see TOO_LONG */
	CONNECT, /* by uid n */
	HANG_UP,
	FULL,    /* the connection's buffer: is if n is odd, else has room again */
	EXITED,  /* the nth process, with the status in data */
	ORPHAN,  /* a new child that the monitor did not start */
	CLIENT,  /* connects to what is kept, as uid n */
	CONTENT, /* of all files is data, from now on */
	FAIL,    /* the nth call from now that may; data: the errno */
	N_EVENTS,
	TOO_LONG = 254, /* in place of n */
	FDS_LOST = 255,
};
static const uint8_t *events, *events_end;

/* What is open, mapped and running is what the monitor knows of. */
static void check(void)
{
	unsigned fds = 3 /* standard ones */ + 2, open = 0, mapped = 0, entries = 0;

	for (struct conn *c = conns; c < conns + MAX_CONNS; c++)
		if (c->fd >= 0) {
			CHECK(file(c->fd)->kind == CONNECTION, "connection %d", c->fd);
			fds++;
		}
	for (size_t i = 0; i < kept.n; i++) {
		struct kept *entry = table_at(&kept, i);

		entries += entry->n;
		for (unsigned j = 0; j < entry->n; j++)
			file(entry->fds[j]);
	}
	CHECK(n_fds == entries, "%u descriptors are kept, not %u", entries, n_fds);
	for (int fd = 0; fd < MAX_OPEN; fd++)
		open += k.files[fd].kind != CLOSED;
	CHECK(open == fds + n_fds, "%u descriptors are open, not %u", open, fds + n_fds);
	for (int i = 0; i < MAX_MAPPINGS; i++)
		mapped += k.mappings[i].base != NULL;
	CHECK(mapped == 1 + !!records.cap + !!kept.cap + n_runtimes, "%u mappings", mapped);
	for (size_t i = 0; i < records.n; i++)
		CHECK(at(i)->exited || find_child(at(i)->pid), "the record of %d, which is gone", at(i)->pid);
	CHECK(!k.owed || end.on, "a request was not answered");
}

/* Takes an event that the loop waits for, or ends the run; returns what poll does. */
static int next_event(struct pollfd *fds)
{
	const uint8_t *e = events, *data = e + 4;
	int conn;
	size_t len;
	struct pollfd *p;

	check();
	k.packet_fd = -1;
	k.owed = false;
	if (events_end - e < 4)
		longjmp(monitor_end, 1);
	len = e[2] << 8 | e[3];
	if (len > (size_t)(events_end - data))
		len = events_end - data;
	events = data + len;
	conn = e[0] >> 4 & 7;
	p = &fds[2 + conn];
	for (int i = 0; i < 2 + MAX_CONNS + 1; i++)
		fds[i].revents = 0;
	switch (e[0] % 16 % N_EVENTS) {
	case PACKET:
		k.packet = data;
		k.packet_len = len < MSG_MAX ? len : MSG_MAX;
		k.packet_fd = p->fd;
		k.packet_fds = e[1] <= MAX_FDS ? e[1] : 2;
		k.packet_flags = e[1] == TOO_LONG || len > MSG_MAX ? MSG_TRUNC : e[1] == FDS_LOST ? MSG_CTRUNC : 0;
		k.packet_kind = e[0] & 0x80 ? FIFO : LISTENING;
		p->revents = POLLIN & p->events;
		break;
	case CONNECT:
		k.waiting++;
		k.peer = e[1];
		break;
	case HANG_UP:
		if (p->fd >= 0) {
			file(p->fd)->hung_up = true;
			p->revents = POLLHUP;
		}
		break;
	case FULL:
		if (p->fd >= 0) {
			file(p->fd)->full = e[1] % 2;
			p->revents = e[1] % 2 ? 0 : POLLOUT & p->events;
		}
		break;
	case EXITED:
		if (k.processes[e[1] % MAX_PROCESSES].pid != 0)
			end_process(&k.processes[e[1] % MAX_PROCESSES], len > 0 ? data[0] << 8 : 0);
		break;
	case ORPHAN:
		new_process(false);
		break;
	case CLIENT:
		k.clients++;
		k.peer = e[1];
		break;
	case CONTENT:
		k.content = data;
		k.content_len = len;
		break;
	case FAIL:
		k.fail_in = e[1];
		k.fail_with = len > 0 && data[0] > 0 ? data[0] : ENOMEM;
		break;
	}
	fds[0].revents = k.signalled ? POLLIN : 0;
	fds[1].revents = k.waiting > 0 ? POLLIN : 0;
	fds[2 + MAX_CONNS].revents = fds[2 + MAX_CONNS].fd >= 0 && k.clients > 0 ? POLLIN : 0;
	return 1;
}

/*
 * What the new process k.child does, here and now, until it executes something, sleeps
 * or exits. What it does to its descriptors and its memory is undone.
 */
static void play_child(bool holder)
{
	static struct file files[MAX_OPEN];
	struct table parents_records = records;
	struct request rq;
	struct spawn s;
	struct hold h;

	memcpy(files, k.files, sizeof(files));
	if (setjmp(child_end) == 0) {
		rq = child_request;
		if (holder && parse_hold(&rq, &h) == 0)
			run_holder(&rq, &h, k.pipe);
		else if (!holder && parse_spawn(&rq, &s) == 0)
			run_child(&rq, &s, k.pipe[1]);
		CHECK(false, "the child's request is another");
	}
	memcpy(k.files, files, sizeof(files));
	records = parents_records;
	unmap_all(true);
}

static void reset(void)
{
	unmap_all(false);
	memset(&k, 0, sizeof(k));
	memset(conns, 0, sizeof(conns));
	memset(&end, 0, sizeof(end));
	memset(&greeting, 0, sizeof(greeting));
	memset(step, 0, sizeof(step));
	records.base = kept.base = NULL;
	records.n = records.cap = kept.n = kept.cap = 0;
	last_serial = last_exit = last_order = 0;
	n_runtimes = n_fds = 0;
	greeter = NULL;
	buffers_used = false;
	oom_score_before = -1;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const char content[] = "-500\n";
	char title[] = "caisson-monitor\0name", *argv[] = {title, title + sizeof("caisson-monitor"), NULL};

	reset();
	for (int fd = 0; fd < 3; fd++)
		k.files[fd].kind = PLAIN;
	k.files[MONITORS_SOCKET].kind = LISTENING;
	k.last_pid = FIRST_CHILD - 1;
	k.packet_fd = -1;
	k.content = (const uint8_t *)content;
	k.content_len = sizeof(content) - 1;
	events = data;
	events_end = data + size;
	if (setjmp(monitor_end) == 0)
		CHECK(false, "main returned %d", monitor_main(2, argv));
	return 0;
}
