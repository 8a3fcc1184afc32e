//go:build !linux

package engine

func newAlarm() (alarm, error) { return newRuntimeAlarm(), nil }
