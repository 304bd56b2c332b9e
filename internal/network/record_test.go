package network

import (
	"os"
	"testing"

	"github.com/containerd/errdefs"
)

// FuzzRecord: the record of a network that plugins made is refused, or names what is
// to be given to them.
func FuzzRecord(f *testing.F) {
	f.Add([]byte(`{"ContainerID":"caisson-a","Config":{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"bridge"}]},"Args":{"A":"b"},"Ports":[{"HostPort":80}]}`))
	f.Add([]byte(`{"Config":{"name":"n","plugins":[]}}`))
	f.Add([]byte(`{"Config":[]}`))
	f.Add([]byte(`null`))
	m, err := New(Config{NetNSDir: f.TempDir(), CNIConfDir: f.TempDir(), CNIBinDirs: []string{f.TempDir()}})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, record []byte) {
		if err := os.WriteFile(m.recordPath("a"), record, 0o600); err != nil {
			t.Fatal(err)
		}
		p, err := m.recorded("a")
		if err != nil && !errdefs.IsDataLoss(err) && !errdefs.IsFailedPrecondition(err) {
			t.Errorf("class of %v", err)
		}
		if (err == nil) != (p != nil) {
			t.Errorf("%v, %v", p, err)
		}
	})
}
