/*
 * The protocol between the daemon and caisson-monitor. This file is its only
 * description; internal/monitor/wire.go mirrors the numbers.
 *
 * Transport. A unix SOCK_SEQPACKET socket, `monitor.sock` in the sandbox's
 * directory. One packet is one message of at most MSG_MAX bytes. Only peers
 * with uid 0 are served; others, and those beyond MAX_CONNS, are closed at
 * once. Everything is little-endian and without padding.
 *
 * Versions. A monitor outlives the daemon that started it, so daemons of other
 * versions, later and earlier ones, talk to it. It speaks every version from 1 to
 * PROTOCOL_VERSION; a message of another gets an error (EPROTONOSUPPORT), but for
 * HELLO, whose answer says which version to speak: that of its header, or the
 * monitor's own if it does not know that one. A version adds to the one before
 * and changes nothing of it. Version 2 is the first whose monitors speak to others;
 * of those of version 1, only later ones know SIGNAL_ONCE and KEEP_OPEN (others
 * answer EINVAL), ACCEPT and GREET (others answer ENOSYS). TITLE came later still:
 * it is for monitors that wait for a sandbox, which end with their daemon.
 *
 *   message = u16 version, u16 type, u32 id, u32 flags, u16 nfds, u16 0, body
 *   string  = u16 length, that many bytes other than NUL, one NUL
 *   strings = u16 count, that many strings
 *
 * nfds is the number of file descriptors that came along by SCM_RIGHTS. A
 * request has an id of the client's choice. It is answered by exactly one
 * message with the same id: type | REPLY, or ERROR with the body
 * {u32 errno, string step}; step says what failed ("setns net"). A message
 * that cannot be understood is answered with ERROR as well (id 0 if it is too
 * short to hold one) and changes nothing. Requests of one connection are
 * answered in order. A body must be used up exactly; undefined flags are
 * errors.
 *
 *   process = u64 serial, u64 start, u32 pid, u32 0
 *   record  = process, u8 kind, u8 exited, u16 0, u32 wait_status,
 *             u64 exit_order, u64 end_ns, u64 user_us, u64 system_us,
 *             u64 max_rss_kib, process adopted, string tag
 *
 * serial: counted up from 1, never used twice by one monitor. pid: in the
 * monitor's pid namespace. start: field 22 of /proc/<pid>/stat. end_ns:
 * CLOCK_REALTIME when the monitor reaped the process. adopted: see SPAWN, all
 * 0 if none. All that concerns the exit is 0 while exited is 0.
 */
#ifndef CAISSON_PROTOCOL_H
#define CAISSON_PROTOCOL_H

enum {
	PROTOCOL_VERSION = 2,
	HEADER_SIZE = 16,
	MSG_MAX = 64 * 1024,
	MAX_CONNS = 8,
	MAX_FDS = 253,         /* in one message; the kernel's SCM_MAX_FD */
	MAX_TAG = 200,         /* bytes in a tag or in the name of kept descriptors */
	MAX_KEEP_FDS = 8,      /* under one name */
	MAX_KEPT = 32768,      /* descriptors kept in all (less if RLIMIT_NOFILE is small) */
	MAX_GREETING = 64,
	MAX_RECORDS = 65536,   /* SPAWN and HOLD answer ENOSPC above it */
};

enum {
	/* {} -> {u32 version, u32 pid, u64 start}: to speak, see above; of the monitor. */
	HELLO = 1,

	/*
	 * {string hostname, u16 n, n times {string key, string value}} -> process.
	 * Starts the holder: a child with no privileges in the sandbox's
	 * namespaces, at most one at a time (EEXIST). fds: the user namespace if
	 * HOLD_USER, then the network namespace if HOLD_NET, both to be joined.
	 * An empty hostname is not set. A sysctl's key is a path below /proc/sys;
	 * sysctls are written inside the namespaces, in order. If the holder gets
	 * a pid namespace of its own it is pid 1 in it and reaps zombies.
	 */
	HOLD = 2,

	/*
	 * {string tag, string cwd, string pid_file, strings argv, strings env}
	 * -> process. Executes argv[0] (absolute) in a session of its own, with
	 * the fds as its descriptors 0, 1, 2, ... (missing ones of 0 to 2 are
	 * /dev/null). Answers after a successful execve, else with the error of
	 * the step that failed. An empty cwd is "/".
	 *
	 * SPAWN_ADOPT: argv is an OCI runtime that leaves a process behind and
	 * writes its pid to pid_file (absolute; removed before the runtime
	 * starts, and required with this flag, else empty). If the runtime exits
	 * with 0, that process becomes a record of its own, of kind ADOPTED and
	 * with the same tag. The runtime's exit names it in `adopted` and always
	 * comes before the adopted process's exit.
	 */
	SPAWN = 3,

	/*
	 * {u64 serial, u32 signal} -> {}. ESRCH once the process was reaped.
	 * SIGNAL_ONCE: {u64 serial, u32 signal, u64 token} does nothing if the last
	 * SIGNAL_ONCE for the process had the same token: a daemon that does not
	 * know whether the last one has sent the signal may ask again.
	 */
	SIGNAL = 4,

	/*
	 * {u64 after} -> {u16 n, n records}: those with serial > after, in order
	 * of serial. Flag MORE in the reply: ask again with the last serial.
	 */
	LIST = 5,

	/*
	 * {} -> {}, and from then on an EXIT message for each record that has
	 * exited and is not acknowledged: first those of the past in the order of
	 * exit, then new ones. Each is sent once to each subscribed connection.
	 */
	SUBSCRIBE = 6,

	/* {u64 serial} -> {}. Forgets an exited record. ENOENT, EBUSY if it runs. */
	ACK = 7,

	/*
	 * {string name} + 1 to MAX_KEEP_FDS fds -> {}. Keeps them open, in place
	 * of those kept under that name before. ENOSPC: too many.
	 * KEEP_OPEN: the fds are opened with O_PATH and are FIFOs; they are opened
	 * for reading and writing, and that is what is kept and answered with. Thus
	 * a FIFO's reader, once it has a writer, never sees an end because the daemon
	 * was killed.
	 *
	 */
	KEEP = 8,

	/* {string name} -> {} + fds. ENOENT. */
	FETCH = 9,

	/* {string name} -> {}. DROP_PREFIX: all names that begin with it. */
	DROP = 10,

	/* {u64 after} -> {u64 last, strings names}; flag MORE: ask again after last. */
	KEPT = 11,

	/*
	 * {} -> {}. Kills the holder, answers and exits. EBUSY if there are other
	 * children (known or orphaned) unless END_FORCE, which kills those first.
	 * From its acceptance on HOLD, SPAWN and END are answered ESHUTDOWN.
	 */
	END = 12,

	/*
	 * {string listener, string name} + up to MAX_KEEP_FDS - 1 fds -> {} + fd.
	 * Accepts a connection from the first descriptor kept as listener, keeps
	 * it and then the fds under name, and answers with it. Thus a client that
	 * has connected is never known to the daemon alone. EAGAIN: nobody waits.
	 */
	ACCEPT = 13,

	/*
	 * {string listener, string prefix, u16 max, u16 n, n bytes} -> {}. Once the
	 * connection that said so is gone, and until another one says it, the
	 * monitor accepts what connects to the socket kept as listener, sends the
	 * n (at most MAX_GREETING) bytes, and keeps the connection under the prefix
	 * and a number, which no other kept name has, while less than max names with
	 * the prefix are kept. Peers with another uid than 0 are closed at once. For
	 * clients that wait for the server's first bytes with less patience than for
	 * the answers to their calls.
	 */
	GREET = 14,

	/*
	 * {string name} -> {}. Shows it in process lists instead of the NAME that the
	 * monitor was started with. ENOSPC: that, with the (empty) arguments after it,
	 * is shorter.
	 */
	TITLE = 15,

	EXIT = 0x4001,  /* monitor -> client, id 0: {record} */
	ERROR = 0x7fff, /* monitor -> client: {u32 errno, string step} */
	REPLY = 0x8000,
};

enum { /* flags */
	HOLD_USER = 1,
	HOLD_NET = 2,
	HOLD_NEW_IPC = 4,
	HOLD_NEW_UTS = 8,
	HOLD_NEW_PID = 16,
	SPAWN_ADOPT = 1,
	SIGNAL_ONCE = 1,
	KEEP_OPEN = 1,
	DROP_PREFIX = 1,
	END_FORCE = 1,
	MORE = 1, /* in replies to LIST and KEPT */
};

enum { SPAWNED = 1, ADOPTED = 2, HOLDER = 3 }; /* kinds of records */

#endif
