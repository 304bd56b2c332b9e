package monitor

import (
	"errors"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// TestHolderIsFiltered makes holders do a system call as somebody would who has
// taken them over.
func TestHolderIsFiltered(t *testing.T) {
	for name, tc := range map[string]struct {
		call uint64
		dies bool
	}{
		"reap":          {unix.SYS_WAIT4, false},
		"open a file":   {unix.SYS_OPEN, true},
		"a new process": {unix.SYS_CLONE, true},
		"signal":        {unix.SYS_KILL, true},
		"namespaces":    {unix.SYS_SETNS, true},
		"32 bit":        {0x40000000 | unix.SYS_WRITE, true},
	} {
		t.Run(name, func(t *testing.T) {
			c := startMonitor(t)
			exits := mustSubscribe(t, c)
			p, err := c.Hold(testContext(t), HoldRequest{NewIPC: true})
			if err != nil {
				t.Fatal(err)
			}
			st, err := inject(p.Pid, tc.call)
			if err != nil {
				t.Fatal(err)
			}
			if died := st.Signaled() && st.Signal() == unix.SIGSYS; died != tc.dies {
				t.Errorf("status %#x after the call", st)
			}
			if tc.dies {
				if e := nextExit(t, exits); e.Kind != Holder || e.Status.Signal() != unix.SIGSYS {
					t.Errorf("exit %+v", e)
				}
			}
		})
	}
}

// inject lets a process that sleeps in a system call do another one first, with
// arguments that mean nothing, and tells how it was after that.
func inject(pid int, call uint64) (st unix.WaitStatus, err error) {
	runtime.LockOSThread() // a tracer is a thread
	defer runtime.UnlockOSThread()
	if err := unix.PtraceAttach(pid); err != nil {
		return 0, err
	}
	if _, err := unix.Wait4(pid, &st, unix.WALL, nil); err != nil {
		return 0, err
	}
	var regs unix.PtraceRegs
	err = unix.PtraceGetRegs(pid, &regs)
	// Its registers are those behind the call: two bytes back is the instruction.
	regs.Rip -= 2
	regs.Rax, regs.Orig_rax = call, ^uint64(0)
	regs.Rdi, regs.Rsi, regs.Rdx, regs.R10 = ^uint64(0), 0, unix.WNOHANG, 0
	if err := errors.Join(err, unix.PtraceSetRegs(pid, &regs)); err != nil {
		return 0, err
	}
	for range 3 { // it stops before and after calls, also the one it was in
		if err := unix.PtraceSyscall(pid, 0); err != nil {
			return 0, err
		}
		if _, err := unix.Wait4(pid, &st, unix.WALL, nil); err != nil {
			return 0, err
		}
		if st.Signaled() {
			return st, nil
		}
	}
	return st, unix.PtraceDetach(pid)
}
