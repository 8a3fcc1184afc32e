// Package cuda is the only CUDA code in C that the program has: devices, streams, memory, modules from an image, and
// the loop that enqueues and times a whole series of launches in one C call, so that neither cgo nor Go's scheduler is
// within a timed interval. The driver is found when the program runs, and none of CUDA is needed to build.
//
// It is built with the tag cuda. Without the tag, without a driver and without a device, [Open] and [Devices] return
// [ErrUnavailable], and there is nothing else to call. Every other failure is an [Error].
package cuda

import (
	"errors"
	"fmt"
)

// ErrUnavailable says that this program cannot use a GPU here. What wraps it says why.
var ErrUnavailable = errors.New("no CUDA device can be used")

// Error is a CUDA call that failed.
type Error struct {
	Call    string // the driver's function, cuMemAlloc for example
	Code    int    // of CUresult
	Name    string // of the code: CUDA_ERROR_OUT_OF_MEMORY
	Meaning string // the driver's own words
}

func (e *Error) Error() string {
	return fmt.Sprintf("%s failed: %s (%d): %s", e.Call, e.Name, e.Code, e.Meaning)
}

// Info describes a device. Sizes are in bytes.
type Info struct {
	Name               string
	UUID               string
	Driver             int    // the CUDA version that the driver supports, 13000 for 13.0
	Compute            [2]int // compute capability: 9, 0
	Processors         int    // streaming multiprocessors
	L2                 int64
	Memory             int64
	SharedPerBlock     int // dynamic shared memory that one block can have at most
	SharedPerProcessor int // of one multiprocessor
}
