package undo

import (
	"context"
	"errors"
	"slices"
	"testing"
)

func TestRunIsLastInFirstOutAndComplete(t *testing.T) {
	var s Stack
	var order []string
	boom := errors.New("boom")
	for _, name := range []string{"a", "b", "c"} {
		s.Add(name, func(context.Context) error {
			order = append(order, name)
			if name == "b" {
				return boom
			}
			return nil
		})
	}
	err := s.Run(t.Context())
	if !errors.Is(err, boom) || err.Error() != "undo b: boom" {
		t.Errorf("error: %v", err)
	}
	if want := []string{"c", "b", "a"}; !slices.Equal(order, want) {
		t.Errorf("order %v, want %v", order, want)
	}
	if err := s.Run(t.Context()); err != nil || len(order) != 3 {
		t.Errorf("second run: %v, steps %v", err, order)
	}
}

func TestRunOutlivesTheCaller(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var s Stack
	s.Add("check", func(ctx context.Context) error { return ctx.Err() })
	if err := s.Run(ctx); err != nil {
		t.Errorf("a cancelled caller cancelled the clean-up: %v", err)
	}
}
