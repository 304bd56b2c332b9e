// Package events keeps the events that are owed to containerd until containerd took them.
//
// Publish records an event in a journal file and returns; one goroutine sends the
// recorded events strictly in order and tries again, for as long as it takes, while
// containerd is away. A daemon that is killed finds at its next Open what it still owes.
//
// Delivery: an event is sent until the Forwarder reports success, and its success is
// recorded right after. Only the event in flight at the moment of a kill (or one whose
// answer got lost with containerd's connection) can therefore arrive twice; none is lost
// and none overtakes another. An event that containerd refuses as invalid is dropped with
// an error in the log, since it could never succeed and would block all that follow.
//
// Publish is idempotent by key: an event whose key the journal knows, sent or not, is not
// recorded again. The daemon can thus publish an exit once more after a restart without
// asking whether it did so before. Tell is Publish for what has happened and cannot be
// taken back for want of room in the file.
//
// The journal lives on tmpfs like all of the run directory and is never fsynced: it has to
// survive the daemon, not the machine. The file's layout is described in record.go.
package events

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"caisson/internal/fault"
	"caisson/internal/statefile"
)

const (
	journalName = "journal"
	keepKeys    = 4096 // keys that survive a compaction, besides those of unsent events

	defaultCompactAt      = 1 << 20
	defaultMinBackoff     = 128 * time.Millisecond
	defaultMaxBackoff     = 4 * time.Second
	defaultAttemptTimeout = 5 * time.Second
)

// Forwarder hands one event to containerd and returns once containerd has taken it. It
// must return when ctx ends. An error of class InvalidArgument means that the event can
// never be taken; after any other error the same event is tried again.
type Forwarder func(ctx context.Context, envelope *types.Envelope) error

// Option changes a default of Open.
type Option func(*Journal) error

// WithBackoff sets the first and the longest pause between two attempts to send an event
// (default 128 ms and 4 s).
func WithBackoff(first, longest time.Duration) Option {
	return func(j *Journal) error {
		if first <= 0 || longest < first {
			return fmt.Errorf("backoff %s to %s: %w", first, longest, errdefs.ErrInvalidArgument)
		}
		j.minBackoff, j.maxBackoff = first, longest
		return nil
	}
}

// WithAttemptTimeout limits one call of the Forwarder (default 5 s).
func WithAttemptTimeout(limit time.Duration) Option {
	return func(j *Journal) error {
		if limit <= 0 {
			return fmt.Errorf("attempt timeout %s: %w", limit, errdefs.ErrInvalidArgument)
		}
		j.attemptTimeout = limit
		return nil
	}
}

// WithCompactAt sets the file size in bytes from which on the journal drops what is sent
// (default 1 MiB).
func WithCompactAt(size int64) Option {
	return func(j *Journal) error {
		if size <= 0 {
			return fmt.Errorf("compact at %d bytes: %w", size, errdefs.ErrInvalidArgument)
		}
		j.compactMin = size
		return nil
	}
}

// Journal is the list of events owed to containerd. All methods may be called concurrently.
type Journal struct {
	dir            string
	lock           *os.File // directory, flocked: one Journal per directory
	forward        Forwarder
	compactMin     int64
	minBackoff     time.Duration
	maxBackoff     time.Duration
	attemptTimeout time.Duration

	wake chan struct{}      // capacity 1: pending is no longer empty
	stop chan struct{}      // closed by Close: send nothing more
	kill context.CancelFunc // ends the attempt in flight
	done chan struct{}      // closed when the sender has ended and the file is closed

	// mu guards all below. Unlike elsewhere, writes to the (memory-backed) file happen
	// under it: the order in the file is the order of pending.
	mu        sync.Mutex
	file      *os.File
	size      int64 // length of the intact records; the next record is written there
	compactAt int64
	lastSeq   uint64
	pending   []record // unsent events, oldest first
	unwritten []record // of Tell, not in the file yet, oldest first
	keys      []string // every known key, oldest first
	known     map[string]struct{}
	closed    bool
}

// Open reads or creates the journal in dir, which is created with mode 0700 if missing, and
// starts to send what is unsent. A nil forward is for a daemon without containerd: of events
// only the keys are recorded, and older ones that are still unsent are dropped.
// A journal of a newer format, and one that is open elsewhere, are refused.
func Open(dir string, forward Forwarder, opts ...Option) (*Journal, error) {
	j := &Journal{
		dir:            dir,
		forward:        forward,
		compactMin:     defaultCompactAt,
		minBackoff:     defaultMinBackoff,
		maxBackoff:     defaultMaxBackoff,
		attemptTimeout: defaultAttemptTimeout,
		wake:           make(chan struct{}, 1),
		stop:           make(chan struct{}),
		done:           make(chan struct{}),
		known:          make(map[string]struct{}),
	}
	for _, opt := range opts {
		if err := opt(j); err != nil {
			return nil, fmt.Errorf("event journal %q: option: %w", dir, err)
		}
	}
	if err := j.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("event journal %q: open: %w", dir, err), j.closeFiles())
	}
	if forward == nil {
		j.dropAll()
	}
	ctx, cancel := context.WithCancel(context.Background())
	j.kill = cancel
	go j.send(ctx)
	return j, nil
}

func (j *Journal) open() error {
	if err := os.MkdirAll(j.dir, 0o700); err != nil {
		return err
	}
	var err error
	if j.lock, err = os.Open(j.dir); err != nil {
		return err
	}
	if err := statefile.Lock(j.lock); err != nil {
		return fmt.Errorf("lock: %w: %w", err, errdefs.ErrFailedPrecondition)
	}
	j.compactAt = j.compactMin
	j.file, err = os.OpenFile(j.path(), os.O_RDWR|unix.O_NOFOLLOW, 0)
	if errors.Is(err, os.ErrNotExist) {
		return j.compactLocked() // writes an empty journal
	}
	if err != nil {
		return err
	}
	return j.load()
}

// load reads the file's records and cuts what follows the last intact one: the rest of a
// write that the daemon did not live to finish.
func (j *Journal) load() error {
	total, err := j.file.Seek(0, 2)
	if err != nil {
		return err
	}
	if _, err := j.file.Seek(0, 0); err != nil {
		return err
	}
	j.size, err = readJournal(j.file, func(r record) {
		j.lastSeq = max(j.lastSeq, r.seq, r.sentTo)
		switch {
		case r.sentTo > 0:
			j.dropSentLocked(r.sentTo)
		default:
			j.addKeyLocked(r.key)
			if len(r.envelope) > 0 {
				j.pending = append(j.pending, r)
			}
		}
	})
	if err != nil {
		return err
	}
	if total > j.size {
		log.L.WithField("path", j.path()).Warnf("event journal: cut a torn tail of %d bytes", total-j.size)
		return j.file.Truncate(j.size)
	}
	return nil
}

func (j *Journal) path() string { return filepath.Join(j.dir, journalName) }

// dropAll marks as sent what a daemon with containerd left unsent for one without.
func (j *Journal) dropAll() {
	j.mu.Lock()
	n, last := len(j.pending), j.lastSeq
	j.mu.Unlock()
	if n == 0 {
		return
	}
	logger := log.L.WithField("path", j.path()).WithField("events", n)
	logger.Warn("event journal: unsent events dropped: no containerd to send them to")
	if err := j.markSent(last); err != nil {
		logger.WithError(err).Warn("event journal: mark not written")
	}
}

func (j *Journal) addKeyLocked(key string) {
	if key == "" {
		return
	}
	if _, ok := j.known[key]; !ok {
		j.known[key] = struct{}{}
		j.keys = append(j.keys, key)
	}
}

// writeLocked appends one record. What a failed write left behind is cut off; if even that
// fails, the next record overwrites it, since records are written at size, not at the
// file's end.
func (j *Journal) writeLocked(r record) error {
	b, err := r.encode()
	if err != nil {
		return err
	}
	err = fault.Fail("event:write", unix.ENOSPC)
	if err == nil {
		_, err = j.file.WriteAt(b, j.size)
	}
	if err != nil {
		return errors.Join(writeError(err), j.file.Truncate(j.size))
	}
	j.size += int64(len(b))
	return nil
}

func writeError(err error) error {
	var class error = errdefs.ErrUnavailable
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, syscall.EFBIG) {
		class = errdefs.ErrResourceExhausted
	}
	return fmt.Errorf("write: %w: %w", err, class)
}

func (j *Journal) dropSentLocked(seq uint64) {
	for len(j.pending) > 0 && j.pending[0].seq <= seq {
		j.pending[0] = record{} // append reuses none of the front: let its bytes go
		j.pending = j.pending[1:]
	}
}

// maybeCompactLocked rewrites the file once it has grown enough to make that worthwhile. A
// failure changes nothing: the old file stays in use and grows on.
func (j *Journal) maybeCompactLocked() {
	if j.size < j.compactAt {
		return
	}
	if err := j.compactLocked(); err != nil {
		// Not at every event from now on.
		j.compactAt = 2 * j.size
		log.L.WithError(err).WithField("path", j.path()).Warn("event journal: not compacted")
	}
}

// compactLocked replaces the file by one with the unsent events and the newest keys.
func (j *Journal) compactLocked() error {
	unsent := make(map[string]struct{}, len(j.pending))
	for _, r := range j.pending {
		unsent[r.key] = struct{}{}
	}
	sent := slices.DeleteFunc(slices.Clone(j.keys), func(key string) bool {
		_, ok := unsent[key]
		return ok
	})
	sent = sent[max(0, len(sent)-keepKeys):]

	b := []byte(magic)
	for _, key := range sent {
		b = record{key: key}.appendTo(b)
	}
	for _, r := range j.pending {
		b = r.appendTo(b)
	}
	file, err := replaceFile(j.path(), b)
	if err != nil {
		return err
	}
	if j.file != nil {
		j.file.Close() // read and written whole; nothing is buffered that could fail
	}
	j.file, j.size = file, int64(len(b))
	j.unwritten = nil // they were pending, or their keys are known
	// Rewriting costs as much as the file is long: wait until it has doubled.
	j.compactAt = max(j.compactMin, 2*j.size)

	j.keys = sent
	for _, r := range j.pending {
		if r.key != "" {
			j.keys = append(j.keys, r.key)
		}
	}
	j.known = make(map[string]struct{}, len(j.keys))
	for _, key := range j.keys {
		j.known[key] = struct{}{}
	}
	return nil
}

// replaceFile writes path by way of a temporary file, so that path is always whole, and
// returns the new file open for reading and writing.
func replaceFile(path string, content []byte) (*os.File, error) {
	temp := path + ".new" // the directory is locked: nobody else writes it
	if err := fault.Fail("event:journal", unix.ENOSPC, unix.EMFILE); err != nil {
		return nil, writeError(err)
	}
	file, err := os.OpenFile(temp, os.O_RDWR|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	_, err = file.WriteAt(content, 0)
	if err == nil {
		fault.Point("event:journal:rename")
		err = os.Rename(temp, path)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("replace: %w", writeError(err)), file.Close(), os.Remove(temp))
	}
	return file, nil
}

// Unsent returns how many events containerd has not taken yet.
func (j *Journal) Unsent() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return len(j.pending)
}

// Last returns the number of the last event; there was one since if it has grown.
func (j *Journal) Last() uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.lastSeq
}

// Close refuses further events, lets the attempt in flight finish and waits for the sender;
// when ctx ends first, the attempt is cut short. What is unsent then is sent after the next
// Open. Close may be repeated.
func (j *Journal) Close(ctx context.Context) error {
	j.mu.Lock()
	if !j.closed {
		j.closed = true
		close(j.stop)
	}
	j.mu.Unlock()
	defer j.kill()
	select {
	case <-j.done:
		return nil
	case <-ctx.Done():
	}
	j.kill()
	<-j.done // a Forwarder returns when its context ends
	return fmt.Errorf("event journal %q: close: %w", j.dir, ctx.Err())
}

func (j *Journal) closeFiles() error {
	var errs []error
	for _, f := range []*os.File{j.file, j.lock} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}
