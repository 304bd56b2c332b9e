/* What the monitor's files share. The wire format is in protocol.h. */
#ifndef CAISSON_MONITOR_H
#define CAISSON_MONITOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/types.h>

#include "protocol.h"

/* table.c: a growing array in pages of its own. Pointers into it die with the next change. */
struct table {
	unsigned char *base;
	size_t n, cap, elem; /* elements, bytes mapped, bytes of one element */
};
bool table_reserve(struct table *t, size_t n);
void *table_add(struct table *t); /* zeroed; NULL: no memory */
void table_free(struct table *t);
void *table_at(struct table *t, size_t i);
void table_del(struct table *t, size_t i); /* keeps the order */

/* wire.c: reading and writing message bodies. A read past the end sets bad. */
struct in {
	const unsigned char *p, *end;
	bool bad;
};
uint64_t get(struct in *in, int bytes);
const char *get_string(struct in *in, size_t max); /* points into the message; "" when bad */
unsigned get_strings(struct in *in, struct in *strings);
bool at_end(const struct in *in); /* all was there and nothing is left */
struct out {
	unsigned char *base;
	size_t n;
};
void put(struct out *out, uint64_t v, int bytes);
void put_at(struct out *out, size_t at, uint64_t v, int bytes);
void put_string(struct out *out, const char *s);
size_t put_room(const struct out *out);

/* A request being handled: what came in and the reply's parts. */
struct request {
	unsigned type;
	uint32_t id, flags;
	struct in body;
	int fds[MAX_FDS]; /* closed after the request unless set to -1 */
	unsigned nfds;
	struct out *reply; /* the header's room is already taken */
	uint32_t reply_flags;
	const int *reply_fds;
	unsigned n_reply_fds;
};

/* main.c */
extern char *proc_title; /* argv[0] and what follows it in memory */
extern struct rlimit nofile_before;
extern int oom_score_before; /* -1: not changed */
void give_back_stack(void);
void unmap_buffers(void);
bool is_root(int fd); /* whoever made the connection */
int fail(int err, const char *what, const char *detail); /* notes the step, returns err */

/* records.c: the monitor's children and what became of them. */
struct record {
	uint64_t serial, start, exit_order, end_ns, user_us, system_us, max_rss_kib;
	uint64_t adopted; /* serial of what this runtime left behind */
	uint64_t adopted_start;
	uint64_t signal_token; /* of the last SIGNAL_ONCE */
	uint32_t adopted_pid;
	pid_t pid;
	int status;
	uint8_t kind;
	bool exited;
	char *pid_file; /* of a running OCI runtime with SPAWN_ADOPT: a mapping of PATH_MAX bytes */
	char tag[MAX_TAG + 1];
};
bool records_have_room(void);
void records_unmap(void);
bool records_reserve(void);
uint64_t start_time(pid_t pid); /* from /proc; 0 if it cannot be had */
struct record *records_add(uint8_t kind, pid_t pid, uint64_t start, const char *tag); /* after records_reserve */
void records_watch(struct record *r, char *pid_file); /* it is a runtime, if not NULL */
void put_process(struct out *out, const struct record *r);
void put_record(struct out *out, const struct record *r);
const struct record *next_exit(uint64_t order); /* first unacknowledged one at or after order */
pid_t holder_pid(void);                          /* 0: none runs */
bool reap(void);                                 /* true: call again soon */
bool only_holder_left(void);
void kill_others(void); /* SIGKILL to every child but the holder */
int do_signal(struct request *rq);
int do_list(struct request *rq);
int do_ack(struct request *rq);

/* child.c, holder.c: starting processes. */
struct report { /* what a child writes into its status pipe */
	int32_t err; /* 0: pid names the process to watch instead */
	int32_t pid;
	char step[240];
};
void report_failure(int pipe, int err, const char *what, const char *detail);
int read_reports(int pipe, pid_t *pid, bool *ready); /* until EOF; an errno, step noted */
pid_t fork_child(unsigned long flags);
int do_spawn(struct request *rq);
int release(char **args); /* a program of its own; its exit status */
int do_hold(struct request *rq);

/* keep.c: named descriptors. */
int do_keep(struct request *rq);
int do_fetch(struct request *rq);
int do_drop(struct request *rq);
int do_kept(struct request *rq);
int do_accept(struct request *rq);
int do_greet(struct request *rq);
int greeting_fd(void); /* to be polled while nobody else accepts; -1: none */
void greet_one(void);

#endif
