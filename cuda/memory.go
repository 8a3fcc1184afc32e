//go:build cuda

package cuda

// #include <stdlib.h>
// #include "driver.h"
import "C"

import (
	"fmt"
	"unsafe"
)

// Memory is memory of a device, or pinned memory of the host, which a device reads and writes at the rate of its link.
type Memory struct {
	// Address is where it begins, 256-byte aligned, in the one address space of device and host.
	Address uint64
	Bytes   int64
	device  *Device
	host    unsafe.Pointer // of pinned memory
}

// Alloc allocates memory of the device; its content is not defined. bytes is 1 or more.
func (d *Device) Alloc(bytes int64) (*Memory, error) {
	m := &Memory{Bytes: bytes, device: d}
	return m, d.do(func() error {
		var at C.CUdeviceptr
		code := C.cuMemAlloc(&at, C.size_t(bytes))
		m.Address = uint64(at)
		return failure(fmt.Sprintf("cuMemAlloc of %d bytes", bytes), code)
	})
}

// AllocHost allocates pinned memory of the host.
func (d *Device) AllocHost(bytes int64) (*Memory, error) {
	m := &Memory{Bytes: bytes, device: d}
	return m, d.do(func() error {
		code := C.cuMemHostAlloc(&m.host, C.size_t(bytes), C.CU_MEMHOSTALLOC_PORTABLE)
		m.Address = uint64(uintptr(m.host))
		return failure(fmt.Sprintf("cuMemHostAlloc of %d bytes", bytes), code)
	})
}

// Free gives the memory back, once nothing that was enqueued uses it.
func (m *Memory) Free() error {
	if err := m.device.Wait(); err != nil {
		return err
	}
	return m.device.do(func() error {
		if m.host != nil {
			return failure("cuMemFreeHost", C.cuMemFreeHost(m.host))
		}
		return failure("cuMemFree", C.cuMemFree(C.CUdeviceptr(m.Address)))
	})
}

// Upload waits for the device and copies data to the memory's beginning; data is not longer than the memory.
func (m *Memory) Upload(data []byte) error {
	if int64(len(data)) > m.Bytes {
		return fmt.Errorf("upload of %d bytes to memory of %d", len(data), m.Bytes)
	}
	if len(data) == 0 {
		return nil
	}
	if err := m.device.Wait(); err != nil {
		return err
	}
	if m.host != nil {
		copy(unsafe.Slice((*byte)(m.host), m.Bytes), data)
		return nil
	}
	return m.device.do(func() error {
		code := C.cuMemcpyHtoD(C.CUdeviceptr(m.Address), unsafe.Pointer(&data[0]), C.size_t(len(data)))
		return failure("cuMemcpyHtoD", code)
	})
}

// Download waits for the device and returns a copy of the memory's first bytes.
func (m *Memory) Download(bytes int64) ([]byte, error) {
	if bytes > m.Bytes {
		return nil, fmt.Errorf("download of %d bytes from memory of %d", bytes, m.Bytes)
	}
	data := make([]byte, bytes)
	if bytes == 0 {
		return data, nil
	}
	if err := m.device.Wait(); err != nil {
		return nil, err
	}
	if m.host != nil {
		copy(data, unsafe.Slice((*byte)(m.host), bytes))
		return data, nil
	}
	return data, m.device.do(func() error {
		code := C.cuMemcpyDtoH(unsafe.Pointer(&data[0]), C.CUdeviceptr(m.Address), C.size_t(bytes))
		return failure("cuMemcpyDtoH", code)
	})
}

// TensorMap describes an array to the engine that copies boxes of it to shared memory (a CUtensorMap of the driver).
type TensorMap [128]byte

// TensorMap describes an array of 16-bit numbers in four dimensions, the innermost first: their sizes, the bytes from
// one to the next in all but the innermost (multiples of 16), and the box that a copy brings, in rows of at most 64
// numbers that the engine swizzles in 128 bytes. An error that wraps [ErrUnavailable] says that the driver has no such
// thing.
func (d *Device) TensorMap(address uint64, sizes [4]uint64, strides [3]uint64, box [4]uint32) (TensorMap, error) {
	const size, alignment = len(TensorMap{}), 64
	memory := C.malloc(C.size_t(size + alignment))
	defer C.free(memory)
	at := unsafe.Add(memory, alignment-uintptr(memory)%alignment)
	var result C.CUresult
	var m TensorMap
	err := d.do(func() error {
		known := C.kv_tensor_map(at, C.CUdeviceptr(address), (*C.ulonglong)(&sizes[0]), (*C.ulonglong)(&strides[0]),
			(*C.uint)(&box[0]), &result)
		if known == 0 {
			return fmt.Errorf("%w: the driver has no cuTensorMapEncodeTiled", ErrUnavailable)
		}
		return failure("cuTensorMapEncodeTiled", result)
	})
	copy(m[:], unsafe.Slice((*byte)(at), size))
	return m, err
}
