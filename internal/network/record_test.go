package network

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
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

// FuzzCached: what the CNI library kept on disk, through a restart of the host, is
// refused, or names the container and what is to be given to its plugins.
func FuzzCached(f *testing.F) {
	config := base64.StdEncoding.EncodeToString([]byte(`{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"bridge"}]}`))
	f.Add([]byte(`{"kind":"cniCacheV1","containerId":"caisson-a","config":"` + config + `","ifName":"eth0","networkName":"n","cniArgs":[["IgnoreUnknown","1"]],"capabilityArgs":{"portMappings":[{"hostPort":80,"containerPort":8080,"protocol":"tcp"}]},"result":{}}`))
	f.Add([]byte(`{"containerId":"caisson-a-b","config":"` + config + `"}`))
	f.Add([]byte(`{"containerId":"caisson-a","config":"e30=","cniArgs":[[],["a","b","c"]]}`))
	f.Add([]byte(`{"containerId":1}`))
	f.Add([]byte(`null`))
	m, err := New(Config{NetNSDir: f.TempDir(), CNIConfDir: f.TempDir(), CNIBinDirs: []string{f.TempDir()}})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, cache []byte) {
		record, err := cachedRecord(cache)
		if err != nil {
			if !errdefs.IsDataLoss(err) {
				t.Errorf("class of %v", err)
			}
			return
		}
		p, err := m.plugins(record)
		if err != nil {
			if !errdefs.IsFailedPrecondition(err) {
				t.Errorf("class of %v", err)
			}
			return
		}
		if p.record.ContainerID == "" || len(p.cni.GetConfig().Networks) == 0 {
			t.Errorf("plugins of %+v", p.record)
		}
		p.options()
	})
}

// TestCachedNeighbour: the pattern of a name fits files of others, whose names begin
// alike; those are theirs.
func TestCachedNeighbour(t *testing.T) {
	m, err := New(Config{NetNSDir: t.TempDir(), CNIConfDir: t.TempDir(), CNIBinDirs: []string{t.TempDir()}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(cniCache, 0o700); err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("test%d", os.Getpid())
	config := base64.StdEncoding.EncodeToString([]byte(`{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"bridge"}]}`))
	for _, owner := range []string{name + "-b", name} {
		file := filepath.Join(cniCache, "n-"+containerID(owner)+"-eth0")
		if err := os.WriteFile(file, []byte(`{"containerId":"`+containerID(owner)+`","config":"`+config+`"}`), 0o600); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.Remove(file) })
		p, err := m.recorded(name)
		switch {
		case err != nil:
			t.Error(err)
		case owner != name && p != nil:
			t.Errorf("%q has what is cached for %q", name, p.record.ContainerID)
		case owner == name && (p == nil || p.record.ContainerID != containerID(name)):
			t.Errorf("%q: %+v", name, p)
		}
	}
}
