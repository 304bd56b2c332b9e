/* A growing array in its own mapping: no malloc, and pages return when it shrinks. */
#define _GNU_SOURCE
#include "monitor.h"

#include <string.h>
#include <sys/mman.h>

enum { PAGE = 4096 };

bool table_reserve(struct table *t, size_t n)
{
	size_t want = t->cap ? t->cap : PAGE;
	void *p;

	while (want < n * t->elem)
		want *= 2;
	if (want == t->cap)
		return true;
	if (t->cap == 0)
		p = mmap(NULL, want, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	else
		p = mremap(t->base, t->cap, want, MREMAP_MAYMOVE);
	if (p == MAP_FAILED)
		return false;
	t->base = p;
	t->cap = want;
	return true;
}

void *table_at(struct table *t, size_t i)
{
	return t->base + i * t->elem;
}

void *table_add(struct table *t)
{
	if (!table_reserve(t, t->n + 1))
		return NULL;
	return memset(table_at(t, t->n++), 0, t->elem);
}

void table_del(struct table *t, size_t i)
{
	void *p;

	t->n--;
	memmove(table_at(t, i), table_at(t, i + 1), (t->n - i) * t->elem);
	if (t->cap > PAGE && t->n * t->elem < t->cap / 4) {
		p = mremap(t->base, t->cap, t->cap / 2, MREMAP_MAYMOVE);
		if (p != MAP_FAILED) {
			t->base = p;
			t->cap /= 2;
		}
	}
}

void table_free(struct table *t)
{
	if (t->cap)
		munmap(t->base, t->cap);
	t->n = t->cap = 0;
}
