// Package chaos runs whole pod lives through CRI while everything that may die is
// killed at random, the disk fills up and process IDs run out.
//
// Sixteen workers each run one pod after the other. A container writes lines, which
// the test feeds it, to its log and to a file on a volume, and notes there with
// which code it ends. So at its end its log and its exit code can be compared with
// what it says itself, byte by byte. Whoever was killed on purpose is written down
// (see excuse_test.go), and nothing else is excused. At the end nothing may be left.
//
// The seed decides what the workers do and what is done to them; a failure prints it.
// `make chaos` runs it: CHAOS_DURATION is how long, CHAOS_SEED repeats a run.
package chaos
