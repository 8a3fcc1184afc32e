//go:build !linux

package load

import "time"

// sleepUntil waits for a moment, as precisely as the runtime's timers do.
func sleepUntil(t time.Time) { time.Sleep(time.Until(t)) }
