// Package leak finds what a daemon left on the machine: processes, mounts,
// cgroups, network namespaces, links and files.
//
// Take a Snapshot before the daemon starts and ask New for what is there beside
// it afterwards. Other things happen on a machine, too: a process, mount or
// cgroup counts only if it mentions the token, a name that the caller made up
// and put into the daemon's directories, namespaces and bridge. Everything else
// counts if it is new, unless it has the token of another daemon.
package leak

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TokenPrefix begins every token, which ends with digits (as os.MkdirTemp has it).
const TokenPrefix = "cais"

var tokens = regexp.MustCompile(TokenPrefix + `[0-9]+`)

// Snapshot is what was there at one moment, each thing described by a line that
// a person understands.
type Snapshot struct {
	things map[string]thing
}

// thing is one object of the kernel or file system.
type thing struct {
	line    string       // what a person reads
	mention string       // where the token is looked for; "" if every new one counts
	remove  func() error // what Clean does
}

// Take makes a snapshot.
func Take() (*Snapshot, error) {
	s := &Snapshot{things: map[string]thing{}}
	for _, look := range []func() error{s.mounts, s.cgroups, s.netns, s.links, s.files, s.processes} {
		if err := look(); err != nil {
			return nil, fmt.Errorf("snapshot: %w", err)
		}
	}
	return s, nil
}

// New lists what is there now and was not in s, and belongs to token.
func (s *Snapshot) New(token string) ([]string, error) {
	things, err := s.diff(token)
	lines := make([]string, 0, len(things))
	for _, t := range things {
		lines = append(lines, t.line)
	}
	slices.Sort(lines)
	return lines, err
}

// Clean removes what New lists, as well as it can: processes are killed, mounts
// detached, cgroups, namespaces, links and files removed. It is for tests that
// failed, so that one leak does not fail the next test too.
func (s *Snapshot) Clean(token string) error {
	_, err := s.clean(token, append(volatile, "file"), func(thing) bool { return true })
	return err
}

// volatile are the kinds of things that end with the machine, in an order in
// which they can be removed.
var volatile = []string{"process", "mount", "cgroup", "netns", "link"}

// PowerOff removes of what New lists all that has the token and that a machine
// loses with its power. What it finds may hold other things for a moment: repeat
// it until it finds nothing.
func (s *Snapshot) PowerOff(token string) (found int, err error) {
	return s.clean(token, volatile, func(t thing) bool { return strings.Contains(t.line+t.mention, token) })
}

func (s *Snapshot) clean(token string, kinds []string, ours func(thing) bool) (found int, err error) {
	things, err := s.diff(token)
	errs := []error{err}
	for _, kind := range kinds {
		for _, t := range slices.Backward(things) { // children sort after their parents
			if strings.HasPrefix(t.line, kind) && t.remove != nil && ours(t) {
				found++
				errs = append(errs, t.remove())
			}
		}
	}
	return found, errors.Join(errs...)
}

func (s *Snapshot) diff(token string) ([]thing, error) {
	now, err := Take()
	if err != nil {
		return nil, err
	}
	var found []thing
	for key, t := range now.things {
		if _, old := s.things[key]; old {
			continue
		}
		if t.mention != "" && !strings.Contains(t.mention, token) {
			continue
		}
		if other := tokens.FindString(t.line); t.mention == "" && other != "" && other != token {
			continue
		}
		found = append(found, t)
	}
	slices.SortFunc(found, func(a, b thing) int { return strings.Compare(a.line, b.line) })
	return found, nil
}

// processes notes every process. Its pid may be used again, so the key has the
// start time, and what it mentions is everything that names its daemon.
func (s *Snapshot) processes() error {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return err
	}
	roots := map[string]string{} // the root mount by the mount namespace and the root directory
	for _, dir := range dirs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil || pid == os.Getpid() {
			continue
		}
		stat, err := os.ReadFile(dir + "/stat")
		if err != nil {
			continue // it ended
		}
		// The name in parentheses may hold anything; fields count from behind it.
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if len(fields) < 20 || fields[0] == "Z" {
			continue // a zombie is its parent's affair, and mentions nothing
		}
		mention := []string{}
		for _, link := range []string{"exe", "cwd", "root"} {
			target, _ := os.Readlink(dir + "/" + link) // gone or not ours to read: mentions nothing
			mention = append(mention, target)
		}
		where := mention[2]
		cmdline := ""
		for _, file := range []string{"cmdline", "environ", "cgroup"} {
			content, _ := os.ReadFile(dir + "/" + file)
			text := strings.ReplaceAll(strings.TrimRight(string(content), "\x00"), "\x00", " ")
			if file == "cmdline" {
				cmdline = text
			}
			mention = append(mention, text)
		}
		// Thousands of processes share the host's mounts, and these may be thousands.
		ns, err := os.Readlink(dir + "/ns/mnt")
		root, seen := roots[ns+where]
		if !seen || err != nil {
			content, _ := os.ReadFile(dir + "/mountinfo")
			root = string(rootMounts(content))
			roots[ns+where] = root
		}
		mention = append(mention, root)
		s.things["process "+strconv.Itoa(pid)+" "+fields[19]] = thing{
			line:    fmt.Sprintf("process %d (parent %s): %s", pid, fields[1], cmdline),
			mention: strings.Join(mention, "\n"),
			remove:  func() error { return killHard(pid) },
		}
	}
	return nil
}

// rootMounts keeps the line of the root mount: every process of the host sees
// the daemon's mounts, but only a container has its root there.
func rootMounts(info []byte) []byte {
	for line := range bytes.Lines(info) {
		if fields := bytes.Fields(line); len(fields) > 4 && string(fields[4]) == "/" {
			return line
		}
	}
	return nil
}

func (s *Snapshot) mounts() error {
	mounts, err := mountinfo.GetMounts(nil)
	if err != nil {
		return err
	}
	for _, m := range mounts {
		s.things[fmt.Sprintf("mount %d %s", m.ID, m.Mountpoint)] = thing{
			line:    fmt.Sprintf("mount %s (%s, %s)", m.Mountpoint, m.FSType, m.Source),
			mention: m.Mountpoint + "\n" + m.Source + "\n" + m.Root + "\n" + m.VFSOptions,
			remove:  func() error { return detach(m.Mountpoint) },
		}
	}
	return nil
}

func (s *Snapshot) cgroups() error {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return err
	}
	for _, m := range mounts {
		err := filepath.WalkDir(m.Mountpoint, func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // removed while we walk
			}
			if err != nil {
				return err
			}
			if !d.IsDir() {
				return nil
			}
			s.things["cgroup "+path] = thing{line: "cgroup " + path, mention: path, remove: func() error { return os.Remove(path) }}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// netns notes the network namespaces with a name; those without one live as
// long as a process in them.
func (s *Snapshot) netns() error {
	entries, err := os.ReadDir("/run/netns")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		path := "/run/netns/" + e.Name()
		s.things["netns "+path] = thing{line: "netns " + path, remove: func() error {
			return errors.Join(detach(path), os.Remove(path))
		}}
	}
	return nil
}

// Links are the machine's. They are asked for until nobody has changed them meanwhile.
func Links() ([]netlink.Link, error) {
	for {
		links, err := netlink.LinkList()
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			return links, err
		}
	}
}

func (s *Snapshot) links() error {
	links, err := Links()
	if err != nil {
		return err
	}
	names := map[int]string{}
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	for _, l := range links {
		s.things[fmt.Sprintf("link %d", l.Attrs().Index)] = thing{
			line:   fmt.Sprintf("link %s (%s) %s", l.Attrs().Name, l.Type(), names[l.Attrs().MasterIndex]),
			remove: func() error { return netlink.LinkDel(l) },
		}
	}
	return nil
}

// sharedDirs are where container software puts files when it is not told
// otherwise, with how deep to look.
var sharedDirs = map[string]int{
	"/run": 2, "/var/lib": 1, "/var/lib/cni": 3, "/var/lib/containerd": 2, "/etc/cni": 2, "/etc/containerd": 1, "/dev/shm": 1, "/var/log": 1,
}

// cniDirs are made by the library that every user of CNI has, and stay.
var cniDirs = []string{"/var/lib/cni", "/var/lib/cni/results", "/run/netns"}

// files notes what lies in the directories that all daemons share. What is left
// in the daemon's own directories is for the caller to judge (see Left).
func (s *Snapshot) files() error {
	for dir, depth := range sharedDirs {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil {
				return err
			}
			rel, err := filepath.Rel(dir, path)
			if err != nil || rel == "." || slices.Contains(cniDirs, path) {
				return err
			}
			line := "file " + path
			if strings.HasPrefix(path, "/var/lib/cni/results/") {
				// A name like cni-loopback-<container>-lo tells no daemon; the cached netns does.
				content, _ := os.ReadFile(path) // gone: then it is no leak either
				line = strings.TrimSpace(line + " " + tokens.FindString(string(content)))
			}
			s.things["file "+path] = thing{line: line, remove: func() error { return os.Remove(path) }}
			if d.IsDir() && strings.Count(rel, "/")+1 >= depth {
				return fs.SkipDir
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// Left lists the files below dir, without directories that hold none: what a
// daemon must have cleared when its last sandbox is gone. A dir that does not
// exist has none.
func Left(dir string) ([]string, error) {
	var left []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
			return nil
		}
		if err != nil {
			return err
		}
		if path != dir && !d.IsDir() {
			left = append(left, "file "+path)
		}
		return nil
	})
	return left, err
}
