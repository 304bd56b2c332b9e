/*
 * Starts caissond when containerd needs it and none runs, so that nothing but
 * binaries in PATH is needed to run containers, and so that containers whose
 * daemon died are ended and their ends reported.
 *
 * Many of these programs may run at once: the first takes a lock and starts the
 * daemon, the others wait for the lock and find the daemon there. A daemon that
 * somebody else starts meanwhile makes ours end, by its own locks.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "shim.h"

#define DAEMON "caissond"
#define DAEMON_LOCK "lock"    /* made by every daemon, and never removed */
#define START_LOCK "shim.lock"
#define KEEPER "keeper/monitor.sock" /* of a daemon that keeps connections */
#define LOG "caissond.log"    /* of daemons that were started here */

/* In milliseconds. */
#define STEP 5
#define START_LIMIT 30000
/* How long a daemon that was not started by us may be away: an
 * init system or a person is about to start it again. containerd gives delete
 * five seconds altogether. */
#define AWAY_LIMIT 2000
/* How long to go on after our daemon has ended: another one may be starting. */
#define ENDED_LIMIT 2000

static long now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static void pause_a_step(void)
{
	nanosleep(&(struct timespec){ .tv_nsec = STEP * 1000000 }, NULL);
}

static void join(char *out, const char *dir, const char *name)
{
	if (snprintf(out, PATH_MAX, "%s/%s", dir, name) >= PATH_MAX)
		fail("%s/%s is too long for a path", dir, name);
}

/* Whether the command line is one that a daemon is started for. */
static int worth_starting(int argc, char **argv)
{
	for (int i = 1; i < argc; i++)
		if (!strcmp(argv[i], "-info") || !strcmp(argv[i], "start") || !strcmp(argv[i], "delete"))
			return 1;
	return 0;
}

/* The value of containerd's flag -address, or NULL. */
static const char *containerd_address(int argc, char **argv)
{
	for (int i = 1; i < argc; i++) {
		if (!strcmp(argv[i], "-address") && i + 1 < argc)
			return argv[i + 1];
		if (!strncmp(argv[i], "-address=", 9))
			return argv[i] + 9;
	}
	return NULL;
}

/* Finds the daemon's program: beside this one, then in PATH. */
static void find_daemon(char *out)
{
	char self[PATH_MAX];
	ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);
	const char *dirs = getenv("PATH");
	char *slash;

	if (n > 0) {
		self[n] = 0;
		slash = strrchr(self, '/');
		if (slash) {
			*slash = 0;
			join(out, self, DAEMON);
			if (access(out, X_OK) == 0)
				return;
		}
	}
	while (dirs && *dirs) {
		size_t length = strcspn(dirs, ":");

		/* An empty or a relative entry depends on where containerd put us. */
		if (*dirs == '/' && snprintf(out, PATH_MAX, "%.*s/" DAEMON, (int)length, dirs) < PATH_MAX &&
		    access(out, X_OK) == 0)
			return;
		dirs += length + (dirs[length] == ':');
	}
	fail(DAEMON " does not run, and is neither beside " NAME " nor in PATH: install it there, or start it");
}

/* What containerd or its init system set for this process alone. */
static const char *const not_inherited[] = {
	"GOMAXPROCS", "MAX_SHIM_VERSION", "TTRPC_ADDRESS", "GRPC_ADDRESS", "NAMESPACE",
	"NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES",
};

static _Noreturn void become_daemon(const char *program, const char *log, char **args)
{
	sigset_t none;
	int in = open("/dev/null", O_RDWR | O_CLOEXEC), out = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);

	if (in < 0 || out < 0 || dup2(in, 0) < 0 || dup2(out, 1) < 0 || dup2(out, 2) < 0)
		_exit(126); /* containerd must get our end of its pipes back */
	setsid(); /* cannot fail: this process was just forked */
	syscall(SYS_close_range, 3u, ~0u, 0u);
	if (chdir("/") < 0)
		_exit(126);
	for (int sig = 1; sig < NSIG; sig++)
		signal(sig, SIG_DFL); /* fails for those that cannot be changed */
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	for (size_t i = 0; i < sizeof(not_inherited) / sizeof(*not_inherited); i++)
		unsetenv(not_inherited[i]);
	execv(program, args);
	dprintf(2, NAME ": execute %s: %s\n", program, strerror(errno));
	_exit(127);
}

/* Waits for a daemon on the socket; -1 if there is none in time. */
static int await(const char *path, long limit, pid_t child)
{
	long end = now() + limit;

	for (;;) {
		int fd = dial(path);

		if (fd >= 0)
			return fd;
		if (now() >= end)
			return -1;
		if (child > 0 && waitpid(child, NULL, WNOHANG) == child) {
			child = 0;
			if (end > now() + ENDED_LIMIT)
				end = now() + ENDED_LIMIT;
		}
		pause_a_step();
	}
}

/* Whether a keeper, which holds the connections of a daemon that is away, listens. */
static int answers(const char *path)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd, found;

	if (strlen(path) >= sizeof(address.sun_path))
		return 0; /* nobody can listen there */
	strcpy(address.sun_path, path);
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd < 0)
		fail("make a socket: %s", strerror(errno));
	found = connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0 || errno == EAGAIN;
	close(fd);
	return found;
}

static int launch(const char *path, const char *state, const char *log, int argc, char **argv)
{
	static char program[PATH_MAX];
	const char *config = getenv(CONFIG_ENV), *containerd = containerd_address(argc, argv);
	/* Nobody starts this daemon again, so connections have to break with it:
	 * then containerd runs this program, which does. */
	char *args[11] = { program, "--engine", "none", "--keep-connections=false", "--state", (char *)state };
	int n = 6, fd;
	pid_t child;

	find_daemon(program);
	if (config && *config) {
		args[n++] = "--config";
		args[n++] = (char *)config;
	}
	if (containerd && *containerd) {
		args[n++] = "--containerd-address";
		args[n++] = (char *)containerd;
	}
	child = fork();
	if (child < 0)
		fail("fork: %s", strerror(errno));
	if (child == 0)
		become_daemon(program, log, args);
	fd = await(path, START_LIMIT, child);
	if (fd < 0)
		fail("%s was started and does not answer at %s; %s says why", program, path, log);
	return fd;
}

int start_daemon(const char *path, int argc, char **argv)
{
	static char state[PATH_MAX], name[PATH_MAX], log[PATH_MAX];
	const char *socket = getenv(SOCKET_ENV), *config = getenv(CONFIG_ENV);
	char *slash;
	int lock, keeper, fd;

	/* A daemon elsewhere than in the default directories needs to be told
	 * where; the engine in caissond never wants another daemon. */
	if (!worth_starting(argc, argv) || (socket && *socket && !(config && *config)))
		fail("caissond does not answer at %s: start it, or set " SOCKET_ENV " to the shim.sock in its state directory", path);
	if (snprintf(state, sizeof(state), "%s", path) >= (int)sizeof(state) || !(slash = strrchr(state, '/')) || slash == state)
		fail("%s is no absolute path of a socket in a directory", path);
	*slash = 0;
	if (mkdir(state, 0711) < 0 && errno != EEXIST)
		fail("make %s: %s", state, strerror(errno));

	join(log, state, LOG);
	join(name, state, KEEPER);
	keeper = answers(name);
	join(name, state, DAEMON_LOCK);
	if (keeper || (access(name, F_OK) == 0 && access(log, F_OK) < 0)) {
		fd = await(path, AWAY_LIMIT, 0);
		if (fd >= 0)
			return fd;
	}
	/* A daemon of ours would leave the kept connections without an answer. */
	if (keeper)
		fail("caissond is away and does not answer at %s; its keeper waits for it: start it, or end the keeper", path);
	join(name, state, START_LOCK);
	lock = open(name, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (lock < 0)
		fail("open %s: %s", name, strerror(errno));
	/* Whoever holds it is waiting for the daemon, for a limited time. */
	while (flock(lock, LOCK_EX) < 0)
		if (errno != EINTR)
			fail("lock %s: %s", name, strerror(errno));
	fd = dial(path);
	if (fd < 0)
		fd = launch(path, state, log, argc, argv);
	close(lock);
	return fd;
}
