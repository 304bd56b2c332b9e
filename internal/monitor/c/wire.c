/* Message bodies: every read is checked against the end of the message. */
#include "monitor.h"

#include <string.h>

uint64_t get(struct in *in, int bytes)
{
	uint64_t v = 0;

	if (in->bad || in->end - in->p < bytes) {
		in->bad = true;
		return 0;
	}
	for (int i = 0; i < bytes; i++)
		v |= (uint64_t)*in->p++ << (8 * i);
	return v;
}

const char *get_string(struct in *in, size_t max)
{
	size_t len = get(in, 2);
	const char *s = (const char *)in->p;

	/* The NUL on the wire lets strings be used where they lie. */
	if (in->bad || len > max || (size_t)(in->end - in->p) < len + 1 || s[len] != 0 ||
	    memchr(s, 0, len) != NULL) {
		in->bad = true;
		return "";
	}
	in->p += len + 1;
	return s;
}

/* Checks a list of strings; *strings is left to read it again with get_string. */
unsigned get_strings(struct in *in, struct in *strings)
{
	unsigned n = get(in, 2);

	*strings = *in;
	for (unsigned i = 0; i < n && !in->bad; i++)
		get_string(in, MSG_MAX);
	return in->bad ? 0 : n;
}

bool at_end(const struct in *in)
{
	return !in->bad && in->p == in->end;
}

void put(struct out *out, uint64_t v, int bytes)
{
	put_at(out, out->n, v, bytes);
	out->n += bytes;
}

void put_at(struct out *out, size_t at, uint64_t v, int bytes)
{
	for (int i = 0; i < bytes; i++)
		out->base[at + i] = v >> (8 * i);
}

void put_string(struct out *out, const char *s)
{
	size_t len = strlen(s);

	put(out, len, 2);
	memcpy(out->base + out->n, s, len + 1);
	out->n += len + 1;
}

size_t put_room(const struct out *out)
{
	return MSG_MAX - out->n;
}
