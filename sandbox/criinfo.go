package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"

	core "github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// criMetadata is the extension of a record in which CRI keeps what it knows of a
// pod, as JSON.
const criMetadata = "metadata"

// criInfo is the part of Info that CRI passes on, under CRI's names: it drops all
// others but the pid. `crictl inspectp` shows it, and scripts read it.
type criInfo struct {
	ProcessStatus      string          `json:"processStatus"`
	NetNamespaceClosed bool            `json:"netNamespaceClosed"`
	RuntimeType        string          `json:"runtimeType,omitempty"`
	RuntimeSpec        *specs.Spec     `json:"runtimeSpec,omitempty"`
	Config             json.RawMessage `json:"config,omitempty"`
	CNIResult          json.RawMessage `json:"cniResult,omitempty"`
	SandboxMetadata    json.RawMessage `json:"sandboxMetadata,omitempty"`
}

func (b *box) criInfo(ctx context.Context) (criInfo, error) {
	rec := b.snapshot()
	info := criInfo{ProcessStatus: "deleted", RuntimeSpec: b.ociSpec()}
	if rec.State == Ready {
		info.ProcessStatus = "running"
	}
	if rec.NetNSPath != "" {
		_, err := os.Stat(rec.NetNSPath)
		info.NetNamespaceClosed = errors.Is(err, fs.ErrNotExist)
	}
	sb, err := b.c.cfg.Store.Get(ctx, rec.ID)
	if errdefs.IsNotFound(err) {
		return info, nil // its record is in containerd's store
	}
	if err != nil {
		return criInfo{}, err
	}
	info.RuntimeType = sb.Runtime.Name
	info.addMetadata(sb)
	return info, nil
}

// addMetadata takes what CRI has written into the record, as it is.
func (i *criInfo) addMetadata(sb core.Sandbox) {
	any, ok := sb.Extensions[criMetadata]
	if !ok {
		return
	}
	var versioned struct {
		Metadata struct{ Config, CNIResult json.RawMessage }
	}
	if json.Unmarshal(any.GetValue(), &versioned) != nil {
		return // of another client, which may keep anything there
	}
	i.SandboxMetadata = any.GetValue()
	i.Config, i.CNIResult = versioned.Metadata.Config, versioned.Metadata.CNIResult
}
