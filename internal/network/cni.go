package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	gocni "github.com/containerd/go-cni"
	"golang.org/x/sys/unix"

	"caisson/internal/fault"
)

// cniTimeout bounds one run of all plugins, beside the caller's context.
const cniTimeout = time.Minute

// cniRecord is what plugins are given, kept in <name>.cni on a tmpfs: DEL must
// get the same as ADD.
type cniRecord struct {
	ContainerID string
	Config      json.RawMessage // a CNI configuration list
	Args        map[string]string
	Ports       []PortMapping
	// Adding is set while ADD is under way: a daemon that finds it was not there to
	// see the end, and plugins may still be running.
	Adding bool `json:",omitempty"`
}

// plugins is one network attachment.
type plugins struct {
	record cniRecord
	dirs   []string
	cni    gocni.CNI
}

// configured reads the CNI configuration, as it is now: there is nothing to
// reload and nothing to restart when it changes.
func (m *Manager) configured(req Request) (*plugins, error) {
	missing := func() error {
		return fmt.Errorf("no CNI configuration in %s: put a *.conflist there (for example 10-bridge.conflist, for the plugins in %s), or choose network %q or %q: %w",
			m.cfg.CNIConfDir, strings.Join(m.cfg.CNIBinDirs, ", "), None, Host, errdefs.ErrFailedPrecondition)
	}
	cni, err := gocni.New(gocni.WithPluginConfDir(m.cfg.CNIConfDir), gocni.WithPluginDir(m.cfg.CNIBinDirs))
	if err != nil {
		return nil, err
	}
	switch err := cni.Load(gocni.WithDefaultConf); {
	case gocni.IsCNINotInitialized(err), errors.Is(err, fs.ErrNotExist):
		return nil, missing()
	case err != nil:
		// go-cni does not wrap what it found.
		if entries, dirErr := os.ReadDir(m.cfg.CNIConfDir); dirErr != nil || len(entries) == 0 {
			return nil, missing()
		}
		return nil, fmt.Errorf("CNI configuration in %s: %w: %w", m.cfg.CNIConfDir, err, errdefs.ErrFailedPrecondition)
	}
	networks := cni.GetConfig().Networks
	if len(networks) == 0 {
		return nil, missing()
	}
	list := networks[0].Config
	for _, p := range list.Plugins {
		if !m.hasPlugin(p.Network.Type) {
			// Found out by running the list, this would be too late: DEL, too,
			// stops at a plugin that is missing.
			return nil, fmt.Errorf("CNI network %q of %s needs the plugin %q, which is not in %s: install it there: %w",
				list.Name, m.cfg.CNIConfDir, p.Network.Type, strings.Join(m.cfg.CNIBinDirs, " or "), errdefs.ErrFailedPrecondition)
		}
	}
	if len(req.Ports) > 0 && !canMapPorts(list) {
		return nil, fmt.Errorf("CNI network %q of %s has no plugin with the capability portMappings: add portmap to it to map ports: %w", list.Name, m.cfg.CNIConfDir, errdefs.ErrFailedPrecondition)
	}
	return m.plugins(cniRecord{
		ContainerID: containerID(req.Name),
		Config:      json.RawMessage(list.Source),
		Args:        cniArgs(req),
		Ports:       req.Ports,
		Adding:      true,
	})
}

func (m *Manager) hasPlugin(name string) bool {
	return slices.ContainsFunc(m.cfg.CNIBinDirs, func(dir string) bool {
		info, err := os.Stat(filepath.Join(dir, name))
		return err == nil && info.Mode().IsRegular()
	})
}

func canMapPorts(list *gocni.NetworkConfList) bool {
	for _, p := range list.Plugins {
		if p.Network.Capabilities["portMappings"] {
			return true
		}
	}
	return false
}

// cniArgs become CNI_ARGS, a list of key=value with ";" between: what contains
// these cannot be said in it.
func cniArgs(req Request) map[string]string {
	args := map[string]string{"IgnoreUnknown": "1"}
	if req.Hostname != "" {
		args["HOSTNAME"] = req.Hostname
	}
	for k, v := range req.Labels {
		if k != "" && !strings.ContainsAny(k+v, ";=\x00") {
			args[k] = v
		}
	}
	return args
}

// recorded finds the attachment that a sandbox has, nil if it has none.
func (m *Manager) recorded(name string) (*plugins, error) {
	b, err := os.ReadFile(m.recordPath(name))
	if errors.Is(err, fs.ErrNotExist) {
		return m.cached(name)
	}
	if err != nil {
		return nil, classify(err)
	}
	var record cniRecord
	if err := json.Unmarshal(b, &record); err != nil {
		return nil, fmt.Errorf("%s: %w: %w", m.recordPath(name), err, errdefs.ErrDataLoss)
	}
	return m.plugins(record)
}

// cniCache is where the CNI library keeps, on disk, what an ADD was given and
// what it gave, until the DEL.
const cniCache = "/var/lib/cni/results"

// cached finds an attachment from before a reboot: the record is gone with the
// tmpfs, but addresses are still allocated on disk.
func (m *Manager) cached(name string) (*plugins, error) {
	files, err := filepath.Glob(filepath.Join(cniCache, "*-"+containerID(name)+"-*"))
	if err != nil {
		return nil, err
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue // another sandbox's, taken down meanwhile
		}
		if err != nil {
			return nil, classify(err)
		}
		record, err := cachedRecord(b)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		// The pattern for "a" fits the files of "a-b", too.
		if record.ContainerID == containerID(name) {
			return m.plugins(record)
		}
	}
	return nil, nil
}

// cachedRecord is what the CNI library's file says that plugins were given.
// DataLoss: it does not say for which container, or cannot be read.
func cachedRecord(data []byte) (cniRecord, error) {
	var cache struct {
		ContainerID string      `json:"containerId"`
		Config      []byte      `json:"config"`
		Args        [][2]string `json:"cniArgs"`
		Caps        struct {
			Ports []PortMapping `json:"portMappings"`
		} `json:"capabilityArgs"`
	}
	if err := json.Unmarshal(data, &cache); err != nil {
		return cniRecord{}, fmt.Errorf("%w: %w", err, errdefs.ErrDataLoss)
	}
	if cache.ContainerID == "" {
		return cniRecord{}, fmt.Errorf("no container is named: %w", errdefs.ErrDataLoss)
	}
	record := cniRecord{ContainerID: cache.ContainerID, Config: cache.Config, Args: make(map[string]string), Ports: cache.Caps.Ports}
	for _, arg := range cache.Args {
		record.Args[arg[0]] = arg[1]
	}
	return record, nil
}

// containerID is what plugins know a sandbox by.
func containerID(name string) string { return "caisson-" + name }

// plugins prepares to run those of the record.
func (m *Manager) plugins(record cniRecord) (*plugins, error) {
	cni, err := gocni.New(gocni.WithPluginDir(m.cfg.CNIBinDirs))
	if err != nil {
		return nil, err
	}
	if err := cni.Load(gocni.WithConfListBytes(record.Config)); err != nil {
		return nil, fmt.Errorf("CNI configuration: %w: %w", err, errdefs.ErrFailedPrecondition)
	}
	return &plugins{record: record, dirs: m.cfg.CNIBinDirs, cni: cni}, nil
}

// saveRecord writes the record, before the first plugin runs and after the last. A
// daemon killed in the middle leaves at most a temporary file, which removeRecord
// removes.
func (m *Manager) saveRecord(name string, record cniRecord) error {
	b, err := json.Marshal(record)
	if err != nil {
		return fmt.Errorf("CNI record: %w", err)
	}
	path := m.recordPath(name)
	if err := fault.Fail("network:record", unix.ENOSPC, unix.EMFILE); err != nil {
		return classify(err)
	}
	if err := os.WriteFile(path+".tmp", b, 0o600); err != nil {
		return classify(err)
	}
	fault.Point("network:record:rename")
	if err := os.Rename(path+".tmp", path); err != nil {
		return errors.Join(classify(err), os.Remove(path+".tmp"))
	}
	return nil
}

func (m *Manager) removeRecord(name string) error {
	for _, path := range []string{m.recordPath(name) + ".tmp", m.recordPath(name)} {
		fault.Point("network:forget")
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return classify(err)
		}
	}
	return nil
}

func (p *plugins) options() []gocni.NamespaceOpts {
	opts := []gocni.NamespaceOpts{gocni.WithLabels(p.record.Args)}
	if len(p.record.Ports) > 0 {
		ports := make([]gocni.PortMapping, len(p.record.Ports))
		for i, port := range p.record.Ports {
			ports[i] = gocni.PortMapping(port)
			if port.Protocol == "" {
				ports[i].Protocol = "tcp"
			}
		}
		opts = append(opts, gocni.WithCapabilityPortMap(ports))
	}
	return opts
}

func (p *plugins) add(ctx context.Context, netNS string, result *Result) error {
	ctx, cancel := context.WithTimeout(ctx, cniTimeout)
	defer cancel()
	if err := fault.Fail("network:add", unix.ENOMEM, unix.EMFILE); err != nil {
		return fmt.Errorf("CNI: add: %w", err)
	}
	// A list runs its plugins in order; there is one list.
	r, err := p.cni.SetupSerially(ctx, p.record.ContainerID, netNS, p.options()...)
	if err != nil {
		return fmt.Errorf("CNI: add: %w", p.explain(ctx, err))
	}
	if result.Raw, err = json.Marshal(r.Raw()); err != nil {
		return fmt.Errorf("CNI: result: %w", err)
	}
	for _, raw := range r.Raw() {
		first := len(result.Interfaces)
		at := make(map[int]int) // index in raw to index in result
		for i, itf := range raw.Interfaces {
			if itf.Sandbox != "" { // otherwise it is one of the host
				at[i] = len(result.Interfaces)
				result.Interfaces = append(result.Interfaces, Interface{Name: itf.Name, MAC: itf.Mac})
			}
		}
		for _, ip := range raw.IPs {
			i, ok := first, len(result.Interfaces) > first
			if ip.Interface != nil {
				i, ok = at[*ip.Interface]
			}
			if !ok {
				continue
			}
			itf := &result.Interfaces[i]
			itf.Addresses = append(itf.Addresses, ip.Address.String())
			if ip.Gateway != nil {
				itf.Gateways = append(itf.Gateways, ip.Gateway.String())
			}
			result.Addresses = append(result.Addresses, ip.Address.IP.String())
		}
	}
	return nil
}

// del frees what the plugins gave; without a namespace ("") they do what they
// can on the host, which is to free addresses and rules.
func (p *plugins) del(ctx context.Context, netNS string) error {
	ctx, cancel := context.WithTimeout(ctx, cniTimeout)
	defer cancel()
	if err := fault.Fail("network:del", unix.ENOMEM, unix.EMFILE); err != nil {
		return fmt.Errorf("CNI: delete: %w", err)
	}
	if err := p.cni.Remove(ctx, p.record.ContainerID, netNS, p.options()...); err != nil {
		return fmt.Errorf("CNI: delete: %w", p.explain(ctx, err))
	}
	return nil
}

// explain gives plugins' errors, which are text, a class and a next step.
func (p *plugins) explain(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("%w: %w", err, ctx.Err())
	case strings.Contains(err.Error(), "failed to find plugin"):
		return fmt.Errorf("%w (install the CNI plugins into %s): %w", err, strings.Join(p.dirs, " or "), errdefs.ErrFailedPrecondition)
	}
	return err
}
