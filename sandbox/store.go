package sandbox

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	core "github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/containerd/v2/pkg/filters"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// Store keeps the records of sandboxes in one bbolt file. It behaves as
// containerd's own metadata store does, and is stricter where that one lets
// records become wrong:
//
//   - a record needs a runtime name, which no update changes, not even through
//     the field path "runtime";
//   - labels are validated;
//   - replacing extensions or the spec also removes what is no longer there.
//
// Writers that come while another one commits share the next commit; a writer
// alone does not wait for company. Readers see the last commit and wait for
// neither writers nor the disk. All methods may be called concurrently.
type Store struct {
	db     *bolt.DB
	path   string
	writer storeWriter
	now    func() time.Time
}

var _ core.Store = (*Store)(nil)

// StoreOption changes how OpenStore opens a store.
type StoreOption func(*storeOptions) error

type storeOptions struct {
	lockTimeout time.Duration
	now         func() time.Time
}

// defaultLockTimeout is long enough for a daemon that is just ending to let go
// of the file.
const defaultLockTimeout = 2 * time.Second

// storeMmapSize is how much of the file is mapped from the start. The map is
// address space, not memory; a file that outgrows it makes readers and the
// writer wait for each other while it is mapped anew.
const storeMmapSize = 64 << 20

// WithLockTimeout sets how long OpenStore waits for another process to let go
// of the file.
func WithLockTimeout(d time.Duration) StoreOption {
	return func(o *storeOptions) error {
		if d <= 0 {
			return fmt.Errorf("lock timeout %v is not positive: %w", d, errdefs.ErrInvalidArgument)
		}
		o.lockTimeout = d
		return nil
	}
}

// OpenStore opens the store in a file, and makes the file if there is none;
// its directory must exist. The file is locked until Close. The error is
// FailedPrecondition for a file with a newer schema, Unavailable for one that
// another process holds, DataLoss for one that is broken.
func OpenStore(path string, opts ...StoreOption) (*Store, error) {
	o := storeOptions{lockTimeout: defaultLockTimeout, now: time.Now}
	for _, opt := range opts {
		if err := opt(&o); err != nil {
			return nil, fmt.Errorf("sandbox store %q: option: %w", path, err)
		}
	}
	_, statErr := os.Stat(path)
	db, err := bolt.Open(path, 0o600, &bolt.Options{
		Timeout:         o.lockTimeout,
		FreelistType:    bolt.FreelistMapType,
		InitialMmapSize: storeMmapSize,
	})
	if err != nil {
		return nil, storeOpenError(path, o.lockTimeout, err)
	}
	s := &Store{db: db, path: path, now: o.now}
	s.writer.db = db
	err = db.Update(func(tx *bolt.Tx) error { return storeCheckSchema(tx, storeMigrations) })
	if err == nil && errors.Is(statErr, os.ErrNotExist) {
		err = storeSyncDir(filepath.Dir(path))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("sandbox store %q: open: %w", path, err), db.Close())
	}
	return s, nil
}

func storeOpenError(path string, timeout time.Duration, err error) error {
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		return fmt.Errorf("sandbox store %q: open: another process has held the file for %v; is a second caissond running on it? %w", path, timeout, errdefs.ErrUnavailable)
	case errors.Is(err, bolterrors.ErrInvalid), errors.Is(err, bolterrors.ErrChecksum), errors.Is(err, bolterrors.ErrVersionMismatch):
		return fmt.Errorf("sandbox store %q: open: not a sandbox store, or a damaged one; move it away to start with an empty one: %w: %w", path, err, errdefs.ErrDataLoss)
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("sandbox store %q: open: %w: %w", path, err, errdefs.ErrNotFound)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("sandbox store %q: open: %w: %w", path, err, errdefs.ErrPermissionDenied)
	}
	return fmt.Errorf("sandbox store %q: open: %w", path, err)
}

// storeSyncDir makes the name of a new file as durable as its content.
func storeSyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Close waits for calls under way and lets go of the file.
func (s *Store) Close() error {
	if err := s.db.Close(); err != nil {
		return fmt.Errorf("sandbox store %q: close: %w", s.path, err)
	}
	return nil
}

// Create stores a new record and returns it as it was stored, with its
// timestamps.
func (s *Store) Create(ctx context.Context, sb core.Sandbox) (core.Sandbox, error) {
	fail := func(err error) (core.Sandbox, error) {
		return core.Sandbox{}, fmt.Errorf("sandbox %q: create record: %w", sb.ID, err)
	}
	ns, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return fail(err)
	}
	sb.CreatedAt = s.now().UTC()
	sb.UpdatedAt = sb.CreatedAt
	sb = storeCleaned(sb)
	if err := storeValidate(&sb); err != nil {
		return fail(err)
	}
	record, err := storeEncode(&sb)
	if err != nil {
		return fail(err)
	}
	err = s.writer.do(ctx, func(tx *bolt.Tx) error {
		if storeBucket(tx, ns).Get([]byte(sb.ID)) != nil {
			return errdefs.ErrAlreadyExists
		}
		bucket, err := storeMakeBucket(tx, ns)
		if err != nil {
			return storeFault{err}
		}
		if err := bucket.Put([]byte(sb.ID), record); err != nil {
			return storeFault{err}
		}
		return nil
	})
	if err != nil {
		return fail(err)
	}
	return storeDecode(sb.ID, record)
}

// Update changes a record: the fields named by the paths ("labels",
// "labels.<key>", "extensions", "extensions.<name>", "spec", "runtime"), or
// without paths all of these. A named label or extension that sb does not have
// is removed. The runtime's name stays.
func (s *Store) Update(ctx context.Context, sb core.Sandbox, fieldpaths ...string) (core.Sandbox, error) {
	fail := func(err error) (core.Sandbox, error) {
		return core.Sandbox{}, fmt.Errorf("sandbox %q: update record: %w", sb.ID, err)
	}
	ns, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return fail(err)
	}
	if len(fieldpaths) == 0 {
		fieldpaths = []string{"labels", "extensions", "spec", "runtime"}
	}
	var record []byte
	err = s.writer.do(ctx, func(tx *bolt.Tx) error {
		bucket := storeBucket(tx, ns)
		old, err := storeGet(bucket, sb.ID)
		if err != nil {
			return err
		}
		updated, err := storeApply(old, sb, fieldpaths)
		if err != nil {
			return err
		}
		updated.UpdatedAt = s.now().UTC()
		updated = storeCleaned(updated)
		if err := storeValidate(&updated); err != nil {
			return err
		}
		if record, err = storeEncode(&updated); err != nil {
			return err
		}
		if err := bucket.b.Put([]byte(sb.ID), record); err != nil {
			return storeFault{err}
		}
		return nil
	})
	if err != nil {
		return fail(err)
	}
	return storeDecode(sb.ID, record)
}

// storeApply gives old with the named fields of sb.
func storeApply(old, sb core.Sandbox, fieldpaths []string) (core.Sandbox, error) {
	updated := old
	updated.Labels = maps.Clone(old.Labels)
	updated.Extensions = maps.Clone(old.Extensions)
	for _, path := range fieldpaths {
		if key, ok := strings.CutPrefix(path, "labels."); ok {
			if updated.Labels == nil {
				updated.Labels = make(map[string]string)
			}
			updated.Labels[key] = sb.Labels[key]
			continue
		}
		if key, ok := strings.CutPrefix(path, "extensions."); ok {
			if updated.Extensions == nil {
				updated.Extensions = make(map[string]typeurl.Any)
			}
			updated.Extensions[key] = sb.Extensions[key]
			continue
		}
		switch path {
		case "labels":
			updated.Labels = maps.Clone(sb.Labels)
		case "extensions":
			updated.Extensions = maps.Clone(sb.Extensions)
		case "spec":
			updated.Spec = sb.Spec
		case "runtime":
			if sb.Runtime.Name != old.Runtime.Name {
				return updated, fmt.Errorf("runtime name %q cannot become %q: %w", old.Runtime.Name, sb.Runtime.Name, errdefs.ErrInvalidArgument)
			}
			updated.Runtime = sb.Runtime
		default:
			return updated, fmt.Errorf("field %q cannot be updated, only labels, extensions, spec and runtime: %w", path, errdefs.ErrInvalidArgument)
		}
	}
	return updated, nil
}

// Get returns the record of a sandbox.
func (s *Store) Get(ctx context.Context, id string) (core.Sandbox, error) {
	ns, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return core.Sandbox{}, fmt.Errorf("sandbox %q: get record: %w", id, err)
	}
	var sb core.Sandbox
	err = s.db.View(func(tx *bolt.Tx) error {
		var err error
		sb, err = storeGet(storeBucket(tx, ns), id)
		return err
	})
	if err != nil {
		return core.Sandbox{}, fmt.Errorf("sandbox %q: get record: %w", id, err)
	}
	return sb, nil
}

// List returns the records that match any of the filters, all without a
// filter, sorted by ID. Filters know the fields id, labels.<key>, sandboxer
// and runtime.name.
func (s *Store) List(ctx context.Context, filter ...string) ([]core.Sandbox, error) {
	ns, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return nil, fmt.Errorf("list sandbox records: %w", err)
	}
	match, err := filters.ParseAll(filter...)
	if err != nil {
		return nil, fmt.Errorf("list sandbox records: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	var list []core.Sandbox
	err = s.db.View(func(tx *bolt.Tx) error {
		return storeBucket(tx, ns).forEach(func(id string, record []byte) error {
			sb, err := storeDecode(id, record)
			if err != nil {
				return fmt.Errorf("sandbox %q: %w", id, err)
			}
			if match.Match(storeAdaptor(&sb)) {
				list = append(list, sb)
			}
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("list sandbox records: %w", err)
	}
	return list, nil
}

// Delete removes a record, even one that cannot be decoded.
func (s *Store) Delete(ctx context.Context, id string) error {
	ns, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return fmt.Errorf("sandbox %q: delete record: %w", id, err)
	}
	err = s.writer.do(ctx, func(tx *bolt.Tx) error {
		bucket := storeBucket(tx, ns)
		if bucket.Get([]byte(id)) == nil {
			return errdefs.ErrNotFound
		}
		if err := bucket.b.Delete([]byte(id)); err != nil {
			return storeFault{err}
		}
		// A namespace is there for as long as it has sandboxes.
		if key, _ := bucket.b.Cursor().First(); key == nil {
			if err := tx.Bucket(storeKeyRecords).DeleteBucket([]byte(ns)); err != nil {
				return storeFault{err}
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("sandbox %q: delete record: %w", id, err)
	}
	return nil
}

// ForEach calls fn with each record of each namespace, as they were when it
// was called; fn may use the store. An error of fn ends it. Records that
// cannot be decoded are passed over, kept, and reported at the end.
func (s *Store) ForEach(ctx context.Context, fn func(namespace string, sb core.Sandbox) error) error {
	type entry struct {
		namespace string
		sb        core.Sandbox
	}
	var (
		entries []entry
		broken  []error
	)
	err := s.db.View(func(tx *bolt.Tx) error {
		records := tx.Bucket(storeKeyRecords)
		return records.ForEachBucket(func(ns []byte) error {
			return storeBucket(tx, string(ns)).forEach(func(id string, record []byte) error {
				sb, err := storeDecode(id, record)
				if err != nil {
					broken = append(broken, fmt.Errorf("sandbox %q in namespace %q: read record: %w", id, ns, err))
					return nil
				}
				entries = append(entries, entry{string(ns), sb})
				return nil
			})
		})
	})
	if err != nil {
		return fmt.Errorf("sandbox store %q: read: %w", s.path, err)
	}
	for e := range slices.Values(entries) {
		if err := ctx.Err(); err != nil {
			return errors.Join(append(broken, err)...)
		}
		if err := fn(e.namespace, e.sb); err != nil {
			return errors.Join(append(broken, err)...)
		}
	}
	return errors.Join(broken...)
}
