package sandbox

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strconv"

	"github.com/containerd/errdefs"

	"caisson/internal/statefile"
)

// A migration brings a sandbox's run-time directory from one schema to the next. It
// may be repeated: a daemon can be killed at any step of it.
type migration func(dir string) error

// runMigrations lead to the schema of the records that this daemon writes: the first
// one from schema 1, which is that of a sandbox.json without a number, to 2, and so
// on. A change of records that adds a field, whose zero value means what earlier
// daemons did, needs none: those ignore it.
var runMigrations []migration

// schemaOf is the schema that the last of the migrations leads to.
func schemaOf(steps []migration) int { return 1 + len(steps) }

// readBox reads the record in a sandbox's directory, which it brings up to the schema
// of this daemon first. FailedPrecondition: a later daemon has written it.
func readBox(dir string, steps []migration) (rec boxRecord, err error) {
	path := filepath.Join(dir, recordName)
	var has struct{ Schema int }
	if err := statefile.Read(path, &has); err != nil {
		return rec, err
	}
	schema := max(has.Schema, 1)
	if known := schemaOf(steps); schema > known {
		return rec, fmt.Errorf("%s has schema %d, this caissond knows up to %d: run the later caissond that wrote it: %w",
			path, schema, known, errdefs.ErrFailedPrecondition)
	}
	for _, step := range steps[schema-1:] {
		if err := step(dir); err != nil {
			return rec, fmt.Errorf("%s: from schema %d to %d: %w", dir, schema, schema+1, err)
		}
		schema++
		if err := setSchema(path, schema); err != nil {
			return rec, err
		}
	}
	err = statefile.Read(path, &rec)
	return rec, err
}

// setSchema notes the schema in a record without knowing what else is in there.
func setSchema(path string, schema int) error {
	var rec map[string]json.RawMessage
	if err := statefile.Read(path, &rec); err != nil {
		return err
	}
	rec["Schema"] = json.RawMessage(strconv.Itoa(schema))
	return statefile.Write(path, rec)
}
