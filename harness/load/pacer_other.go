//go:build !linux

package load

import "time"

// pacer waits for moments as precisely as the runtime's timers do.
type pacer struct{}

func newPacer() (*pacer, error) { return &pacer{}, nil }

func (*pacer) wait(t time.Time) { time.Sleep(time.Until(t)) }

func (*pacer) close() {}
