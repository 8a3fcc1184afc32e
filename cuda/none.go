//go:build !cuda

package cuda

import "fmt"

// Device is a GPU; there is none in a program that is built without the tag cuda.
type Device struct{}

// Open returns [ErrUnavailable].
func Open(int) (*Device, error) { return nil, untagged() }

// Devices returns [ErrUnavailable].
func Devices() ([]Info, error) { return nil, untagged() }

func untagged() error { return fmt.Errorf("%w: built without the tag cuda", ErrUnavailable) }
