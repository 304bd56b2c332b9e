// Package undo keeps the steps that take back what a half-done operation made.
//
// Each step has a name, so that an error says which part of the clean-up
// failed. Steps run last in, first out, all of them, however many fail.
package undo

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// timeout bounds the whole clean-up; it runs even if the caller's context ended.
const timeout = 30 * time.Second

// Try does what nobody will ask for again, up to four times in a quarter of a
// second: what fails for want of memory, room or descriptors often works a moment
// later.
func Try(ctx context.Context, f func() error) error {
	for pause := 10 * time.Millisecond; ; pause *= 4 {
		err := f()
		if err == nil || pause > 200*time.Millisecond {
			return err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return err
		}
	}
}

// Stack is a list of steps. The zero value is ready; it is not safe for
// concurrent use.
type Stack struct {
	steps []step
}

type step struct {
	name string
	run  func(context.Context) error
}

// Add puts a step on top. What is added last is undone first.
func (s *Stack) Add(name string, run func(context.Context) error) {
	s.steps = append(s.steps, step{name, run})
}

// Run undoes every step and returns their errors joined. The context's values
// are kept, its end is not: clean-up after a cancelled call must still happen.
// Run empties the stack, so a second call does nothing.
func (s *Stack) Run(ctx context.Context) error {
	if len(s.steps) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout)
	defer cancel()
	var errs []error
	for i := len(s.steps) - 1; i >= 0; i-- {
		if err := s.steps[i].run(ctx); err != nil {
			errs = append(errs, fmt.Errorf("undo %s: %w", s.steps[i].name, err))
		}
	}
	s.steps = nil
	return errors.Join(errs...)
}
