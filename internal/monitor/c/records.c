/*
 * Records of the monitor's children, and reaping.
 *
 * A process that an OCI runtime leaves behind becomes the monitor's child
 * when the runtime exits, and may itself be dead before that exit is seen. So
 * while a runtime with SPAWN_ADOPT runs, no zombie is reaped that is not in
 * the table: it may turn out to be the one in the pid file. When none runs,
 * everything is reaped, and what is not in the table is forgotten at once.
 *
 * The holder is forked with an exit signal other than SIGCHLD, which makes it
 * a "clone child": waits without __WALL do not see it, so that "has the
 * sandbox any other process" is one system call.
 */
#define _GNU_SOURCE
#include "monitor.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { REAP_AT_ONCE = 256 }; /* then the connections have a turn */

static struct table records = {.elem = sizeof(struct record)}; /* by serial */
static uint64_t last_serial, last_exit;
static unsigned n_runtimes; /* running, with a pid file to be read at the end */

static struct record *at(size_t i)
{
	return table_at(&records, i);
}

bool records_have_room(void)
{
	return records.n < MAX_RECORDS;
}

void records_unmap(void)
{
	table_free(&records);
}

/* Room for one more record and for all that may be adopted, so that reaping never allocates. */
bool records_reserve(void)
{
	return table_reserve(&records, records.n + n_runtimes + 2);
}

/* Field 22 of /proc/<pid>/stat. */
uint64_t start_time(pid_t pid)
{
	char path[32] = "/proc/", buf[512], digits[12], *p = digits + sizeof(digits);
	uint64_t v = 0;
	ssize_t n;
	int fd;

	*--p = 0;
	do
		*--p = '0' + pid % 10;
	while (pid /= 10);
	strcat(strcat(path, p), "/stat");
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return 0;
	n = read(fd, buf, sizeof(buf) - 1);
	close(fd);
	if (n <= 0)
		return 0;
	buf[n] = 0;
	p = strrchr(buf, ')'); /* the name before it may hold anything */
	for (int field = 2; p != NULL && field < 22; field++)
		p = strchr(p + 1, ' ');
	for (; p != NULL && p[1] >= '0' && p[1] <= '9'; p++)
		v = v * 10 + (p[1] - '0');
	return v;
}

struct record *records_add(uint8_t kind, pid_t pid, uint64_t start, const char *tag)
{
	struct record *r = table_add(&records);

	r->serial = ++last_serial;
	r->kind = kind;
	r->pid = pid;
	r->start = start;
	strcpy(r->tag, tag);
	return r;
}

void records_watch(struct record *r, char *pid_file)
{
	r->pid_file = pid_file;
	n_runtimes += pid_file != NULL;
}

static struct record *find_serial(uint64_t serial)
{
	for (size_t i = 0; i < records.n; i++)
		if (at(i)->serial == serial)
			return at(i);
	return NULL;
}

static struct record *find_running(pid_t pid)
{
	for (size_t i = 0; i < records.n; i++)
		if (at(i)->pid == pid && !at(i)->exited)
			return at(i);
	return NULL;
}

void put_process(struct out *out, const struct record *r)
{
	put(out, r->serial, 8);
	put(out, r->start, 8);
	put(out, r->pid, 4);
	put(out, 0, 4);
}

enum { RECORD_MAX = 24 + 8 + 48 + 24 + 2 + MAX_TAG + 1 };

void put_record(struct out *out, const struct record *r)
{
	put_process(out, r);
	put(out, r->kind, 1);
	put(out, r->exited, 1);
	put(out, 0, 2);
	put(out, r->status, 4);
	put(out, r->exit_order, 8);
	put(out, r->end_ns, 8);
	put(out, r->user_us, 8);
	put(out, r->system_us, 8);
	put(out, r->max_rss_kib, 8);
	put(out, r->adopted, 8);
	put(out, r->adopted_start, 8);
	put(out, r->adopted_pid, 4);
	put(out, 0, 4);
	put_string(out, r->tag);
}

const struct record *next_exit(uint64_t order)
{
	const struct record *next = NULL;

	for (size_t i = 0; i < records.n; i++)
		if (at(i)->exited && at(i)->exit_order >= order &&
		    (next == NULL || at(i)->exit_order < next->exit_order))
			next = at(i);
	return next;
}

pid_t holder_pid(void)
{
	for (size_t i = 0; i < records.n; i++)
		if (at(i)->kind == HOLDER && !at(i)->exited)
			return at(i)->pid;
	return 0;
}

/* The pid that an OCI runtime wrote; 0 if there is no sensible one. */
static pid_t read_pid_file(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	char buf[16];
	long pid = 0;
	ssize_t n, i = 0;

	if (fd < 0)
		return 0;
	n = read(fd, buf, sizeof(buf));
	close(fd);
	for (; i < n && buf[i] >= '0' && buf[i] <= '9' && pid < INT_MAX / 10; i++)
		pid = pid * 10 + (buf[i] - '0');
	return i == n || (i > 0 && buf[i] == '\n') ? pid : 0;
}

static uint64_t microseconds(struct timeval t)
{
	return (uint64_t)t.tv_sec * 1000000 + t.tv_usec;
}

static void note_exit(struct record *r, int status, const struct rusage *usage)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	r->exited = true;
	r->exit_order = ++last_exit;
	r->status = status;
	r->end_ns = (uint64_t)now.tv_sec * 1000000000 + now.tv_nsec;
	r->user_us = microseconds(usage->ru_utime);
	r->system_us = microseconds(usage->ru_stime);
	r->max_rss_kib = usage->ru_maxrss;
}

/* A runtime with a pid file was reaped; r stays valid, there is room. */
static void adopt(struct record *r)
{
	siginfo_t si;
	pid_t pid = 0;

	if (WIFEXITED(r->status) && WEXITSTATUS(r->status) == 0)
		pid = read_pid_file(r->pid_file);
	munmap(r->pid_file, PATH_MAX);
	r->pid_file = NULL;
	n_runtimes--;
	/* Only what is a child, and so cannot be reaped and its pid used again. */
	if (pid > 0 && find_running(pid) == NULL &&
	    waitid(P_PID, pid, &si, WEXITED | WNOHANG | WNOWAIT) == 0) {
		struct record *a = records_add(ADOPTED, pid, start_time(pid), r->tag);

		r->adopted = a->serial;
		r->adopted_start = a->start;
		r->adopted_pid = pid;
	}
}

/* Reaps a child known to be a zombie, or nothing; true if it was one. */
static bool reap_record(struct record *r)
{
	struct rusage usage;
	int status;

	if (r->exited || wait4(r->pid, &status, WNOHANG | __WALL, &usage) != r->pid)
		return false;
	note_exit(r, status, &usage);
	if (r->pid_file != NULL)
		adopt(r);
	return true;
}

bool reap(void)
{
	siginfo_t si;
	struct record *r;

	/* Runtimes first: their exits precede those of what they leave behind. */
	for (size_t i = 0, n = records.n; n_runtimes > 0 && i < n; i++)
		if (at(i)->pid_file != NULL)
			reap_record(at(i));
	for (size_t i = 0; i < records.n; i++)
		if (n_runtimes > 0 || at(i)->kind == HOLDER)
			reap_record(at(i));
	if (n_runtimes > 0)
		return false;
	for (int i = 0; i < REAP_AT_ONCE; i++) {
		si.si_pid = 0;
		if (waitid(P_ALL, 0, &si, WEXITED | WNOHANG | WNOWAIT) != 0 || si.si_pid == 0)
			return false;
		r = find_running(si.si_pid);
		if (r != NULL)
			reap_record(r);
		else
			waitpid(si.si_pid, NULL, WNOHANG);
	}
	return true;
}

bool only_holder_left(void)
{
	siginfo_t si;

	for (int i = 0; i < 100 && reap(); i++)
		;
	return waitid(P_ALL, 0, &si, WEXITED | WNOHANG | WNOWAIT) != 0 && errno == ECHILD;
}

/* The parent of a process, from /proc/<pid>/status; 0 if it is gone. */
static long parent_of(int proc, const char *pid)
{
	char path[32], buf[512], *p;
	long v = 0;
	ssize_t n;
	int fd;

	strcat(strcpy(path, pid), "/status");
	fd = openat(proc, path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return 0;
	n = read(fd, buf, sizeof(buf) - 1);
	close(fd);
	buf[n > 0 ? n : 0] = 0;
	p = strstr(buf, "\nPPid:\t"); /* a name cannot hold a raw newline here */
	for (p = p ? p + 7 : buf; p[0] >= '0' && p[0] <= '9' && v < INT_MAX / 10; p++)
		v = v * 10 + (p[0] - '0');
	return v;
}

void kill_others(void)
{
	struct dirent64 {
		uint64_t ino, off;
		uint16_t len;
		uint8_t type;
		char name[];
	} *d;
	_Alignas(struct dirent64) char buf[2048];
	int proc = open("/proc", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	long n, pid, self = getpid(), holder = holder_pid();

	/* Only children are killed, and those keep their pids until reaped. */
	while (proc >= 0 && (n = syscall(SYS_getdents64, proc, buf, sizeof(buf))) > 0)
		for (long i = 0; i < n; i += d->len) {
			d = (struct dirent64 *)(buf + i);
			pid = 0;
			for (const char *c = d->name; *c >= '0' && *c <= '9'; c++)
				pid = pid * 10 + (*c - '0');
			if (pid > 0 && pid != holder && strlen(d->name) < 16 &&
			    parent_of(proc, d->name) == self)
				kill(pid, SIGKILL);
		}
	if (proc >= 0)
		close(proc);
}

int do_signal(struct request *rq)
{
	uint64_t serial = get(&rq->body, 8);
	uint32_t sig = get(&rq->body, 4);
	bool once = rq->flags & SIGNAL_ONCE;
	uint64_t token = once ? get(&rq->body, 8) : 0;
	struct record *r;

	if (!at_end(&rq->body) || sig > 64)
		return fail(EINVAL, "message", "");
	r = find_serial(serial);
	if (r == NULL || r->exited)
		return fail(ESRCH, "no such process", "");
	if (once && token == r->signal_token)
		return 0;
	if (kill(r->pid, sig) < 0)
		return fail(errno, "kill", "");
	if (once)
		r->signal_token = token;
	return 0;
}

int do_list(struct request *rq)
{
	uint64_t after = get(&rq->body, 8);
	size_t count_at = rq->reply->n;
	unsigned n = 0;

	if (!at_end(&rq->body))
		return fail(EINVAL, "message", "");
	rq->reply->n += 2;
	for (size_t i = 0; i < records.n; i++) {
		if (at(i)->serial <= after)
			continue;
		if (put_room(rq->reply) < RECORD_MAX) {
			rq->reply_flags |= MORE;
			break;
		}
		put_record(rq->reply, at(i));
		n++;
	}
	put_at(rq->reply, count_at, n, 2);
	return 0;
}

int do_ack(struct request *rq)
{
	uint64_t serial = get(&rq->body, 8);
	struct record *r;

	if (!at_end(&rq->body))
		return fail(EINVAL, "message", "");
	r = find_serial(serial);
	if (r == NULL)
		return fail(ENOENT, "no such record", "");
	if (!r->exited)
		return fail(EBUSY, "process runs", "");
	table_del(&records, ((unsigned char *)r - records.base) / records.elem);
	return 0;
}
