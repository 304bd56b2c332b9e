package task

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/containerd/errdefs"

	"caisson/internal/statefile"
	"caisson/internal/stdio"
)

// A container's standard streams are files that it has on none of its mounts: a log, or
// FIFOs of its client. CRIU leaves out of a checkpoint what it is told of as external, and
// takes a descriptor in its place when it restores. OCI runtimes see to that for pipes
// alone, so the rest is said in CRIU's configuration file, which the environment names.

// outside is a standard stream of that kind. None: the zero value.
type outside struct {
	Name string      // what CRIU calls it
	Mode os.FileMode // CRIU takes a file of the same type and permissions only
}

// outsideFile is where a checkpoint has the streams that it is without, by descriptor.
const outsideFile = "caisson-stdio.json"

var streamNames = [...]string{stdio.Stdin, stdio.Stdout, stdio.Stderr}

// outsideName is what a name has to look like: a checkpoint may come from anywhere, and
// CRIU runs programs that its configuration names.
var outsideName = regexp.MustCompile(`^file\[[0-9a-f]+:[0-9a-f]+\]$`)

// nextOutside is outsideFile until the checkpoint is whole: the directory may have
// another one in it, of before.
const nextOutside = outsideFile + ".next"

// keepOutside makes the note of leaveOut that of the checkpoint. It may be repeated.
func keepOutside(image string) error {
	err := os.Rename(filepath.Join(image, nextOutside), filepath.Join(image, outsideFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// dropOutside removes the note. It may be repeated.
func dropOutside(image string) error { return removeFiles(filepath.Join(image, nextOutside)) }

// leaveOut notes in image which streams a checkpoint of the process will be without, and
// returns the environment in which CRIU makes one.
func (p *process) leaveOut(image string) (env []string, err error) {
	streams, err := outsideStreams(p.snapshot().Pid)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(image, 0o700); err != nil {
		return nil, err
	}
	if err := statefile.Write(filepath.Join(image, nextOutside), streams); err != nil {
		return nil, err
	}
	var lines []string
	for _, s := range streams {
		if s.Name != "" {
			lines = append(lines, "external "+s.Name)
		}
	}
	return p.c.configureCRIU(lines)
}

// bringBack returns the environment in which CRIU restores the container, with files as
// the streams that its checkpoint is without. InvalidArgument: they are of another kind.
func (c *container) bringBack(files []*os.File) (env []string, err error) {
	streams, err := readOutside(filepath.Join(c.Restore.ImagePath, outsideFile))
	if err != nil {
		return nil, err
	}
	var lines []string
	seen := map[string]bool{} // stdout and stderr may be one file, CRIU opens it twice
	for fd, s := range streams {
		if s.Name == "" || seen[s.Name] {
			continue
		}
		seen[s.Name] = true
		mode := os.FileMode(0)
		if fd < len(files) && files[fd] != nil {
			info, err := files[fd].Stat()
			if err != nil {
				return nil, err
			}
			mode = info.Mode()
		}
		if mode != s.Mode {
			return nil, fmt.Errorf("%s was of the kind %v, and would be %v: restore the container with the stdio it had: %w", streamNames[fd], s.Mode, mode, errdefs.ErrInvalidArgument)
		}
		lines = append(lines, fmt.Sprintf("inherit-fd fd[%d]:%s", fd, s.Name))
	}
	return c.configureCRIU(lines)
}

// configureCRIU writes a configuration file and returns the environment that names it.
func (c *container) configureCRIU(lines []string) ([]string, error) {
	if len(lines) == 0 {
		return nil, nil
	}
	path := c.file("criu.conf")
	if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		return nil, err
	}
	return []string{"CRIU_CONFIG_FILE=" + path}, nil
}

// readOutside reads what leaveOut has noted, if anything.
func readOutside(path string) (streams [3]outside, err error) {
	info, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return streams, nil
	}
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file: %w", path, errdefs.ErrDataLoss)
	}
	if err == nil {
		err = statefile.Read(path, &streams)
	}
	for _, s := range streams {
		if err == nil && s.Name != "" && !outsideName.MatchString(s.Name) {
			err = fmt.Errorf("%s: %q is not the name of a file: %w", path, s.Name, errdefs.ErrDataLoss)
		}
	}
	return streams, err
}
