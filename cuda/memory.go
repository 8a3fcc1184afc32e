//go:build cuda

package cuda

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
