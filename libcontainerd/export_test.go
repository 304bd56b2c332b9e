package libcontainerd

// LedgerSize is how many things the ledger of a container has in it; 0 if there is none.
func LedgerSize(c Client, id string) int {
	l := c.(*client).ledger(containers, id)
	if l == nil {
		return 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 1 + len(l.runs) + len(l.untold) + len(l.gone)
	for _, r := range l.runs {
		n += len(r.execs) + len(r.stdio)
	}
	return n
}
