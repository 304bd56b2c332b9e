/* Starting processes: what every child does first, and SPAWN. */
#define _GNU_SOURCE
#include "monitor.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { START_TIMEOUT_MS = 20000 }; /* for exec from a dead file server, say */

/* Writes what failed into the status pipe; the caller exits. */
void report_failure(int pipe, int err, const char *what, const char *detail)
{
	struct report r = {.err = err};

	strncat(strncat(r.step, what, 60), detail, sizeof(r.step) - 61);
	if (write(pipe, &r, sizeof(r)) < 0)
		_exit(126);
}

/*
 * Reads what a child says until the last writer is gone. *ready, if asked
 * for, tells whether it said that it is; *pid changes to what it names.
 */
int read_reports(int pipe, pid_t *pid, bool *ready)
{
	struct report r;
	int err = 0;
	ssize_t n;

	for (;;) {
		struct pollfd p = {.fd = pipe, .events = POLLIN};

		n = poll(&p, 1, START_TIMEOUT_MS);
		if (n < 0 && errno == EINTR)
			continue;
		if (n == 0)
			return fail(ETIMEDOUT, "start process", "");
		n = read(pipe, &r, sizeof(r));
		if (n != sizeof(r))
			return err;
		r.step[sizeof(r.step) - 1] = 0;
		if (r.err)
			err = fail(r.err, r.step, "");
		else if (r.pid)
			*pid = r.pid;
		else if (ready != NULL)
			*ready = true;
	}
}

/* A fork whose flags are clone(2)'s: the exit signal, CLONE_PARENT. */
pid_t fork_child(unsigned long flags)
{
	return syscall(SYS_clone, flags, 0, 0, 0, 0);
}

/* Undoes in a child what the monitor did to itself. */
static void reset_process(void)
{
	sigset_t none;
	char digits[8], *p = digits + sizeof(digits);
	int v = oom_score_before, fd;

	/* Past the C library, which keeps a few signals to itself: a daemon may have
	 * been started with those ignored too. All zero is SIG_DFL, no flags, no mask. */
	static const unsigned long by_default[4];

	for (int sig = 1; sig <= 64; sig++)
		syscall(SYS_rt_sigaction, sig, by_default, NULL, 8);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	setrlimit(RLIMIT_NOFILE, &nofile_before);
	if (v < 0)
		return;
	do
		*--p = '0' + v % 10;
	while (v /= 10);
	fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
	if (fd < 0 || write(fd, p, digits + sizeof(digits) - p) < 0)
		return; /* it stays hard to kill, which is not worth a failure */
	close(fd);
}

/* Makes fds the descriptors 0, 1, 2, ... All others have close-on-exec. */
static int place_fds(const int *from, int n, int *pipe)
{
	int fds[MAX_FDS];

	if (*pipe < n && (*pipe = fcntl(*pipe, F_DUPFD_CLOEXEC, n)) < 0)
		return -1;
	for (int i = 0; i < n; i++) {
		fds[i] = from[i] < n ? fcntl(from[i], F_DUPFD_CLOEXEC, n) : from[i];
		if (fds[i] < 0)
			return -1;
	}
	for (int i = 0; i < n; i++)
		if (dup2(fds[i], i) < 0)
			return -1;
	return 0;
}

struct spawn {
	const char *tag, *cwd, *pid_file;
	struct in argv, env;
	unsigned argc, envc;
};

static char **vector(char **v, struct in *strings, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		*v++ = (char *)get_string(strings, MSG_MAX);
	*v++ = NULL;
	return v;
}

static _Noreturn void run_child(struct request *rq, struct spawn *s, int pipe)
{
	char **argv = mmap(NULL, (s->argc + s->envc + 2) * sizeof(char *), PROT_READ | PROT_WRITE,
	                   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), **env;

	if (argv == MAP_FAILED) {
		report_failure(pipe, errno, "allocate", "");
		_exit(126);
	}
	env = vector(argv, &s->argv, s->argc);
	vector(env, &s->env, s->envc);
	setsid();
	reset_process();
	if (place_fds(rq->fds, rq->nfds, &pipe) < 0)
		report_failure(pipe, errno, "place descriptors", "");
	else if (chdir(*s->cwd ? s->cwd : "/") < 0)
		report_failure(pipe, errno, "chdir ", s->cwd);
	else {
		execve(argv[0], argv, env);
		report_failure(pipe, errno, "exec ", argv[0]);
	}
	_exit(127);
}

static int parse_spawn(struct request *rq, struct spawn *s)
{
	bool adopts = rq->flags & SPAWN_ADOPT;
	struct in first;

	s->tag = get_string(&rq->body, MAX_TAG);
	s->cwd = get_string(&rq->body, PATH_MAX - 1);
	s->pid_file = get_string(&rq->body, PATH_MAX - 1);
	s->argc = get_strings(&rq->body, &s->argv);
	s->envc = get_strings(&rq->body, &s->env);
	if (!at_end(&rq->body))
		return fail(EINVAL, "message", "");
	first = s->argv;
	if (s->argc == 0 || get_string(&first, MSG_MAX)[0] != '/')
		return fail(EINVAL, "program is not an absolute path", "");
	if (*s->cwd != 0 && *s->cwd != '/')
		return fail(EINVAL, "working directory is not an absolute path", "");
	if (adopts != (*s->pid_file == '/'))
		return fail(EINVAL, "pid file", "");
	return 0;
}

int do_spawn(struct request *rq)
{
	struct spawn s;
	struct record *r;
	int err = parse_spawn(rq, &s), pipe[2];
	char *pid_file = NULL;
	uint64_t start = 0;
	pid_t pid;

	if (err)
		return err;
	if (!records_have_room())
		return fail(ENOSPC, "too many records", "");
	if (!records_reserve())
		return fail(ENOMEM, "grow table", "");
	if (rq->flags & SPAWN_ADOPT) {
		pid_file = mmap(NULL, PATH_MAX, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (pid_file == MAP_FAILED)
			return fail(errno, "allocate", "");
		strcpy(pid_file, s.pid_file);
		/* An old file must not be taken for this runtime's. */
		if (unlink(pid_file) < 0 && errno != ENOENT) {
			err = fail(errno, "remove ", pid_file);
			munmap(pid_file, PATH_MAX);
			return err;
		}
	}
	if (pipe2(pipe, O_CLOEXEC) < 0) {
		err = fail(errno, "pipe", "");
	} else {
		pid = fork_child(SIGCHLD);
		if (pid == 0)
			run_child(rq, &s, pipe[1]);
		err = pid < 0 ? fail(errno, "fork", "") : 0;
		close(pipe[1]);
		if (!err)
			start = start_time(pid); /* while the child is busy */
		if (!err && (err = read_reports(pipe[0], &pid, NULL)) != 0) {
			kill(pid, SIGKILL);
			/* After a timeout it may hang: then it is reaped as an orphan. */
			waitpid(pid, NULL, err == ETIMEDOUT ? WNOHANG : 0);
		}
		close(pipe[0]);
	}
	if (err) {
		if (pid_file != NULL)
			munmap(pid_file, PATH_MAX);
		return err;
	}
	r = records_add(SPAWNED, pid, start, s.tag);
	records_watch(r, pid_file);
	put_process(rq->reply, r);
	return 0;
}
