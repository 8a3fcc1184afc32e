package load

import (
	"os"
	"runtime/debug"
)

// Quiet lets the heap of this process grow to five times what is alive before the garbage collector runs, unless the
// environment sets GOGC, and returns what undoes it. A collection takes a quarter of the processors for some
// milliseconds, in which requests that are due may wait. The programs that send requests call it; packages do not.
func Quiet() (undo func()) {
	if os.Getenv("GOGC") != "" {
		return func() {}
	}
	before := debug.SetGCPercent(400)
	return func() { debug.SetGCPercent(before) }
}
