package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// maxFileSize bounds what is read: a configuration is text a person wrote.
const maxFileSize = 1 << 20

// file is the document. A pointer is nil where the file says nothing, so that
// the default stays.
type file struct {
	Root    *string `toml:"root"`
	State   *string `toml:"state"`
	Address *string `toml:"address"`
	Engine  *Engine `toml:"engine"`

	Log struct {
		Level  *string `toml:"level"`
		Format *string `toml:"format"`
	} `toml:"log"`
	Runtime struct {
		Default       *string `toml:"default"`
		Root          *string `toml:"root"`
		SystemdCgroup *bool   `toml:"systemd_cgroup"`
		CgroupParent  *string `toml:"cgroup_parent"`
	} `toml:"runtime"`
	Network struct {
		CNIConfDir *string  `toml:"cni_conf_dir"`
		CNIBinDirs []string `toml:"cni_bin_dirs"`
		Default    *string  `toml:"default"`
	} `toml:"network"`
	Containerd struct {
		Address         *string `toml:"address"`
		KeepConnections *bool   `toml:"keep_connections"`
	} `toml:"containerd"`
	Pool struct {
		Size *int `toml:"size"`
	} `toml:"pool"`
	Telemetry struct {
		Address *string `toml:"address"`
	} `toml:"telemetry"`

	// containerd's keys, typed as far as containerd types them, so that a
	// wrong type is reported with its place in this file.
	Version          *int64            `toml:"version"`
	Temp             *string           `toml:"temp"`
	Debug            map[string]any    `toml:"debug"`
	DisabledPlugins  []string          `toml:"disabled_plugins"`
	RequiredPlugins  []string          `toml:"required_plugins"`
	Plugins          map[string]any    `toml:"plugins"`
	OOMScore         *int64            `toml:"oom_score"`
	Cgroup           map[string]any    `toml:"cgroup"`
	ProxyPlugins     map[string]any    `toml:"proxy_plugins"`
	Timeouts         map[string]string `toml:"timeouts"`
	Imports          []string          `toml:"imports"`
	StreamProcessors map[string]any    `toml:"stream_processors"`
	GRPC             map[string]any    `toml:"grpc"`
	TTRPC            map[string]any    `toml:"ttrpc"`
	Metrics          map[string]any    `toml:"metrics"`
}

// Load reads the file at path over the defaults. The error of a missing file
// is of class errdefs.ErrNotFound, that of a bad one errdefs.ErrInvalidArgument.
func Load(path string) (Config, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return Config{}, fmt.Errorf("configuration file %s does not exist: %w", path, errdefs.ErrNotFound)
	}
	if err != nil {
		return Config{}, fmt.Errorf("configuration file: %w", err)
	}
	defer f.Close() //nolint:errcheck // only read from
	data, err := io.ReadAll(io.LimitReader(f, maxFileSize+1))
	if err != nil {
		return Config{}, fmt.Errorf("configuration file %s: read: %w", path, err)
	}
	if len(data) > maxFileSize {
		return Config{}, fmt.Errorf("configuration file %s: larger than %d bytes: %w", path, maxFileSize, errdefs.ErrInvalidArgument)
	}
	return Parse(path, data)
}

// Parse reads data, the content of the file at path, over the defaults.
func Parse(path string, data []byte) (Config, error) {
	var doc file
	if err := toml.NewDecoder(bytes.NewReader(data)).DisallowUnknownFields().Decode(&doc); err != nil {
		return Config{}, syntaxError(path, err)
	}
	c := Default()
	c.File = path
	doc.apply(&c)
	if err := c.checkFile(path, data); err != nil {
		return Config{}, err
	}
	c.Passthrough = doc.passthrough(filepath.Dir(path))
	return c, nil
}

// apply puts what the file says over c.
func (f *file) apply(c *Config) {
	set(&c.Root, f.Root)
	set(&c.State, f.State)
	set(&c.Address, f.Address)
	set(&c.Engine, f.Engine)
	// containerd's own way to say it holds where [log] says nothing.
	setAny(&c.Log.Level, f.Debug["level"])
	setAny(&c.Log.Format, f.Debug["format"])
	set(&c.Log.Level, f.Log.Level)
	set(&c.Log.Format, f.Log.Format)
	set(&c.Runtime.Default, f.Runtime.Default)
	set(&c.Runtime.Root, f.Runtime.Root)
	set(&c.Runtime.SystemdCgroup, f.Runtime.SystemdCgroup)
	set(&c.Runtime.CgroupParent, f.Runtime.CgroupParent)
	set(&c.Network.CNIConfDir, f.Network.CNIConfDir)
	set(&c.Network.Default, f.Network.Default)
	if f.Network.CNIBinDirs != nil {
		c.Network.CNIBinDirs = f.Network.CNIBinDirs
	}
	set(&c.Containerd.Address, f.Containerd.Address)
	set(&c.Containerd.KeepConnections, f.Containerd.KeepConnections)
	set(&c.Pool.Size, f.Pool.Size)
	set(&c.Telemetry.Address, f.Telemetry.Address)
}

func set[T any](to, from *T) {
	if from != nil {
		*to = *from
	}
}

func setAny(to *string, from any) {
	if s, ok := from.(string); ok && s != "" {
		*to = s
	}
}

// passthrough collects containerd's keys. dir is what its imports are relative to.
func (f *file) passthrough(dir string) map[string]any {
	out := map[string]any{}
	for key, value := range map[string]any{
		"debug": f.Debug, "plugins": f.Plugins, "cgroup": f.Cgroup, "proxy_plugins": f.ProxyPlugins,
		"stream_processors": f.StreamProcessors, "grpc": f.GRPC, "ttrpc": f.TTRPC, "metrics": f.Metrics,
	} {
		if m := value.(map[string]any); m != nil {
			out[key] = m
		}
	}
	for key, value := range map[string]*int64{"version": f.Version, "oom_score": f.OOMScore} {
		if value != nil {
			out[key] = *value
		}
	}
	for key, value := range map[string][]string{
		"disabled_plugins": f.DisabledPlugins, "required_plugins": f.RequiredPlugins, "imports": absolute(f.Imports, dir),
	} {
		if value != nil {
			out[key] = value
		}
	}
	if f.Temp != nil {
		out["temp"] = *f.Temp
	}
	if f.Timeouts != nil {
		out["timeouts"] = f.Timeouts
	}
	if len(out) == 0 {
		return nil
	}
	return out
}

func absolute(paths []string, dir string) []string {
	var out []string
	for _, p := range paths {
		if !filepath.IsAbs(p) {
			p = filepath.Join(dir, p)
		}
		out = append(out, p)
	}
	return out
}

// checkFile checks the values the file set, so that an error can name the line.
// Values it did not set are the defaults, or come later.
func (c *Config) checkFile(path string, data []byte) error {
	lines := keyLines(data)
	for _, s := range c.settings() {
		line, ok := lines[s.key]
		if !ok {
			continue
		}
		if err := s.check(); err != nil {
			return fmt.Errorf("%s, line %d: %s: %v: %w", path, line, s.key, err, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// keyLines maps each dotted key of a valid document to its line.
func keyLines(data []byte) map[string]int {
	lines := map[string]int{}
	var (
		p     unstable.Parser
		table []string
	)
	p.Reset(data)
	for p.NextExpression() {
		e := p.Expression()
		switch e.Kind {
		case unstable.Table, unstable.ArrayTable:
			table, _ = keyOf(&p, e)
		case unstable.KeyValue:
			key, line := keyOf(&p, e)
			full := strings.Join(append(append([]string(nil), table...), key...), ".")
			// The decoder takes keys in any case.
			lines[strings.ToLower(full)] = line
			if v := e.Value(); v.Kind == unstable.InlineTable {
				inlineLines(lines, strings.ToLower(full), v, line)
			}
		}
	}
	return lines
}

func inlineLines(lines map[string]int, prefix string, table *unstable.Node, line int) {
	it := table.Children()
	for it.Next() {
		if n := it.Node(); n.Kind == unstable.KeyValue {
			key := prefix
			for k := n.Key(); k.Next(); {
				key += "." + strings.ToLower(string(k.Node().Data))
			}
			lines[key] = line
		}
	}
}

func keyOf(p *unstable.Parser, e *unstable.Node) (key []string, line int) {
	for it := e.Key(); it.Next(); {
		if line == 0 {
			line = p.Shape(it.Node().Raw).Start.Line
		}
		key = append(key, string(it.Node().Data))
	}
	return key, line
}

// syntaxError says in words what the decoder found, and where.
func syntaxError(path string, err error) error {
	var missing *toml.StrictMissingError
	if errors.As(err, &missing) {
		var found []string
		for _, e := range missing.Errors {
			line, _ := e.Position()
			found = append(found, fmt.Sprintf("line %d: unknown key %q", line, strings.Join(e.Key(), ".")))
		}
		return fmt.Errorf("%s, %s; caissond's own keys are %s: %w",
			path, strings.Join(found, ", "), strings.Join(ownKeys(), ", "), errdefs.ErrInvalidArgument)
	}
	var bad *toml.DecodeError
	if errors.As(err, &bad) {
		line, column := bad.Position()
		return fmt.Errorf("%s, line %d, column %d: %s: %w",
			path, line, column, strings.TrimPrefix(bad.Error(), "toml: "), errdefs.ErrInvalidArgument)
	}
	return fmt.Errorf("%s: %v: %w", path, err, errdefs.ErrInvalidArgument)
}

func ownKeys() []string {
	c := Config{Network: Network{CNIBinDirs: []string{""}}}
	var keys []string
	for _, s := range c.settings() {
		keys = append(keys, s.key)
	}
	return append(keys, "runtime.systemd_cgroup")
}
