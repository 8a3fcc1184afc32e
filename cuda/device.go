//go:build cuda

package cuda

// #cgo LDFLAGS: -ldl -lpthread
// #include "driver.h"
import "C"

import (
	"errors"
	"fmt"
	"runtime"
)

// Device is an open GPU with its primary context and one stream, on which everything happens in order. It is used by
// one goroutine at a time; that goroutine need not be locked to a thread.
type Device struct {
	Info    Info
	device  C.CUdevice
	context C.CUcontext
	stream  C.CUstream
	events  []C.CUevent // grown by the longest series
}

// Devices describes the devices that can be used.
func Devices() ([]Info, error) {
	if why := C.kv_load(); why != nil {
		return nil, fmt.Errorf("%w: no driver: %s", ErrUnavailable, C.GoString(why))
	}
	if code := C.cuInit(0); code != C.CUDA_SUCCESS {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, failure("cuInit", code))
	}
	var n C.int
	if err := failure("cuDeviceGetCount", C.cuDeviceGetCount(&n)); err != nil {
		return nil, err
	}
	if n == 0 {
		return nil, fmt.Errorf("%w: the driver finds none", ErrUnavailable)
	}
	list := make([]Info, n)
	for i := range list {
		var d C.CUdevice
		if err := failure("cuDeviceGet", C.cuDeviceGet(&d, C.int(i))); err != nil {
			return nil, err
		}
		var err error
		if list[i], err = describe(d); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// Open opens the device with a number of 0 or more, as [Devices] lists them.
func Open(index int) (*Device, error) {
	list, err := Devices()
	if err != nil {
		return nil, err
	}
	if index < 0 || index >= len(list) {
		return nil, fmt.Errorf("%w: there is no device %d, only 0 to %d", ErrUnavailable, index, len(list)-1)
	}
	d := &Device{Info: list[index]}
	if err := failure("cuDeviceGet", C.cuDeviceGet(&d.device, C.int(index))); err != nil {
		return nil, err
	}
	if err := failure("cuDevicePrimaryCtxRetain", C.cuDevicePrimaryCtxRetain(&d.context, d.device)); err != nil {
		return nil, err
	}
	err = d.do(func() error {
		return failure("cuStreamCreate", C.cuStreamCreate(&d.stream, C.CU_STREAM_NON_BLOCKING))
	})
	if err != nil {
		return nil, errors.Join(err, d.release())
	}
	return d, nil
}

func (d *Device) release() error {
	return failure("cuDevicePrimaryCtxRelease", C.cuDevicePrimaryCtxRelease(d.device))
}

// Close waits for the device and gives it back. Memory and modules that were not closed go with the context.
func (d *Device) Close() error {
	err := d.do(func() error {
		err := d.synchronize()
		for _, e := range d.events {
			err = errors.Join(err, failure("cuEventDestroy", C.cuEventDestroy(e)))
		}
		return errors.Join(err, failure("cuStreamDestroy", C.cuStreamDestroy(d.stream)))
	})
	return errors.Join(err, d.release())
}

// Wait returns when everything that was enqueued is done. Failures of kernels appear here.
func (d *Device) Wait() error { return d.do(d.synchronize) }

// synchronize is Wait on a thread that has the context.
func (d *Device) synchronize() error {
	return failure("cuStreamSynchronize", C.cuStreamSynchronize(d.stream))
}

// do calls f on a thread that has the device's context.
func (d *Device) do(f func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := failure("cuCtxSetCurrent", C.cuCtxSetCurrent(d.context)); err != nil {
		return err
	}
	return f()
}

func describe(d C.CUdevice) (info Info, err error) {
	var version C.int
	if err := failure("cuDriverGetVersion", C.cuDriverGetVersion(&version)); err != nil {
		return info, err
	}
	info.Driver = int(version)
	var name [256]C.char
	if err := failure("cuDeviceGetName", C.cuDeviceGetName(&name[0], C.int(len(name)), d)); err != nil {
		return info, err
	}
	info.Name = C.GoString(&name[0])
	var id C.CUuuid
	if err := failure("cuDeviceGetUuid", C.cuDeviceGetUuid(&id, d)); err != nil {
		return info, err
	}
	var u [len(id.bytes)]byte
	for i, b := range id.bytes {
		u[i] = byte(b)
	}
	info.UUID = fmt.Sprintf("GPU-%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
	var memory C.size_t
	if err := failure("cuDeviceTotalMem", C.cuDeviceTotalMem(&memory, d)); err != nil {
		return info, err
	}
	info.Memory = int64(memory)
	var l2 int
	for _, a := range []struct {
		attribute C.CUdevice_attribute
		value     *int
	}{
		{C.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, &info.Compute[0]},
		{C.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, &info.Compute[1]},
		{C.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, &info.Processors},
		{C.CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE, &l2},
		{C.CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, &info.SharedPerBlock},
		{C.CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR, &info.SharedPerProcessor},
	} {
		var value C.int
		if err := failure("cuDeviceGetAttribute", C.cuDeviceGetAttribute(&value, a.attribute, d)); err != nil {
			return info, err
		}
		*a.value = int(value)
	}
	info.L2 = int64(l2)
	return info, nil
}

// failure is the [Error] of a code, nil for CUDA_SUCCESS.
func failure(call string, code C.CUresult) error {
	if code == C.CUDA_SUCCESS {
		return nil
	}
	e := &Error{Call: call, Code: int(code), Name: "unknown code", Meaning: "unknown to this driver"}
	var text *C.char
	if C.cuGetErrorName(code, &text) == C.CUDA_SUCCESS {
		e.Name = C.GoString(text)
	}
	if C.cuGetErrorString(code, &text) == C.CUDA_SUCCESS {
		e.Meaning = C.GoString(text)
	}
	return e
}
