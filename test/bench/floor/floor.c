/*
 * The floor: what the kernel takes for the objects of one sandbox, made by a program
 * that does nothing else. Prints the microseconds of each round.
 *
 *   floor DIRECTORY ROUNDS CGROUP...
 *
 * A round makes a directory with three files and a tmpfs, one cgroup in each given
 * directory, a process, and its child in new IPC and UTS namespaces with a host name
 * of its own, which says that it is there; all of it is removed before the next.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void must(int ok, const char *what)
{
	if (!ok) {
		perror(what);
		exit(1);
	}
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

static void holder(int ready)
{
	must(unshare(CLONE_NEWIPC | CLONE_NEWUTS) == 0, "unshare");
	must(sethostname("floor", 5) == 0, "sethostname");
	must(write(ready, "r", 1) == 1, "ready");
	for (;;)
		pause();
}

static void monitor(int ready)
{
	pid_t child = fork();

	must(child >= 0, "fork");
	if (child == 0)
		holder(ready);
	for (;;)
		pause();
}

int main(int argc, char **argv)
{
	static const char *files[] = {"hostname", "hosts", "resolv.conf"};
	char path[4096];

	must(argc > 3 && chdir(argv[1]) == 0, "usage: floor DIRECTORY ROUNDS CGROUP...");
	for (int round = 0; round < atoi(argv[2]); round++) {
		double begin = now();
		int ready[2];
		char byte;
		pid_t pid;

		must(mkdir("sb", 0700) == 0 && mkdir("sb/shm", 0700) == 0, "mkdir");
		for (int i = 3; i < argc; i++) {
			snprintf(path, sizeof(path), "%s/floor", argv[i]);
			must(mkdir(path, 0755) == 0, path);
		}
		for (int i = 0; i < 3; i++) {
			snprintf(path, sizeof(path), "sb/%s", files[i]);
			int fd = open(path, O_CREAT | O_WRONLY, 0644);

			must(fd >= 0 && write(fd, "127.0.0.1 localhost\n", 20) == 20 && close(fd) == 0, path);
		}
		must(mount("shm", "sb/shm", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "size=65536k") == 0, "mount");
		must(pipe(ready) == 0, "pipe");
		pid = fork();
		must(pid >= 0, "fork");
		if (pid == 0) {
			setpgid(0, 0);
			monitor(ready[1]);
		}
		must(read(ready[0], &byte, 1) == 1, "handshake");
		printf("%.0f\n", now() - begin);

		setpgid(pid, pid);
		kill(-pid, SIGKILL);
		waitpid(pid, NULL, 0);
		close(ready[0]);
		close(ready[1]);
		must(umount("sb/shm") == 0 && rmdir("sb/shm") == 0, "umount");
		for (int i = 0; i < 3; i++) {
			snprintf(path, sizeof(path), "sb/%s", files[i]);
			unlink(path);
		}
		must(rmdir("sb") == 0, "rmdir");
		for (int i = 3; i < argc; i++) {
			snprintf(path, sizeof(path), "%s/floor", argv[i]);
			must(rmdir(path) == 0, path);
		}
	}
	return 0;
}
