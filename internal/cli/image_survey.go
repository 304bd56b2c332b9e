package cli

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

type archiveKind string

const (
	ociArchive    archiveKind = "OCI archive"
	dockerArchive archiveKind = "Docker archive"
	rootfsTar     archiveKind = "root filesystem"
)

// bounds limit what an archive may make us read and store; it comes from anywhere.
type bounds struct {
	entries int
	total   int64 // bytes after decompression, and of files with their holes
}

var defaultBounds = bounds{entries: 4 << 20, total: 256 << 30}

const (
	// maxManifest bounds the JSON documents of an archive, which are read into memory.
	maxManifest = 8 << 20
	maxNameLen  = 4096
)

// surveyed is what one pass over an archive found out.
type surveyed struct {
	kind    archiveKind
	file    digest.Digest // of the file as it is
	size    int64
	content digest.Digest // of the tar in it
	gzip    bool
	zstd    bool
}

// survey reads a tar once, without storing anything: it tells what it is, and
// refuses what is too large, cut off, has names that lead out of it, or blobs
// that are not what their names say.
func survey(ctx context.Context, r io.Reader, limit bounds) (surveyed, error) {
	var s surveyed
	raw := &countingReader{Reader: r, digester: digest.Canonical.Digester(), ctx: ctx}
	stream, err := compression.DecompressStream(raw)
	if err != nil {
		return s, fmt.Errorf("not a tar, compressed or not: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	defer stream.Close()
	switch stream.GetCompression() {
	case compression.Gzip:
		s.gzip = true
	case compression.Zstd:
		s.zstd = true
	}
	plain := &countingReader{Reader: stream, digester: digest.Canonical.Digester(), limit: limit.total, ctx: ctx}
	if s.kind, err = surveyTar(plain, limit); err != nil {
		return s, err
	}
	// What follows the end marker belongs to the layer too, and counts.
	for _, rest := range []io.Reader{plain, raw} {
		if _, err := io.Copy(io.Discard, rest); err != nil {
			return s, notWhole(err)
		}
	}
	s.file, s.size, s.content = raw.digester.Digest(), raw.n, plain.digester.Digest()
	return s, nil
}

func surveyTar(r io.Reader, limit bounds) (archiveKind, error) {
	var layout, manifest bool
	entries, files := 0, int64(0)
	for tr := tar.NewReader(r); ; entries++ {
		header, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return "", notWhole(err)
		}
		if entries >= limit.entries {
			return "", fmt.Errorf("more than %d entries: %w", limit.entries, errdefs.ErrResourceExhausted)
		}
		if err := checkEntry(header); err != nil {
			return "", err
		}
		// Holes take no room in the tar, and do in the store.
		if header.Size > limit.total-files {
			return "", fmt.Errorf("files of more than %d bytes: %w", limit.total, errdefs.ErrResourceExhausted)
		}
		if header.Typeflag == tar.TypeReg || header.Typeflag == tar.TypeGNUSparse {
			files += header.Size
		}
		name := path.Clean(header.Name)
		if err := checkBlob(name, header, tr); err != nil {
			return "", err
		}
		switch name {
		case ocispec.ImageLayoutFile:
			layout = true
		case "manifest.json":
			manifest = true
		}
	}
	switch {
	case entries == 0:
		return "", fmt.Errorf("no files in it: %w", errdefs.ErrInvalidArgument)
	case layout:
		return ociArchive, nil
	case manifest:
		return dockerArchive, nil
	}
	return rootfsTar, nil
}

// notWhole is an error of reading an archive: the archive's fault, unless it is too
// large or the caller has given up.
func notWhole(err error) error {
	if errors.Is(err, errdefs.ErrResourceExhausted) || errors.Is(err, context.Canceled) {
		return err
	}
	return fmt.Errorf("not a whole tar: %w: %w", err, errdefs.ErrInvalidArgument)
}

func checkEntry(h *tar.Header) error {
	if len(h.Name) > maxNameLen || len(h.Linkname) > maxNameLen {
		return fmt.Errorf("entry %.64q...: name longer than %d bytes: %w", h.Name, maxNameLen, errdefs.ErrInvalidArgument)
	}
	for part := range strings.SplitSeq(h.Name, "/") {
		if part == ".." {
			return fmt.Errorf("entry %q leads out of the archive: %w", h.Name, errdefs.ErrInvalidArgument)
		}
	}
	if strings.ContainsRune(h.Name, 0) {
		return fmt.Errorf("entry %q: name with a zero byte: %w", h.Name, errdefs.ErrInvalidArgument)
	}
	return nil
}

// checkBlob compares a blob of an OCI archive with the digest it is called, and
// bounds the documents.
func checkBlob(name string, h *tar.Header, r io.Reader) error {
	switch name {
	case ocispec.ImageLayoutFile, ocispec.ImageIndexFile, "manifest.json":
		if h.Size > maxManifest {
			return fmt.Errorf("%s: %d bytes, limit %d: %w", name, h.Size, int64(maxManifest), errdefs.ErrResourceExhausted)
		}
		return nil
	}
	rest, ok := strings.CutPrefix(name, "blobs/")
	if !ok || h.Typeflag != tar.TypeReg {
		return nil
	}
	algorithm, encoded, ok := strings.Cut(rest, "/")
	want := digest.NewDigestFromEncoded(digest.Algorithm(algorithm), encoded)
	if !ok || want.Validate() != nil {
		return nil // a file of a root filesystem that happens to lie there
	}
	verifier := want.Verifier()
	if _, err := io.Copy(verifier, r); err != nil {
		return fmt.Errorf("%s: %w", name, notWhole(err))
	}
	if !verifier.Verified() {
		return fmt.Errorf("%s: its content has another digest: %w", name, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// countingReader hashes, counts and bounds what passes.
type countingReader struct {
	io.Reader
	digester digest.Digester
	n        int64
	limit    int64 // 0 for none
	ctx      context.Context
}

func (r *countingReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := r.Reader.Read(p)
	r.n += int64(n)
	if r.limit > 0 && r.n > r.limit {
		return 0, fmt.Errorf("more than %d bytes: %w", r.limit, errdefs.ErrResourceExhausted)
	}
	r.digester.Hash().Write(p[:n]) // never fails
	return n, err
}
