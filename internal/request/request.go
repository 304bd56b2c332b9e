// Package request tells a call of a client that a killed daemon left unanswered
// from one that comes for the first time.
//
// A client whose connection outlives the daemon does not know that anything
// happened: it waits for the answer, and the next daemon is given the request
// once more. What the first one did of it must not be done twice, and must not be
// taken for a client's mistake. So whatever changes something writes the ID of
// the request down with the change, and compares.
package request

import "context"

// Request is one call of a client. The zero value is one that will not come again.
type Request struct {
	// ID is never used for another request; empty if the request cannot come again.
	ID string
	// Again is set if an earlier daemon was given the request already.
	Again bool
	// Noted is what that daemon noted last about it.
	Noted []byte
	note  func([]byte) error
}

// New returns a request whose notes are kept by a function.
func New(id string, again bool, noted []byte, note func([]byte) error) Request {
	return Request{ID: id, Again: again, Noted: noted, note: note}
}

// MaxNote bounds a note.
const MaxNote = 192

// Note keeps a few bytes for the next daemon, in place of the last note, should
// this one be killed before it has answered. Of two notes of the same length, a kill
// leaves the one or the other.
func (r Request) Note(text []byte) error {
	if r.note == nil {
		return nil
	}
	return r.note(text)
}

// Is tells whether this is the request of that ID once more.
func (r Request) Is(id string) bool { return r.Again && r.ID == id }

type key struct{}

// With returns a context of the request's.
func With(ctx context.Context, r Request) context.Context { return context.WithValue(ctx, key{}, r) }

// From is the request that a context belongs to.
func From(ctx context.Context) Request {
	r, _ := ctx.Value(key{}).(Request)
	return r
}
