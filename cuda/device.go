//go:build cuda

package cuda

// #cgo CFLAGS: -I${SRCDIR}/compat -Wno-deprecated-declarations
// #cgo LDFLAGS: -lcuda
// #include "driver.h"
import "C"

import (
	"errors"
	"fmt"
	"reflect"
	"runtime"
	"unsafe"

	"gorgonia.org/cu"
)

// Device is an open GPU with its primary context and one stream, on which everything happens in order. It is used by
// one goroutine at a time; that goroutine need not be locked to a thread.
type Device struct {
	Info    Info
	device  cu.Device
	context cu.CUContext
	stream  cu.Stream
	events  []cu.Event // grown by the longest series
}

// Devices describes the devices that can be used.
func Devices() ([]Info, error) {
	if code := C.kv_initialize(); code != C.CUDA_SUCCESS {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, failure("cuInit", code))
	}
	n, err := cu.NumDevices()
	if err != nil {
		return nil, check("cuDeviceGetCount", err)
	}
	if n == 0 {
		return nil, fmt.Errorf("%w: the driver finds none", ErrUnavailable)
	}
	list := make([]Info, n)
	for i := range list {
		if list[i], err = describe(cu.Device(i)); err != nil {
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
	if d.device, err = cu.GetDevice(index); err != nil {
		return nil, check("cuDeviceGet", err)
	}
	if d.context, err = d.device.RetainPrimaryCtx(); err != nil {
		return nil, check("cuDevicePrimaryCtxRetain", err)
	}
	err = d.do(func() (err error) {
		d.stream, err = cu.MakeStream(cu.NonBlocking)
		return check("cuStreamCreate", err)
	})
	if err != nil {
		return nil, errors.Join(err, check("cuDevicePrimaryCtxRelease", d.device.ReleasePrimaryCtx()))
	}
	return d, nil
}

// Close waits for the device and gives it back. Memory and modules that were not closed go with the context.
func (d *Device) Close() error {
	err := d.do(func() error {
		err := check("cuStreamSynchronize", d.stream.Synchronize())
		for i := range d.events {
			err = errors.Join(err, check("cuEventDestroy", cu.DestroyEvent(&d.events[i])))
		}
		return errors.Join(err, check("cuStreamDestroy", d.stream.Destroy()))
	})
	return errors.Join(err, check("cuDevicePrimaryCtxRelease", d.device.ReleasePrimaryCtx()))
}

// Wait returns when everything that was enqueued is done. Failures of kernels appear here.
func (d *Device) Wait() error {
	return d.do(func() error { return check("cuStreamSynchronize", d.stream.Synchronize()) })
}

// do calls f on a thread that has the device's context.
func (d *Device) do(f func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := cu.SetCurrentContext(d.context); err != nil {
		return check("cuCtxSetCurrent", err)
	}
	return f()
}

func describe(d cu.Device) (info Info, err error) {
	info.Driver = cu.Version()
	if info.Name, err = d.Name(); err != nil {
		return info, check("cuDeviceGetName", err)
	}
	id, err := d.UUID()
	if err != nil {
		return info, check("cuDeviceGetUuid", err)
	}
	info.UUID = "GPU-" + id.String()
	if info.Memory, err = d.TotalMem(); err != nil {
		return info, check("cuDeviceTotalMem", err)
	}
	var l2 int
	for _, a := range []struct {
		attribute cu.DeviceAttribute
		value     *int
	}{
		{cu.ComputeCapabilityMajor, &info.Compute[0]},
		{cu.ComputeCapabilityMinor, &info.Compute[1]},
		{cu.MultiprocessorCount, &info.Processors},
		{cu.L2CacheSize, &l2},
		{C.CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, &info.SharedPerBlock},
		{cu.MaxSharedMemoryPerMultiprocessor, &info.SharedPerProcessor},
	} {
		if *a.value, err = d.Attribute(a.attribute); err != nil {
			return info, check("cuDeviceGetAttribute", err)
		}
	}
	info.L2 = int64(l2)
	return info, nil
}

// check makes an [Error] of what gorgonia.org/cu returned, whose type is a CUresult that it does not export.
func check(call string, err error) error {
	if err == nil {
		return nil
	}
	if v := reflect.ValueOf(err); v.CanInt() {
		return failure(call, C.CUresult(v.Int()))
	}
	return fmt.Errorf("%s: %w", call, err)
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

// The handles of gorgonia.org/cu are structures around one pointer that they do not export.

func (d *Device) cStream() C.CUstream { return *(*C.CUstream)(unsafe.Pointer(&d.stream)) }
