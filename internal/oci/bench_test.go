package oci

import (
	"testing"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"

	"caisson/internal/ceiling"
)

// BenchmarkJoin is what becomes of a container's specification between two runtimes.
func BenchmarkJoin(b *testing.B) {
	ctx := namespaces.WithNamespace(b.Context(), "bench")
	s, err := oci.GenerateSpec(ctx, nil, &containers.Container{ID: "c"})
	if err != nil {
		b.Fatal(err)
	}
	s.Process.Args = []string{"true"}
	dir := b.TempDir()
	defer ceiling.Allocs(b, 350)()
	for b.Loop() {
		if err := WriteSpec(dir, s); err != nil {
			b.Fatal(err)
		}
		read, err := ReadSpec(dir)
		if err != nil {
			b.Fatal(err)
		}
		member.Join(read)
	}
}
