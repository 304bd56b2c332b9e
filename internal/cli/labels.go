package cli

import (
	"crypto/rand"
	"encoding/hex"
	"time"

	"github.com/containerd/containerd/v2/pkg/identifiers"
)

// Labels of container and sandbox records.
const (
	labelSandbox = "caisson/sandbox" // the sandbox a container is in
	labelOwned   = "caisson/owned"   // "true" on a container: its sandbox goes with it; on a sandbox: the container it belongs to
	labelLog     = "caisson/log"     // the file a detached container writes to

	labelManifest = "caisson/manifest" // on a sandbox: the digest of the manifest it was applied from
	labelVolumes  = "caisson/volumes"  // on a sandbox: the directory of its volumes, which goes with it
)

// cleanupTimeout bounds what is done after a command's own context has ended.
const cleanupTimeout = 30 * time.Second

// newID makes the name of a container or sandbox that was given none.
func newID() string {
	var b [6]byte
	rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// checkID refuses what no container or sandbox can be called, before anything is made.
func checkID(kind, id string) error {
	if err := identifiers.Validate(id); err != nil {
		return advise(err, "%q cannot name a %s: use up to 76 letters and digits, with single . _ or - between them", id, kind)
	}
	return nil
}
