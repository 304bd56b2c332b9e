/*
 * HOLD: the process that keeps a sandbox's namespaces open. It is a fork of
 * the monitor that never executes anything, so the two share their pages, and
 * it gives up every descriptor and privilege before it reports ready.
 */
#define _GNU_SOURCE
#include "monitor.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* From Linux's headers, which musl-gcc does not look for. */
struct open_how_v0 {
	uint64_t flags, mode, resolve;
};
struct cap_header {
	uint32_t version;
	int pid;
};
struct filter_step { /* sock_filter */
	uint16_t code;
	uint8_t if_true, if_false;
	uint32_t k;
};
struct filter { /* sock_fprog */
	unsigned short n;
	struct filter_step *steps;
};
struct filter_data { /* seccomp_data */
	int nr;
	uint32_t arch;
};
enum { FILTER_LOAD = 0x20, FILTER_JUMP_IF_EQUAL = 0x15, FILTER_RETURN = 0x06 };
#define FILTER_ALLOW 0x7fff0000U
#define FILTER_KILL_PROCESS 0x80000000U
#if defined(__x86_64__)
#define AUDIT_ARCH_ 0xc000003eU
#elif defined(__aarch64__)
#define AUDIT_ARCH_ 0xc00000b7U
#elif defined(__riscv) && __riscv_xlen == 64
#define AUDIT_ARCH_ 0xc00000f3U
#else
#error "which AUDIT_ARCH is this? See linux/audit.h"
#endif
enum {
	RESOLVE_NO_MAGICLINKS_ = 2,
	RESOLVE_NO_SYMLINKS_ = 4,
	RESOLVE_BENEATH_ = 8,
	CAP_VERSION_3 = 0x20080522,
	/* Not SIGCHLD: waits without __WALL then skip the holder, see records.c. */
	HOLDER_EXIT_SIGNAL = SIGUSR1,
};

struct hold {
	const char *hostname;
	struct in sysctls;
	unsigned n_sysctls;
};

/* No empty, "." or ".." components; the kernel checks again that it stays below /proc/sys. */
static bool is_sysctl_key(const char *key)
{
	const char *p = key;

	for (size_t len; *p != 0; p += len + (p[len] == '/')) {
		len = strcspn(p, "/");
		if (len == 0 || strncmp(p, ".", len) == 0 || strncmp(p, "..", len) == 0)
			return false;
		if (p[len] == '/' && p[len + 1] == 0)
			return false;
	}
	return *key != 0;
}

static int write_sysctl(const char *key, const char *value)
{
	struct open_how_v0 how = {
		.flags = O_WRONLY | O_CLOEXEC,
		.resolve = RESOLVE_BENEATH_ | RESOLVE_NO_SYMLINKS_ | RESOLVE_NO_MAGICLINKS_,
	};
	int dir = open("/proc/sys", O_PATH | O_DIRECTORY | O_CLOEXEC);
	int fd, err = 0;

	if (dir < 0)
		return errno;
	fd = syscall(SYS_openat2, dir, key, &how, sizeof(how));
	if (fd < 0)
		return errno;
	if (write(fd, value, strlen(value)) < 0)
		err = errno;
	close(fd);
	close(dir);
	return err;
}

/* After joining a user namespace: be its root, if it has one. */
static int become_root(void)
{
	if (setgroups(0, NULL) < 0 && errno != EPERM)
		return -1;
	if (setresgid(0, 0, 0) < 0 && errno != EINVAL)
		return -1;
	return setresuid(0, 0, 0) < 0 && errno != EINVAL ? -1 : 0;
}

/*
 * Containers see pid 1 of a shared pid namespace, and with CAP_SYS_PTRACE its
 * /proc/1/root and /proc/1/ns/mnt as well: these must not be the host's. In its
 * own mount namespace it has an empty root, and nothing else is mounted there.
 */
static bool leave_files(void)
{
	const unsigned long flags = MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC;

	if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
	    mount("caisson-holder", "/proc", "tmpfs", flags, "size=4k,nr_inodes=2,mode=0555") < 0 || chdir("/proc") < 0)
		return false;
	/* Where the root cannot be exchanged, as on an initramfs, "." is not the old
	 * root but the new one, which then has no way up. */
	if (syscall(SYS_pivot_root, ".", ".") < 0 && errno != EINVAL)
		return false;
	return umount2(".", MNT_DETACH) == 0 && chroot(".") == 0 && chdir("/") == 0;
}

/* Enters and makes the namespaces; true or a failure reported. */
static bool enter(const struct request *rq, struct hold *h, int pipe)
{
	int i = 0, new = 0, err;

	if (rq->flags & HOLD_USER) {
		if (setns(rq->fds[i++], CLONE_NEWUSER) < 0)
			return report_failure(pipe, errno, "setns user", ""), false;
		if (become_root() < 0)
			return report_failure(pipe, errno, "become root of user namespace", ""), false;
	}
	if ((rq->flags & HOLD_NET) && setns(rq->fds[i], CLONE_NEWNET) < 0)
		return report_failure(pipe, errno, "setns net", ""), false;
	if (rq->flags & HOLD_NEW_IPC)
		new |= CLONE_NEWIPC;
	if (rq->flags & HOLD_NEW_UTS)
		new |= CLONE_NEWUTS;
	if (rq->flags & HOLD_NEW_PID)
		new |= CLONE_NEWPID | CLONE_NEWNS;
	if (new && unshare(new) < 0)
		return report_failure(pipe, errno, "unshare", ""), false;
	if (*h->hostname && sethostname(h->hostname, strlen(h->hostname)) < 0)
		return report_failure(pipe, errno, "sethostname", ""), false;
	for (unsigned n = 0; n < h->n_sysctls; n++) {
		const char *key = get_string(&h->sysctls, MSG_MAX);

		err = write_sysctl(key, get_string(&h->sysctls, MSG_MAX));
		if (err)
			return report_failure(pipe, err, "sysctl ", key), false;
	}
	if ((rq->flags & HOLD_NEW_PID) && !leave_files())
		return report_failure(pipe, errno, "leave the host's files", ""), false;
	return true;
}

/* From here on the process can report, wait, reap and exit; anything else kills it. */
static bool allow_little(void)
{
	static const int calls[] = {SYS_rt_sigtimedwait, SYS_wait4, SYS_write, SYS_close, SYS_exit_group, SYS_restart_syscall};
	enum { N = sizeof(calls) / sizeof(calls[0]) };
	struct filter_step steps[N + 5] = {
		{FILTER_LOAD, 0, 0, offsetof(struct filter_data, arch)},
		{FILTER_JUMP_IF_EQUAL, 0, N + 1, AUDIT_ARCH_},
		{FILTER_LOAD, 0, 0, offsetof(struct filter_data, nr)},
	};
	struct filter filter = {N + 5, steps};

	for (int i = 0; i < N; i++)
		steps[3 + i] = (struct filter_step){FILTER_JUMP_IF_EQUAL, N - i, 0, calls[i]};
	steps[3 + N] = (struct filter_step){FILTER_RETURN, 0, 0, FILTER_KILL_PROCESS};
	steps[4 + N] = (struct filter_step){FILTER_RETURN, 0, 0, FILTER_ALLOW};
	return prctl(PR_SET_SECCOMP, 2 /* a filter */, &filter, 0, 0) == 0;
}

/* Leaves the process with nothing but its namespaces and the status pipe, now 0. */
static bool give_up_all(int pipe)
{
	struct cap_header header = {.version = CAP_VERSION_3};
	uint32_t caps[6] = {0};
	char *rest = proc_title + strlen(proc_title) + 1;

	if (pipe != 0 && dup2(pipe, 0) < 0)
		return report_failure(pipe, errno, "dup2", ""), false;
	if (syscall(SYS_close_range, 1, ~0U, 0) < 0)
		return report_failure(0, errno, "close_range", ""), false;
	for (int cap = 0; prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) == 0; cap++)
		;
	if (syscall(SYS_capset, &header, caps) < 0)
		return report_failure(0, errno, "capset", ""), false;
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return report_failure(0, errno, "no_new_privs", ""), false;
	/* No container may trace it; after the last change of credentials, which reset this. */
	prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
	if (prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) < 0)
		return report_failure(0, errno, "pdeathsig", ""), false;
	prctl(PR_SET_NAME, "caisson-holder", 0, 0, 0);
	/* What ps shows: "caisson-monitor NAME" becomes "caisson-holder NAME". */
	if (rest - proc_title == sizeof("caisson-monitor")) {
		memcpy(proc_title, "caisson-holder", sizeof("caisson-holder"));
		memmove(rest - 1, rest, strlen(rest) + 1);
	}
	if (!allow_little())
		return report_failure(0, errno, "seccomp", ""), false;
	return true;
}

/* Sleeps until killed; reaps what a pid namespace hands to its pid 1. */
static _Noreturn void hold_on(void)
{
	sigset_t child;

	sigemptyset(&child);
	sigaddset(&child, SIGCHLD);
	for (;;) {
		sigwaitinfo(&child, NULL); /* like the monitor's, all signals are blocked */
		while (waitpid(-1, NULL, WNOHANG | __WALL) > 0)
			;
	}
}

static _Noreturn void run_holder(const struct request *rq, struct hold *h, const int *pipes)
{
	struct report r = {0};
	int pipe = pipes[1];

	close(pipes[0]); /* so that a write fails when the monitor is gone */
	if (!enter(rq, h, pipe))
		_exit(1);
	if (rq->flags & HOLD_NEW_PID) {
		/* The next fork is pid 1 in the new namespace, and a child of the monitor. */
		pid_t pid = fork_child(CLONE_PARENT | HOLDER_EXIT_SIGNAL);

		if (pid < 0) {
			report_failure(pipe, errno, "fork pid 1", "");
			_exit(1);
		}
		if (pid > 0) {
			r.pid = pid;
			_exit(write(pipe, &r, sizeof(r)) < 0);
		}
	}
	unmap_buffers();
	records_unmap();
	give_back_stack();
	if (!give_up_all(pipe))
		_exit(1);
	/* If the monitor died before the death signal was set, nobody reads this. */
	if (write(0, &r, sizeof(r)) < 0)
		_exit(1);
	close(0);
	hold_on();
}

static int parse_hold(struct request *rq, struct hold *h)
{
	unsigned want = !!(rq->flags & HOLD_USER) + !!(rq->flags & HOLD_NET);

	h->hostname = get_string(&rq->body, 64);
	h->n_sysctls = get(&rq->body, 2);
	h->sysctls = rq->body;
	for (unsigned i = 0; i < h->n_sysctls && !rq->body.bad; i++) {
		const char *key = get_string(&rq->body, 200);

		get_string(&rq->body, 4096);
		if (!rq->body.bad && !is_sysctl_key(key))
			return fail(EINVAL, "sysctl ", key);
	}
	if (!at_end(&rq->body))
		return fail(EINVAL, "message", "");
	if (rq->nfds != want)
		return fail(EINVAL, "number of descriptors", "");
	/* Without a namespace of its own this would change the host. */
	if (*h->hostname && !(rq->flags & HOLD_NEW_UTS))
		return fail(EINVAL, "hostname without a new uts namespace", "");
	if (holder_pid() != 0)
		return fail(EEXIST, "holder runs", "");
	if (!records_have_room())
		return fail(ENOSPC, "too many records", "");
	return records_reserve() ? 0 : fail(ENOMEM, "grow table", "");
}

int do_hold(struct request *rq)
{
	struct hold h;
	int err = parse_hold(rq, &h), pipe[2];
	pid_t first, pid;
	uint64_t start = 0;
	bool ready = false;

	if (err)
		return err;
	if (pipe2(pipe, O_CLOEXEC) < 0)
		return fail(errno, "pipe", "");
	first = pid = fork_child(HOLDER_EXIT_SIGNAL);
	if (pid == 0)
		run_holder(rq, &h, pipe);
	if (pid < 0)
		err = fail(errno, "fork", "");
	close(pipe[1]);
	if (!err) {
		start = start_time(pid); /* while the child is busy */
		err = read_reports(pipe[0], &pid, &ready);
	}
	close(pipe[0]);
	if (!err && !ready)
		err = fail(EIO, "holder ended early", "");
	if (pid > 0 && err) {
		kill(pid, SIGKILL);
		waitpid(pid, NULL, err == ETIMEDOUT ? __WALL | WNOHANG : __WALL);
	}
	if (first > 0 && first != pid)
		waitpid(first, NULL, __WALL);
	if (err)
		return err;
	if (first != pid)
		start = start_time(pid);
	put_process(rq->reply, records_add(HOLDER, pid, start, ""));
	return 0;
}
