//go:build !unix

package load

import "time"

func cpuTime() (used time.Duration, ok bool) { return 0, false }
