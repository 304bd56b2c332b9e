package task

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
)

// outsideStreams looks at the standard streams of a process.
func outsideStreams(pid int) (streams [3]outside, err error) {
	mounts, err := mountIDs(pid)
	if err != nil {
		return streams, err
	}
	for fd := range streams {
		if streams[fd], err = outsideStream(pid, fd, mounts); err != nil {
			return streams, fmt.Errorf("%s: %w", streamNames[fd], err)
		}
	}
	return streams, nil
}

func outsideStream(pid, fd int, mounts map[int]bool) (outside, error) {
	path := fmt.Sprintf("/proc/%d/fd/%d", pid, fd)
	info, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) { // closed, or a socket's
		return outside{}, nil
	}
	if err != nil {
		return outside{}, err
	}
	target, err := os.Readlink(path)
	if err != nil {
		return outside{}, err
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	named := filepath.IsAbs(target) // a pipe is none
	if kind := info.Mode().Type(); !ok || !named || kind != 0 && kind != os.ModeNamedPipe {
		return outside{}, nil
	}
	mount, err := mountID(fmt.Sprintf("/proc/%d/fdinfo/%d", pid, fd))
	if err != nil || mounts[mount] {
		return outside{}, err
	}
	return outside{Name: fmt.Sprintf("file[%x:%x]", mount, stat.Ino), Mode: info.Mode()}, nil
}

// mountIDs are those of the mounts that a process has.
func mountIDs(pid int) (map[int]bool, error) {
	table, err := os.Open(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if err != nil {
		return nil, err
	}
	defer table.Close()
	mounts, err := mountinfo.GetMountsFromReader(table, nil)
	ids := make(map[int]bool, len(mounts))
	for _, m := range mounts {
		ids[m.ID] = true
	}
	return ids, err
}

// mountID is that of the mount of an open file, of which fdinfo tells.
func mountID(fdinfo string) (int, error) {
	text, err := os.ReadFile(fdinfo)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "mnt_id:"); ok {
			return strconv.Atoi(strings.TrimSpace(value))
		}
	}
	return 0, fmt.Errorf("%s tells no mount: %w", fdinfo, errdefs.ErrNotImplemented)
}
