package service

import (
	"errors"
	"fmt"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
)

func TestWireErrorsHaveOneClassAndOneText(t *testing.T) {
	cause := errors.New("config.json is torn")
	for name, tc := range map[string]struct {
		err   error
		class error
	}{
		"two wrapped": {fmt.Errorf("task %q: %w: %w", "c", cause, errdefs.ErrInvalidArgument), errdefs.ErrInvalidArgument},
		"joined":      {errors.Join(fmt.Errorf("x: %w", errdefs.ErrNotFound), cause), errdefs.ErrNotFound},
		"plain":       {cause, errdefs.ErrUnknown},
	} {
		got := errgrpc.ToNative(wireError(tc.err))
		if !errors.Is(got, tc.class) {
			t.Errorf("%s: class lost: %v", name, got)
		}
		// A second hop, as through containerd, changes nothing any more.
		if again := errgrpc.ToNative(wireError(got)); again.Error() != got.Error() {
			t.Errorf("%s: %q became %q", name, got, again)
		}
	}
	if wireError(nil) != nil {
		t.Error("nil became an error")
	}
}
