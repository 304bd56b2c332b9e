// Package libcontainerd lets an engine, such as Docker's, run containers and
// sandboxes on any containerd 2.x, or on caissond, and be told what becomes of
// them.
//
// A [Client] makes and loads containers; a [Container] runs one [Task] at a
// time; a task is the container's first [Process] and starts further ones with
// Exec. A [Sandbox] groups containers. What happens to them is told to the
// engine's [Backend].
//
// # What the backend can rely on
//
// For containers and sandboxes that a client made or loaded:
//
//   - A process that started has exactly one start and exactly one exit, with
//     the exit code and the time that the runtime saw. One that never started
//     has neither: its Start returned the error.
//   - A container's events are told one after another: create, start, exit; each
//     exec's exec-added, exec-started, exit. Every exec's exit comes before its
//     container's.
//   - Nothing is lost or told twice when the connection breaks, or when
//     containerd, or caissond with its containers, is restarted or killed: exits
//     are asked for, not only listened to.
//   - Nothing is lost or told twice when the calling program restarts. It makes a
//     new client with the same StateDir and loads its containers again; then a
//     start that it missed is told, and an exit that it missed is told, once.
//     That holds for a container that it deleted as well: LoadContainer says
//     NotFound and the rest of its events follow.
//
// An event is told when the backend has returned nil and that was written down.
// If the program is killed between these two, the event comes again, with the
// same content; that is the one way to see an event twice.
//
// If the exit of a process cannot be known, because another program deleted it
// while nobody listened, or its shim died while containerd was away, the exit has the
// code 255, the time at which that was found out, and an Error of class ErrDataLoss.
// Of processes that other programs start while the connection is away, those that
// also end meanwhile are not seen, and a task that they replace with another is told
// as created at most.
//
// Paused, resumed and oom tell a state: if the backend is behind, a pause and the
// resume after it cancel each other, and several ooms become one. What of them
// happened while the connection was away is asked for, as long as the container
// runs: one that ran out of memory and ended meanwhile has no oom.
//
// A sandbox's events are told one after another as well, but beside those of its
// containers: its exit may come before theirs.
//
// # Slow and failing backends
//
// A backend that returns an error or panics gets the same event again, after a
// time that grows from a tenth of a second to half a minute. Other containers are
// not held up: each has a goroutine of its own while it has something to tell.
// Once a container was deleted, an event that still fails is given up after a
// minute, with an error in the log.
//
// ProcessEvent may call any method but Close: a task and its container can be deleted
// while their exit is told.
//
// What waits is bounded: at most three events for each process that exists, and for
// each task one of paused or resumed and one of oom. When more than 128 events of a
// container wait, NewTask and Exec wait, too, until the backend has caught up or
// their context ends, which is ErrResourceExhausted; a backend must therefore neither
// call them from ProcessEvent without a deadline, nor have ProcessEvent wait for a
// lock that is held while they are called. Other programs, which cannot be made to
// wait, are followed up to 1024 execs and 128 tasks of a container at a time.
//
// # Errors
//
// Errors have a class of package github.com/containerd/errdefs and never are
// gRPC's. ErrUnavailable: the server could not be asked; a call that says that
// it may be repeated finds out what the first attempt did. ErrResourceExhausted,
// ErrPermissionDenied or ErrInternal is also what fails in StateDir.
package libcontainerd
