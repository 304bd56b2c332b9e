package config

import (
	"regexp"
	"slices"
)

var (
	// secretKey is a key of containerd's configuration whose value may be a secret:
	// registries and their proxies have passwords, tokens and headers of their own.
	secretKey = regexp.MustCompile(`(?i)passw|secret|token|auth|cred|header|private|env`)
	// userInfo is what a URL has before its host.
	userInfo = regexp.MustCompile(`://[^/@\s]+@`)
)

const redacted = "REDACTED"

// Redacted is the configuration without secrets, for who looks for a fault. It
// shares nothing with c that could be changed.
func (c Config) Redacted() Config {
	c.Network.CNIBinDirs = slices.Clone(c.Network.CNIBinDirs)
	if c.Passthrough != nil {
		c.Passthrough = redact(c.Passthrough).(map[string]any)
	}
	return c
}

func redact(value any) any {
	switch v := value.(type) {
	case map[string]any:
		out := make(map[string]any, len(v))
		for key, below := range v {
			if secretKey.MatchString(key) {
				out[key] = redacted
			} else {
				out[redactText(key)] = redact(below)
			}
		}
		return out
	case []any:
		out := make([]any, 0, len(v))
		for _, below := range v {
			out = append(out, redact(below))
		}
		return out
	case map[string]string:
		out := make(map[string]any, len(v))
		for key, below := range v {
			out[key] = below
		}
		return redact(out)
	case []string:
		out := make([]any, 0, len(v))
		for _, below := range v {
			out = append(out, below)
		}
		return redact(out)
	case string:
		return redactText(v)
	default:
		return v // numbers, switches and dates
	}
}

func redactText(s string) string { return userInfo.ReplaceAllString(s, "://"+redacted+"@") }
