package cuda

import (
	"errors"
	"testing"
)

// TestUnavailable holds in every build: without the tag, and with it on a machine without a driver or without a device.
func TestUnavailable(t *testing.T) {
	list, err := Devices()
	if err == nil {
		t.Skipf("there is a device: %v", list)
	}
	if !errors.Is(err, ErrUnavailable) {
		t.Errorf("Devices: %v, want ErrUnavailable", err)
	}
	if _, err := Open(0); !errors.Is(err, ErrUnavailable) {
		t.Errorf("Open: %v, want ErrUnavailable", err)
	}
	t.Log(err)
}

func TestErrorTellsCallCodeAndMeaning(t *testing.T) {
	err := error(&Error{"cuMemAlloc", 2, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"})
	if got, want := err.Error(), "cuMemAlloc failed: CUDA_ERROR_OUT_OF_MEMORY (2): out of memory"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
