//go:build cuda

package cuda

// #include <stdlib.h>
// #include "driver.h"
import "C"

import (
	"bytes"
	"fmt"
	"unsafe"
)

// Module is compiled code that a device has loaded.
type Module struct {
	device *Device
	module C.CUmodule
}

// Function is a kernel of a module. It has one parameter: a structure, by value.
type Function struct {
	device   *Device
	name     string
	function C.CUfunction
}

// Module loads an image: a fat binary, a cubin or PTX, as nvcc writes it. The driver picks the code for the device.
func (d *Device) Module(image []byte) (*Module, error) {
	m := &Module{device: d}
	text := C.CBytes(append(bytes.Clone(image), 0)) // PTX is text that ends in a zero
	defer C.free(text)
	return m, d.do(func() error { return failure("cuModuleLoadData", C.cuModuleLoadData(&m.module, text)) })
}

// Close unloads the module, once nothing that was enqueued uses it.
func (m *Module) Close() error {
	if err := m.device.Wait(); err != nil {
		return err
	}
	return m.device.do(func() error { return failure("cuModuleUnload", C.cuModuleUnload(m.module)) })
}

// Function finds the kernel of a name, which the source declares extern "C".
func (m *Module) Function(name string) (*Function, error) {
	f := &Function{device: m.device, name: name}
	text := C.CString(name)
	defer C.free(unsafe.Pointer(text))
	return f, m.device.do(func() error {
		return failure("cuModuleGetFunction of "+name, C.cuModuleGetFunction(&f.function, m.module, text))
	})
}

// Resources is what a block of a kernel takes.
type Resources struct {
	Registers int // of a thread
	Local     int // bytes of a thread: registers that were spilled, arrays
	Shared    int // bytes of a block that are declared in the source
}

// Resources says what the compiled kernel takes.
func (f *Function) Resources() (r Resources, err error) {
	err = f.device.do(func() error {
		for _, a := range []struct {
			attribute C.CUfunction_attribute
			value     *int
		}{
			{C.CU_FUNC_ATTRIBUTE_NUM_REGS, &r.Registers},
			{C.CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES, &r.Local},
			{C.CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, &r.Shared},
		} {
			var value C.int
			code := C.cuFuncGetAttribute(&value, a.attribute, f.function)
			if err := failure("cuFuncGetAttribute of "+f.name, code); err != nil {
				return err
			}
			*a.value = int(value)
		}
		return nil
	})
	return r, err
}

// Occupancy lets a block of the kernel have dynamic shared memory (without this call at most 48 KiB), and says how many
// blocks of that many threads one multiprocessor runs at a time.
func (f *Function) Occupancy(threads, shared int) (blocks int, err error) {
	if limit := f.device.Info.SharedPerBlock; shared > limit {
		return 0, fmt.Errorf("%s wants %d bytes of shared memory: a block of %s has at most %d", f.name, shared,
			f.device.Info.Name, limit)
	}
	err = f.device.do(func() error {
		code := C.cuFuncSetAttribute(f.function, C.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, C.int(shared))
		if code != C.CUDA_SUCCESS {
			return failure("cuFuncSetAttribute of "+f.name, code)
		}
		var n C.int
		code = C.cuOccupancyMaxActiveBlocksPerMultiprocessor(&n, f.function, C.int(threads), C.size_t(shared))
		blocks = int(n)
		return failure("cuOccupancyMaxActiveBlocksPerMultiprocessor of "+f.name, code)
	})
	return blocks, err
}
