package manifest

import "strings"

// expand puts values in place of $(NAME), as Kubernetes does: a name that is not known
// stays as it is written, and $$ is one dollar that begins no reference.
func expand(s string, lookup func(name string) (string, bool)) string {
	var b strings.Builder
	for {
		before, after, found := strings.Cut(s, "$")
		b.WriteString(before)
		if !found {
			return b.String()
		}
		name, rest, closed := strings.Cut(strings.TrimPrefix(after, "("), ")")
		switch {
		case strings.HasPrefix(after, "$"):
			b.WriteByte('$')
			s = after[1:]
		case !strings.HasPrefix(after, "(") || !closed:
			b.WriteByte('$')
			s = after
		default:
			value, known := lookup(name)
			if !known {
				value = "$(" + name + ")"
			}
			b.WriteString(value)
			s = rest
		}
	}
}
