/*
 * caisson-monitor: one per sandbox, parent of everything in it. See
 * protocol.h for what it does; this file has the event loop and connections.
 *
 * It is started as `caisson-monitor NAME` with the listening socket as
 * descriptor 3 (and empty arguments after NAME, for one that is to have another), and ends only by an END request (or SIGKILL). The same program is
 * what lets containers go on, see release.c.
 */
#define _GNU_SOURCE
#include "monitor.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { LISTENER = 3, SOCKET_BUFFER = 4 * MSG_MAX };

struct conn {
	int fd; /* -1: free */
	unsigned version; /* of the last message */
	bool full;       /* the socket's buffer; nothing is read until there is room */
	bool subscribed;
	uint64_t next_exit; /* exit_order to send next */
};

char *proc_title;
static size_t name_room; /* for what follows proc_title, with its NUL */
struct rlimit nofile_before;
int oom_score_before = -1;

static struct conn conns[MAX_CONNS];
static unsigned char *in_buf, *out_buf; /* MSG_MAX bytes each */
static bool buffers_used;
static struct conn *greeter; /* whose end lets greetings begin */
static char step[256];
static struct { /* an accepted END */
	bool on, force;
	int conn; /* where the reply goes, -1 if it is gone */
	uint32_t id;
} end;

int fail(int err, const char *what, const char *detail)
{
	step[0] = 0;
	strncat(strncat(step, what, 240), detail, sizeof(step) - 1 - strlen(step));
	return err;
}

static void disconnect(struct conn *c)
{
	close(c->fd);
	c->fd = -1; /* the rest is set when the slot is used again */
	if (greeter == c)
		greeter = NULL;
	if (end.conn == c - conns)
		end.conn = -1;
}

static void put_header(struct out *out, const struct conn *c, unsigned type, uint32_t id, uint32_t flags, unsigned nfds)
{
	out->n = 0;
	put(out, c->version, 2);
	put(out, type, 2);
	put(out, id, 4);
	put(out, flags, 4);
	put(out, nfds, 2);
	put(out, 0, 2);
}

/* False if the socket's buffer is full; a broken connection is closed. */
static bool send_message(struct conn *c, struct out *out, const int *fds, unsigned nfds)
{
	union {
		char buf[CMSG_SPACE(MAX_KEEP_FDS * sizeof(int))];
		struct cmsghdr align;
	} control;
	struct iovec iov = {.iov_base = out->base, .iov_len = out->n};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};

	if (nfds > 0) {
		struct cmsghdr *cm = &control.align;

		memset(&control, 0, sizeof(control));
		msg.msg_control = control.buf;
		msg.msg_controllen = CMSG_SPACE(nfds * sizeof(int));
		cm->cmsg_level = SOL_SOCKET;
		cm->cmsg_type = SCM_RIGHTS;
		cm->cmsg_len = CMSG_LEN(nfds * sizeof(int));
		memcpy(CMSG_DATA(cm), fds, nfds * sizeof(int));
	}
	if (sendmsg(c->fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT) >= 0)
		return true;
	if (errno == EAGAIN)
		return false;
	disconnect(c);
	return true;
}

/* Requests are read only while a reply fits, so a reply never has to wait. */
static void reply(struct conn *c, struct request *rq, int err)
{
	struct out *out = rq->reply;
	size_t n = out->n;

	if (err) {
		put_header(out, c, ERROR, rq->id, 0, 0);
		put(out, err, 4);
		put_string(out, step);
		rq->n_reply_fds = 0;
	} else {
		put_header(out, c, rq->type | REPLY, rq->id, rq->reply_flags, rq->n_reply_fds);
		out->n = n;
	}
	if (!send_message(c, out, rq->reply_fds, rq->n_reply_fds))
		disconnect(c);
}

static void send_exits(struct conn *c)
{
	struct out out = {.base = out_buf};
	const struct record *r;

	while (c->fd >= 0 && c->subscribed && !c->full && (r = next_exit(c->next_exit)) != NULL) {
		uint64_t order = r->exit_order;

		buffers_used = true;
		put_header(&out, c, EXIT, 0, 0, 0);
		put_record(&out, r);
		if (!send_message(c, &out, NULL, 0))
			c->full = true;
		else
			c->next_exit = order + 1;
	}
}

static int do_hello(const struct conn *c, struct request *rq)
{
	static uint64_t start;

	if (start == 0)
		start = start_time(getpid());
	put(rq->reply, c->version, 4);
	put(rq->reply, getpid(), 4);
	put(rq->reply, start, 8);
	return 0;
}

static int do_subscribe(struct conn *c)
{
	if (c->subscribed)
		return fail(EALREADY, "subscribe", "");
	c->subscribed = true;
	return 0;
}

static int do_title(struct request *rq)
{
	const char *name = get_string(&rq->body, MAX_TAG);
	char *shown = proc_title + strlen(proc_title) + 1;

	if (!at_end(&rq->body))
		return fail(EINVAL, "message", "");
	if (strlen(name) >= name_room)
		return fail(ENOSPC, "title", "");
	memset(shown, 0, name_room);
	strcpy(shown, name);
	return 0;
}

static int do_end(struct conn *c, struct request *rq)
{
	end.force = rq->flags & END_FORCE;
	if (!end.force && !only_holder_left())
		return fail(EBUSY, "processes are left", "");
	end.on = true;
	end.conn = c - conns;
	end.id = rq->id;
	return 0; /* answered by go_on_ending */
}

static int handle(struct conn *c, struct request *rq, unsigned version)
{
	static const uint32_t flags[TITLE + 1] = {
		[HOLD] = HOLD_USER | HOLD_NET | HOLD_NEW_IPC | HOLD_NEW_UTS | HOLD_NEW_PID,
		[SPAWN] = SPAWN_ADOPT,
		[SIGNAL] = SIGNAL_ONCE,
		[KEEP] = KEEP_OPEN,
		[DROP] = DROP_PREFIX,
		[END] = END_FORCE,
	};
	unsigned t = rq->type;
	bool no_body = t == HELLO || t == SUBSCRIBE || t == END;

	if (version != c->version && t != HELLO)
		return fail(EPROTONOSUPPORT, "protocol version", "");
	if (t < HELLO || t > TITLE)
		return fail(ENOSYS, "unknown request", "");
	if (rq->flags & ~flags[t])
		return fail(EINVAL, "unknown flags", "");
	if (rq->nfds > 0 && t != HOLD && t != SPAWN && t != KEEP && t != ACCEPT)
		return fail(EINVAL, "unexpected descriptors", "");
	if (no_body && !at_end(&rq->body))
		return fail(EINVAL, "message", "");
	if (end.on && (t == HOLD || t == SPAWN || t == END))
		return fail(ESHUTDOWN, "the monitor is ending", "");
	switch (t) {
	case HELLO: return do_hello(c, rq);
	case HOLD: return do_hold(rq);
	case SPAWN: return do_spawn(rq);
	case SIGNAL: return do_signal(rq);
	case LIST: return do_list(rq);
	case SUBSCRIBE: return do_subscribe(c);
	case ACK: return do_ack(rq);
	case KEEP: return do_keep(rq);
	case FETCH: return do_fetch(rq);
	case DROP: return do_drop(rq);
	case KEPT: return do_kept(rq);
	case ACCEPT: return do_accept(rq);
	case GREET: {
		int err = do_greet(rq);

		if (!err)
			greeter = c;
		return err;
	}
	case TITLE: return do_title(rq);
	default: return do_end(c, rq);
	}
}

/* Takes the descriptors out of a received message. */
static void take_fds(struct request *rq, struct msghdr *msg)
{
	for (struct cmsghdr *cm = CMSG_FIRSTHDR(msg); cm != NULL; cm = CMSG_NXTHDR(msg, cm)) {
		unsigned n = (cm->cmsg_len - CMSG_LEN(0)) / sizeof(int);

		if (cm->cmsg_level != SOL_SOCKET || cm->cmsg_type != SCM_RIGHTS)
			continue;
		memcpy(rq->fds + rq->nfds, CMSG_DATA(cm), n * sizeof(int));
		rq->nfds += n; /* one header of at most MAX_FDS comes, or none */
	}
}

static void receive(struct conn *c)
{
	static struct request rq; /* static: it holds a large array */
	static union {
		char buf[CMSG_SPACE(MAX_FDS * sizeof(int))];
		struct cmsghdr align;
	} control;
	struct out out = {.base = out_buf, .n = HEADER_SIZE};
	struct iovec iov = {.iov_base = in_buf, .iov_len = MSG_MAX};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1,
	                     .msg_control = control.buf, .msg_controllen = sizeof(control.buf)};
	struct in in = {.p = in_buf};
	unsigned version, nfds, zero;
	struct pollfd hangup = {.fd = c->fd, .events = POLLRDHUP};
	ssize_t n = recvmsg(c->fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	int err;

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	rq.nfds = rq.n_reply_fds = rq.reply_flags = 0;
	rq.reply_fds = NULL;
	rq.reply = &out;
	if (n >= 0)
		take_fds(&rq, &msg);
	/* An empty packet looks like the end of the connection, which brings no descriptors. */
	if (n < 0 || (n == 0 && rq.nfds == 0 && poll(&hangup, 1, 0) != 0)) {
		disconnect(c);
		return;
	}
	in.end = in_buf + n;
	version = get(&in, 2);
	rq.type = get(&in, 2);
	rq.id = get(&in, 4);
	rq.flags = get(&in, 4);
	nfds = get(&in, 2);
	zero = get(&in, 2);
	rq.body = in;
	c->version = version < 1 || version > PROTOCOL_VERSION ? PROTOCOL_VERSION : version;
	if (msg.msg_flags & MSG_TRUNC)
		err = fail(EMSGSIZE, "message too long", "");
	else if (in.bad || zero != 0)
		err = fail(EBADMSG, "message header", "");
	else if ((msg.msg_flags & MSG_CTRUNC) || nfds != rq.nfds)
		err = fail(EBADMSG, "descriptors were lost", "");
	else
		err = handle(c, &rq, version);
	for (unsigned i = 0; i < rq.nfds; i++)
		if (rq.fds[i] >= 0)
			close(rq.fds[i]);
	if (err || rq.type != END)
		reply(c, &rq, err);
	buffers_used = true;
}

/* Gives back the pages of the stack that only deeper calls have used. */
__attribute__((noinline)) void give_back_stack(void)
{
	enum { PAGE = 4096, DEEPEST = 16 * PAGE, OWN = 256 /* this call, and more */ };
	uintptr_t below = ((uintptr_t)__builtin_frame_address(0) - OWN) & -(uintptr_t)PAGE;

	/* It fails where the stack has not been that deep, and does the rest. */
	madvise((void *)(below - DEEPEST), DEEPEST, MADV_DONTNEED);
}

/* For the holder, which shares the monitor's memory and needs little of it. */
void unmap_buffers(void)
{
	munmap(in_buf, 2 * MSG_MAX);
}

bool is_root(int fd)
{
	struct ucred peer;
	socklen_t len = sizeof(peer);

	return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) == 0 && peer.uid == 0;
}

static void accept_one(void)
{
	int fd = accept4(LISTENER, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK), size = SOCKET_BUFFER;

	if (fd < 0)
		return;
	if (is_root(fd)) {
		/* Room for a message of any size, whatever the system's default is. */
		setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof(size));
		for (struct conn *c = conns; c < conns + MAX_CONNS; c++)
			if (c->fd < 0) {
				*c = (struct conn){.fd = fd, .version = PROTOCOL_VERSION};
				return;
			}
	}
	close(fd);
}

/* Ends the monitor once no child is left; called again after each exit and each while. */
static void go_on_ending(void)
{
	struct out out = {.base = out_buf};

	if (!only_holder_left()) {
		kill_others();
		return;
	}
	if (holder_pid() != 0) {
		kill(holder_pid(), SIGKILL);
		return;
	}
	for (struct conn *c = conns; c < conns + MAX_CONNS; c++)
		send_exits(c);
	if (end.conn >= 0) {
		put_header(&out, &conns[end.conn], END | REPLY, end.id, 0, 0);
		send_message(&conns[end.conn], &out, NULL, 0);
	}
	_exit(0);
}

static _Noreturn void loop(int signals)
{
	struct pollfd fds[2 + MAX_CONNS + 1] = {
		{.fd = signals, .events = POLLIN},
		{.fd = LISTENER, .events = POLLIN},
	};
	struct signalfd_siginfo si;
	bool more = true; /* to reap; at first, what came before the signalfd was there */

	for (;;) {
		for (int i = 0; i < MAX_CONNS; i++) {
			fds[2 + i].fd = conns[i].fd;
			fds[2 + i].events = conns[i].full ? POLLOUT : POLLIN;
		}
		fds[2 + MAX_CONNS] = (struct pollfd){.fd = greeter ? -1 : greeting_fd(), .events = POLLIN};
		if (buffers_used) { /* give the pages back: most monitors are idle most of the time */
			madvise(in_buf, 2 * MSG_MAX, MADV_DONTNEED);
			give_back_stack();
			buffers_used = false;
		}
		if (poll(fds, 2 + MAX_CONNS + 1, more ? 0 : end.on ? 50 : -1) < 0)
			continue;
		if (fds[0].revents)
			while (read(signals, &si, sizeof(si)) > 0)
				more = true;
		if (more)
			more = reap();
		for (int i = 0; i < MAX_CONNS; i++) {
			struct conn *c = &conns[i];
			struct pollfd out = {.fd = c->fd, .events = POLLOUT};

			if (c->fd >= 0 && c->fd == fds[2 + i].fd && fds[2 + i].revents) {
				c->full = poll(&out, 1, 0) == 0;
				if (!c->full)
					receive(c);
			}
			send_exits(c);
		}
		if (fds[1].revents)
			accept_one();
		if (fds[2 + MAX_CONNS].revents && !greeter && greeting_fd() >= 0)
			greet_one();
		if (end.on)
			go_on_ending();
	}
}

/* Tries to be the last that the out-of-memory killer takes. Children get the score
 * from before, but not what protects the daemon: a unit's OOMScoreAdjust is not meant
 * for containers. */
static void protect_from_oom(void)
{
	int fd = open("/proc/self/oom_score_adj", O_RDWR | O_CLOEXEC), v = 0;
	char buf[8];
	ssize_t n;

	if (fd < 0)
		return;
	n = read(fd, buf, sizeof(buf));
	for (ssize_t i = buf[0] == '-'; i < n && buf[i] >= '0' && buf[i] <= '9'; i++)
		v = v * 10 + (buf[i] - '0');
	if (n > 0 && pwrite(fd, "-999", 4, 0) == 4)
		oom_score_before = buf[0] == '-' ? 0 : v;
	close(fd);
}

/* Blocks all signals: nothing but SIGKILL ends the monitor. */
static int set_up_signals(void)
{
	sigset_t set;

	signal(SIGCHLD, SIG_DFL); /* ignored, children would leave no status */
	sigfillset(&set);
	sigprocmask(SIG_SETMASK, &set, NULL);
	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sigaddset(&set, SIGUSR1); /* the holder's exit signal */
	return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

int main(int argc, char **argv)
{
	int listening = 0, signals;
	socklen_t len = sizeof(listening);
	struct rlimit all;

	if (argc > 2 && strcmp(argv[1], "release") == 0)
		return release(argv + 2);
	if (argc < 2 || getsockopt(LISTENER, SOL_SOCKET, SO_ACCEPTCONN, &listening, &len) < 0 || !listening) {
		static const char usage[] = "caisson-monitor is started by caissond, with a listening socket as descriptor 3\n";
		return write(2, usage, sizeof(usage) - 1) < 0 ? 3 : 2;
	}
	proc_title = argv[0];
	name_room = argv[argc - 1] + strlen(argv[argc - 1]) + 1 - argv[1];
	prctl(PR_SET_NAME, "caisson-monitor", 0, 0, 0);
	syscall(SYS_close_range, LISTENER + 1, ~0U, 0);
	fcntl(LISTENER, F_SETFD, FD_CLOEXEC);
	fcntl(LISTENER, F_SETFL, O_NONBLOCK);
	umask(022);
	if (chdir("/") < 0 || prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) < 0)
		return 4;
	if (getrlimit(RLIMIT_NOFILE, &nofile_before) == 0) {
		all = nofile_before;
		all.rlim_cur = all.rlim_max;
		setrlimit(RLIMIT_NOFILE, &all);
	}
	protect_from_oom();
	signals = set_up_signals();
	in_buf = mmap(NULL, 2 * MSG_MAX, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (signals < 0 || in_buf == MAP_FAILED)
		return 5;
	out_buf = in_buf + MSG_MAX;
	for (int i = 0; i < MAX_CONNS; i++)
		conns[i].fd = -1;
	loop(signals);
}
