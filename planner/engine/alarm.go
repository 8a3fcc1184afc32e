package engine

import "time"

// alarm waits until a moment. Only the step loop waits; ring may be called from any goroutine, once.
type alarm interface {
	// wait returns at t, or at once when ring was called.
	wait(t time.Time) error
	ring() error
	close() error
}

// runtimeAlarm is as precise as the runtime's timers are.
type runtimeAlarm struct {
	rung chan struct{}
}

func newRuntimeAlarm() runtimeAlarm { return runtimeAlarm{make(chan struct{})} }

func (a runtimeAlarm) wait(t time.Time) error {
	timer := time.NewTimer(time.Until(t))
	defer timer.Stop()
	select {
	case <-a.rung:
	case <-timer.C:
	}
	return nil
}

func (a runtimeAlarm) ring() error {
	close(a.rung)
	return nil
}

func (runtimeAlarm) close() error { return nil }
