/*
 * What the monitor is fuzzed on: the system calls that it uses, with nothing behind
 * them but the tables below. So no input can do harm, none has to wait, and the
 * kernel can refuse whatever it likes. Each call checks what a real one would
 * forgive: descriptors that are not open, signals to processes that are not the
 * monitor's, a wait without an end.
 *
 * Included before the monitor's sources, whose calls the macros at the end redirect.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <poll.h>
#include <sanitizer/asan_interface.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "../monitor.h"

/* Small, so that short inputs reach them. A path and a record must fit into a message. */
#define MSG_MAX 5120
#define MAX_RECORDS 24
#define MAX_KEPT 32

#define CHECK(ok, ...) ((ok) ? (void)0 : (fprintf(stderr, "fuzz: " __VA_ARGS__), fputs("\n", stderr), abort()))

enum { SELF = 1000, FIRST_CHILD = 2000, MONITORS_SOCKET = 3, MAX_OPEN = 400, MAX_PROCESSES = 64, MAX_MAPPINGS = 128 };
enum kind { CLOSED, PLAIN, LISTENING, FIFO, CONNECTION, STATUS_PIPE, SIGNALS };

static struct kernel {
	struct file {
		enum kind kind;
		bool full, hung_up;
		unsigned at; /* of a directory: what was read */
	} files[MAX_OPEN];
	struct process {
		pid_t pid; /* 0: free */
		bool zombie, clone_child;
		int status;
	} processes[MAX_PROCESSES];
	struct mapping {
		void *base; /* from malloc, to be guarded on both sides */
		size_t len;
		bool of_child;
	} mappings[MAX_MAPPINGS];
	pid_t last_pid;
	bool signalled; /* the signalfd can be read */

	const uint8_t *content; /* of every file */
	size_t content_len;
	unsigned fail_in; /* calls that may fail, until one does; 0: none */
	int fail_with;
	unsigned waiting, clients; /* to be accepted, on the monitor's socket and on others */
	uid_t peer;

	const uint8_t *packet; /* to be received from packet_fd */
	size_t packet_len;
	int packet_fd;
	unsigned packet_fds, packet_flags;
	enum kind packet_kind; /* of its descriptors */
	bool owed;            /* an answer, on packet_fd */

	struct report reports[8]; /* in the status pipe */
	unsigned n_reports;
	int pipe[2];
	struct process *child, *grandchild; /* child is played now, see play_child */
} k;
static jmp_buf monitor_end, child_end;

static void play_child(bool holder);
static int next_event(struct pollfd *fds);

static int may_fail(void)
{
	if (k.fail_in == 0 || --k.fail_in > 0)
		return 0;
	errno = k.fail_with;
	return -1;
}

static int harmless(int first, ...)
{
	(void)first;
	return may_fail();
}

/* Descriptors. */

static struct file *file(int fd)
{
	CHECK(fd >= 0 && fd < MAX_OPEN && k.files[fd].kind != CLOSED, "descriptor %d is not open", fd);
	return &k.files[fd];
}

static int new_fd(enum kind kind, int least)
{
	for (int fd = least; fd < MAX_OPEN; fd++)
		if (k.files[fd].kind == CLOSED) {
			k.files[fd] = (struct file){.kind = kind};
			return fd;
		}
	errno = EMFILE;
	return -1;
}

static int fuzz_close(int fd)
{
	file(fd)->kind = CLOSED;
	k.owed = k.owed && fd != k.packet_fd;
	return 0;
}

static int fuzz_open(const char *path, int flags)
{
	static const char fds[] = "/proc/self/fd/";
	bool again = strncmp(path, fds, strlen(fds)) == 0;

	(void)flags;
	CHECK(!again || file(atoi(path + strlen(fds)))->kind == FIFO, "%s is opened", path);
	return may_fail() < 0 ? -1 : new_fd(again ? FIFO : PLAIN, 0);
}

static int fuzz_openat(int dir, const char *path, int flags)
{
	file(dir);
	return fuzz_open(path, flags);
}

static int fuzz_fstat(int fd, struct stat *st)
{
	*st = (struct stat){.st_mode = file(fd)->kind == FIFO ? S_IFIFO : S_IFREG};
	return may_fail();
}

static int fuzz_fcntl(int fd, int cmd, ...)
{
	struct file *f = file(fd);
	va_list args;
	int arg;

	va_start(args, cmd);
	arg = cmd == F_GETFL ? 0 : va_arg(args, int);
	va_end(args);
	if (cmd != F_DUPFD_CLOEXEC)
		return 0;
	return may_fail() < 0 ? -1 : new_fd(f->kind, arg);
}

static int fuzz_dup2(int from, int to)
{
	if (may_fail() < 0)
		return -1;
	k.files[to] = *file(from);
	return to;
}

static int fuzz_pipe2(int fds[2], int flags)
{
	(void)flags;
	if (may_fail() < 0 || (fds[0] = new_fd(STATUS_PIPE, 0)) < 0)
		return -1;
	if ((fds[1] = new_fd(STATUS_PIPE, 0)) < 0)
		return fuzz_close(fds[0]), -1;
	memcpy(k.pipe, fds, sizeof(k.pipe));
	k.n_reports = 0;
	return 0;
}

static ssize_t fuzz_read(int fd, void *buf, size_t n)
{
	switch (file(fd)->kind) {
	case STATUS_PIPE:
		CHECK(n == sizeof(struct report), "read of %zu bytes from the status pipe", n);
		if (k.n_reports == 0)
			return 0;
		memcpy(buf, k.reports, n);
		memmove(k.reports, k.reports + 1, --k.n_reports * n);
		return n;
	case SIGNALS:
		if (!k.signalled)
			return errno = EAGAIN, -1;
		k.signalled = false;
		memset(buf, 0, n);
		return n;
	default:
		if (may_fail() < 0)
			return -1;
		n = n < k.content_len ? n : k.content_len;
		memcpy(buf, k.content, n);
		return n;
	}
}

static ssize_t fuzz_write(int fd, const void *buf, size_t n)
{
	if (may_fail() < 0)
		return -1;
	if (file(fd)->kind == STATUS_PIPE) {
		CHECK(n == sizeof(struct report) && k.n_reports < 8, "%zu bytes in the status pipe", n);
		memcpy(&k.reports[k.n_reports++], buf, n);
	}
	return n;
}

static ssize_t fuzz_pwrite(int fd, const void *buf, size_t n, off_t at)
{
	(void)at;
	return fuzz_write(fd, buf, n);
}

static int fuzz_signalfd(int fd, const sigset_t *set, int flags)
{
	(void)fd, (void)set, (void)flags;
	return new_fd(SIGNALS, 0);
}

/* Sockets. */

static int fuzz_getsockopt(int fd, int level, int option, void *value, socklen_t *len)
{
	(void)level, (void)len;
	file(fd);
	if (option == SO_PEERCRED)
		*(struct ucred *)value = (struct ucred){.uid = k.peer};
	else
		*(int *)value = 1; /* SO_ACCEPTCONN */
	return may_fail();
}

static int fuzz_accept4(int fd, struct sockaddr *addr, socklen_t *len, int flags)
{
	unsigned *queue = fd == MONITORS_SOCKET ? &k.waiting : &k.clients;

	(void)addr, (void)len, (void)flags;
	if (file(fd)->kind != LISTENING)
		return errno = ENOTSOCK, -1;
	if (*queue == 0)
		return errno = EAGAIN, -1;
	--*queue;
	return may_fail() < 0 ? -1 : new_fd(CONNECTION, 0);
}

static ssize_t fuzz_send(int fd, const void *buf, size_t n, int flags)
{
	(void)buf, (void)flags;
	file(fd);
	return may_fail() < 0 ? -1 : (ssize_t)n;
}

static ssize_t fuzz_recvmsg(int fd, struct msghdr *msg, int flags)
{
	struct cmsghdr *cm = msg->msg_control;
	struct iovec *iov = msg->msg_iov;
	struct file *f = file(fd);
	unsigned n = 0;

	(void)flags;
	msg->msg_controllen = msg->msg_flags = 0;
	if (may_fail() < 0)
		return -1;
	if (fd != k.packet_fd)
		return f->hung_up ? 0 : (errno = EAGAIN, -1);
	for (int new; n < k.packet_fds && (new = new_fd(k.packet_kind, 0)) >= 0; n++)
		memcpy(CMSG_DATA(cm) + n * sizeof(int), &new, sizeof(int));
	msg->msg_flags = k.packet_flags | (n < k.packet_fds ? MSG_CTRUNC : 0);
	if (n > 0) {
		msg->msg_controllen = CMSG_SPACE(n * sizeof(int));
		*cm = (struct cmsghdr){.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(n * sizeof(int))};
	}
	/* Nothing behind the message may be looked at. */
	ASAN_UNPOISON_MEMORY_REGION(iov->iov_base, iov->iov_len);
	memcpy(iov->iov_base, k.packet, k.packet_len);
	ASAN_POISON_MEMORY_REGION((uint8_t *)iov->iov_base + k.packet_len, iov->iov_len - k.packet_len);
	k.owed = true;
	return k.packet_len;
}

static ssize_t fuzz_sendmsg(int fd, const struct msghdr *msg, int flags)
{
	const struct iovec *iov = msg->msg_iov;
	struct in in = {.p = iov->iov_base, .end = (uint8_t *)iov->iov_base + iov->iov_len};
	unsigned type, nfds;

	(void)flags;
	CHECK(file(fd)->kind == CONNECTION, "a message to descriptor %d", fd);
	get(&in, 2);
	type = get(&in, 2);
	get(&in, 8);
	nfds = get(&in, 2);
	CHECK(!in.bad && iov->iov_len <= MSG_MAX, "a message of %zu bytes", iov->iov_len);
	CHECK(nfds * sizeof(int) <= msg->msg_controllen, "%u descriptors in %zu bytes", nfds, msg->msg_controllen);
	for (unsigned i = 0; i < nfds; i++) {
		int sent;

		memcpy(&sent, CMSG_DATA((struct cmsghdr *)msg->msg_control) + i * sizeof(int), sizeof(int));
		file(sent);
	}
	for (get(&in, 2); in.p < in.end;) /* for the sanitizer: all of it */
		get(&in, 1);
	if (type != EXIT && fd == k.packet_fd)
		k.owed = false;
	if (may_fail() < 0)
		return -1;
	if (file(fd)->hung_up)
		return errno = EPIPE, -1;
	return file(fd)->full ? (errno = EAGAIN, -1) : (ssize_t)iov->iov_len;
}

static int fuzz_poll(struct pollfd *p, nfds_t n, int timeout)
{
	struct file *f = n > 1 ? NULL : file(p->fd);

	(void)timeout;
	if (may_fail() < 0)
		return f != NULL && f->kind == STATUS_PIPE ? 0 : -1;
	if (f == NULL)
		return next_event(p);
	switch (p->events) {
	case POLLRDHUP: return f->hung_up;
	case POLLOUT: return !f->full;
	default: return 1;
	}
}

/* Processes. */

static struct process *new_process(bool clone_child)
{
	for (struct process *p = k.processes; p < k.processes + MAX_PROCESSES; p++)
		if (p->pid == 0) {
			*p = (struct process){.pid = ++k.last_pid, .clone_child = clone_child};
			return p;
		}
	errno = EAGAIN;
	return NULL;
}

static void end_process(struct process *p, int status)
{
	if (p->zombie)
		return;
	p->zombie = k.signalled = true;
	p->status = status;
}

static pid_t fuzz_clone(unsigned long flags)
{
	bool holder = (flags & 0xff) != SIGCHLD;
	struct process *p;

	if (may_fail() < 0)
		return -1;
	if (k.grandchild != NULL) /* it is played as the child, that far */
		return 0;
	p = new_process(holder);
	if (p == NULL)
		return -1;
	if (k.child != NULL) {
		k.grandchild = p;
		return p->pid;
	}
	k.child = p;
	play_child(holder);
	if (k.grandchild != NULL) {
		k.child = k.grandchild;
		play_child(holder);
	}
	k.child = k.grandchild = NULL;
	return p->pid;
}

static struct process *find_child(pid_t pid)
{
	for (struct process *p = k.processes; p < k.processes + MAX_PROCESSES; p++)
		if (pid > 0 && p->pid == pid)
			return p;
	return NULL;
}

static int fuzz_kill(pid_t pid, int sig)
{
	struct process *p = find_child(pid);

	CHECK(p != NULL, "signal %d to %d, which is no child", sig, pid);
	if (sig == SIGKILL)
		end_process(p, sig);
	return 0;
}

static pid_t fuzz_wait4(pid_t pid, int *status, int options, struct rusage *usage)
{
	struct process *p = find_child(pid);

	if (p == NULL || (p->clone_child && !(options & __WALL)))
		return errno = ECHILD, -1;
	CHECK(p->zombie || (options & WNOHANG), "a wait for %d, which runs", pid);
	if (!p->zombie)
		return 0;
	p->pid = 0;
	if (status != NULL)
		*status = p->status;
	if (usage != NULL)
		*usage = (struct rusage){.ru_maxrss = 1};
	return pid;
}

static pid_t fuzz_waitpid(pid_t pid, int *status, int options)
{
	return fuzz_wait4(pid, status, options, NULL);
}

static int fuzz_waitid(idtype_t type, id_t id, siginfo_t *si, int options)
{
	bool any = false;

	CHECK((options & (WNOHANG | WNOWAIT)) == (WNOHANG | WNOWAIT), "waitid with %#x", options);
	for (struct process *p = k.processes; p < k.processes + MAX_PROCESSES; p++)
		if (p->pid != 0 && !p->clone_child && (type == P_ALL || p->pid == (pid_t)id)) {
			any = true;
			if (p->zombie) {
				si->si_pid = p->pid;
				return 0;
			}
		}
	return any ? 0 : (errno = ECHILD, -1);
}

/* The process that calls it is gone. What the holder forked and nobody heard of dies with the monitor. */
static _Noreturn void fuzz_exit(int status)
{
	if (k.child != NULL) {
		end_process(k.child, status << 8);
		longjmp(child_end, 1);
	}
	for (struct process *p = k.processes; p < k.processes + MAX_PROCESSES; p++)
		CHECK(p->pid == 0 || p->clone_child, "the monitor ends before %d", p->pid);
	longjmp(monitor_end, 1);
}

static int fuzz_execve(const char *path, char **argv, char **env)
{
	size_t n = strlen(path); /* for the sanitizer: all of it */

	while (*argv != NULL)
		n += strlen(*argv++);
	while (*env != NULL)
		n += strlen(*env++);
	CHECK(n < MSG_MAX, "%zu bytes of arguments", n);
	if (may_fail() < 0)
		return -1;
	longjmp(child_end, 1);
}

/* The holder has got to its end, which is to sleep. */
static int fuzz_sigwaitinfo(const sigset_t *set, siginfo_t *si)
{
	(void)set, (void)si;
	longjmp(child_end, 1);
}

static int fuzz_prctl(int option, ...)
{
	va_list args;
	int arg;

	va_start(args, option);
	arg = va_arg(args, int);
	va_end(args);
	if (option == PR_CAPBSET_DROP)
		return arg <= 40 ? 0 : (errno = EINVAL, -1);
	return may_fail();
}

/* Memory. */

static struct mapping *mapping(const void *base)
{
	for (struct mapping *m = k.mappings; m < k.mappings + MAX_MAPPINGS; m++)
		if (m->base == base)
			return m;
	CHECK(false, "no mapping begins at %p", base);
	return NULL;
}

static void *fuzz_mmap(void *at, size_t len, int prot, int flags, int fd, off_t offset)
{
	struct mapping *m = mapping(NULL);

	(void)at, (void)prot, (void)flags, (void)fd, (void)offset;
	if (may_fail() < 0)
		return MAP_FAILED;
	*m = (struct mapping){calloc(1, len), len, k.child != NULL};
	return m->base;
}

static int fuzz_munmap(void *base, size_t len)
{
	struct mapping *m = mapping(base);

	CHECK(m->len == len, "%zu bytes of %zu are unmapped", len, m->len);
	if (k.child == NULL || m->of_child) {
		free(base);
		m->base = NULL;
	}
	return 0;
}

/* Always moves, so that what points to the old place is found. */
static void *fuzz_mremap(void *base, size_t old, size_t len, int flags)
{
	struct mapping *m = mapping(base);

	(void)flags;
	CHECK(m->len == old, "%zu bytes of %zu are moved", old, m->len);
	if (may_fail() < 0)
		return MAP_FAILED;
	*m = (struct mapping){calloc(1, len), len, m->of_child};
	memcpy(m->base, base, old < len ? old : len);
	free(base);
	return m->base;
}

static void unmap_all(bool of_child)
{
	for (struct mapping *m = k.mappings; m < k.mappings + MAX_MAPPINGS; m++)
		if (m->base != NULL && m->of_child >= of_child) {
			free(m->base);
			m->base = NULL;
		}
}

/* The rest. */

static long list_processes(int dir, uint8_t *buf, size_t size)
{
	struct file *f = file(dir);
	size_t n = 0;

	for (; f->at < MAX_PROCESSES && n + 32 <= size; f->at++, n += 32) {
		memset(buf + n, 0, 32); /* inode, offset, length, type, name */
		buf[n + 16] = 32;
		if (k.processes[f->at].pid != 0)
			sprintf((char *)buf + n + 19, "%d", k.processes[f->at].pid);
		else
			strcpy((char *)buf + n + 19, "..");
	}
	return n;
}

static long fuzz_syscall(long number, ...)
{
	long result;
	va_list args;
	int first;

	va_start(args, number);
	switch (number) {
	case SYS_clone:
		result = fuzz_clone(va_arg(args, unsigned long));
		break;
	case SYS_getdents64:
		first = va_arg(args, int);
		result = list_processes(first, va_arg(args, void *), 2048);
		break;
	case SYS_openat2:
		first = va_arg(args, int);
		result = fuzz_openat(first, va_arg(args, const char *), 0);
		break;
	case SYS_rt_sigaction: /* of each signal */
		result = 0;
		break;
	default: /* the child's descriptors come back anyway */
		result = may_fail();
	}
	va_end(args);
	return result;
}

static int fuzz_getrlimit(int resource, struct rlimit *limit)
{
	(void)resource;
	*limit = (struct rlimit){.rlim_cur = 4096, .rlim_max = 4096};
	return may_fail();
}

static int fuzz_clock_gettime(clockid_t clock, struct timespec *now)
{
	(void)clock;
	*now = (struct timespec){.tv_sec = 1};
	return 0;
}

#define accept4 fuzz_accept4
#define chdir(...) harmless(0, __VA_ARGS__)
#define chroot(...) harmless(0, __VA_ARGS__)
#define clock_gettime fuzz_clock_gettime
#define close fuzz_close
#define dup2 fuzz_dup2
#define execve fuzz_execve
#define _exit fuzz_exit
#define fcntl fuzz_fcntl
#define fstat fuzz_fstat
#define getpid() SELF
#define getrlimit(...) fuzz_getrlimit(__VA_ARGS__)
#define getsockopt fuzz_getsockopt
#define kill fuzz_kill
#define madvise(...) harmless(0, __VA_ARGS__)
#define mmap fuzz_mmap
#define mount(...) harmless(0, __VA_ARGS__)
#define mremap fuzz_mremap
#define munmap fuzz_munmap
#define open fuzz_open
#define openat fuzz_openat
#define pipe2 fuzz_pipe2
#define poll fuzz_poll
#define prctl fuzz_prctl
#define pwrite fuzz_pwrite
#define read fuzz_read
#define recvmsg fuzz_recvmsg
#define send fuzz_send
#define sendmsg fuzz_sendmsg
#define setgroups(...) harmless(0, __VA_ARGS__)
#define sethostname(...) harmless(0, __VA_ARGS__)
#define setns(...) harmless(0, __VA_ARGS__)
#define setresgid(...) harmless(0, __VA_ARGS__)
#define setresuid(...) harmless(0, __VA_ARGS__)
#define setrlimit(...) harmless(0, __VA_ARGS__)
#define setsid() harmless(0)
#define setsockopt(...) harmless(0, __VA_ARGS__)
#define signal(...) harmless(0)
#define signalfd fuzz_signalfd
#define sigprocmask(...) harmless(0, __VA_ARGS__)
#define sigwaitinfo fuzz_sigwaitinfo
#define syscall fuzz_syscall
#define umask(...) harmless(0, __VA_ARGS__)
#define umount2(...) harmless(0, __VA_ARGS__)
#define unlink(...) harmless(0, __VA_ARGS__)
#define unshare(...) harmless(0, __VA_ARGS__)
#define wait4 fuzz_wait4
#define waitid fuzz_waitid
#define waitpid fuzz_waitpid
#define write fuzz_write
