//go:build cuda

package gpu

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"unsafe"

	"kvtune/cuda"
	"kvtune/kernels"
	"kvtune/kernels/layout"
)

// The structures below are the kernels' parameters, laid out as in the .cu files of the same names.

type cache struct {
	Key, Value              uint64
	Block, Head, Slot, Unit uint32 // strides in units of 16 bytes
	Shift, KVHeads          int32
}

type tokens struct {
	Cache, Narrow        cache
	Key, Value, Slots    uint64
	Tokens               int32
	KeyScale, ValueScale float32
}

type blocks struct {
	FromKey, FromValue, ToKey, ToValue, Pairs uint64
	Block, Count                              uint32
}

type arrays struct {
	FromKey, FromValue, ToKey, ToValue, Units, Sum, Scratch uint64
}

// attention is how decode and prefill begin, scales how they end.
type attention struct {
	Cache                        cache
	Query, Output, Table, Starts uint64
}

type scales struct {
	Heads, Group      int32
	Scale, ValueScale float32
}

type decode struct {
	attention
	Segments, Shares, Partial, Total, Tickets uint64
	scales
}

type directDecode struct {
	decode
	Work, First uint64
}

type prefill struct {
	attention
	Queries, Context, Parts uint64
	scales
}

// persistentPrefill has its tensor maps at multiples of 64 bytes.
type persistentPrefill struct {
	prefill
	Shares       uint64
	_            [8]byte
	Keys, Values cuda.TensorMap
}

// cacheOf is where a cache of a shape lies.
func (l *loader) cacheOf(s layout.Shape, key, value uint64) cache {
	row := uint32(s.HeadSize * s.DType.Bytes() / 16)
	size, heads := uint32(s.BlockSize), uint32(s.KVHeads)
	c := cache{Key: key, Value: value, Block: size * heads * row, Unit: 1,
		Shift: int32(math.Log2(float64(s.BlockSize))), KVHeads: int32(s.KVHeads)}
	switch s.Layout {
	case layout.NHD:
		c.Head, c.Slot = row, heads*row
	case layout.HND:
		c.Head, c.Slot = size*row, row
	case layout.XPacked:
		c.Head, c.Slot, c.Unit = size*row, 1, size
	default:
		l.do(func() error { return fmt.Errorf("%w: layout %v", kernels.ErrUnsupported, s.Layout) })
	}
	return c
}

// set is the memory of one launch: inputs and, for what is not attention, outputs. What an operation has not is nil.
type set struct{ key, value, toKey, toValue, newKey, newValue *cuda.Memory }

// loader prepares a kernel. The first error stops it.
type loader struct {
	b   *Backend
	k   *Kernel
	in  *kernels.Inputs
	err error
}

// load copies the inputs, and says how to make a step of launches for each copy.
func (l *loader) load() func(choice) [][]cuda.Op {
	c := l.in.Case
	if c.Op != kernels.OpDecode && c.Op != kernels.OpPrefill && c.Op != kernels.OpRead {
		steps := l.moves()
		return func(choice) [][]cuda.Op { return steps }
	}
	sets := l.sets(kernels.Output{})
	if c.Op == kernels.OpRead {
		steps := l.read(sets)
		return func(choice) [][]cuda.Op { return steps }
	}
	output := l.workspace(len(l.in.Query))
	l.k.poison = func() error { return output.Upload(bytes.Repeat([]byte{kernels.Poison}, int(output.Bytes))) }
	l.k.output = func() (kernels.Output, error) {
		data, err := output.Download(output.Bytes)
		if err != nil {
			return kernels.Output{}, err
		}
		out := make([]float32, len(data)/2)
		for i := range out {
			out[i] = c.QueryDType().Get(data, i)
		}
		return kernels.Output{Attention: out}, nil
	}
	var table, starts []int32
	for _, row := range l.in.Table {
		starts = append(starts, int32(len(table)))
		table = append(table, row...)
	}
	a := attention{Query: upload(l, l.in.Query), Output: output.Address, Table: upload(l, table),
		Starts: upload(l, starts)}
	s := scales{Heads: int32(c.Heads), Group: int32(c.Heads / c.KVHeads), ValueScale: l.in.ValueScale,
		Scale: float32(math.Log2E / math.Sqrt(float64(c.HeadSize)) * float64(l.in.KeyScale))}
	if c.Op == kernels.OpDecode {
		return func(o choice) [][]cuda.Op { return l.decode(sets, decode{attention: a, scales: s}, starts, o) }
	}
	queries, context := []int32{0}, []int32{}
	for _, s := range l.in.Sequences {
		queries = append(queries, queries[len(queries)-1]+int32(s.New))
		context = append(context, int32(s.Context))
	}
	p := prefill{attention: a, scales: s, Queries: upload(l, queries), Context: upload(l, context)}
	return func(o choice) [][]cuda.Op { return l.prefill(sets, p, o) }
}

func (l *loader) decode(sets []set, p decode, starts []int32, o choice) [][]cuda.Op {
	c := l.in.Case
	bytes, name := decodeBytes, l.variant("decode")
	if o.kernel != "" {
		name += "_" + o.kernel
	}
	if o.kernel == "deep" {
		bytes += decodeBytes / 2
	}
	half := tile * c.HeadSize * c.DType.Bytes()
	shared := warps * (min(bytes/(2*half), 8)*2*half + decodeRows*c.HeadSize*4)
	f, perProcessor := l.function("decode", name, warps*32, shared)
	plan := planDecode(l.in.Sequences, c.KVHeads, l.b.Info.Processors*min(perProcessor, o.blocks), o.least)
	p.Partial = l.workspace(max(plan.Parts, 1) * decodeRows * c.HeadSize * 4).Address
	p.Total = l.workspace(max(plan.Parts, 1) * decodeRows * 8).Address
	p.Tickets = upload(l, make([]int32, plan.Pairs))
	direct := directDecode{}
	if o.kernel == "" {
		p.Segments, p.Shares = upload(l, plan.Segments), upload(l, plan.Shares)
	} else {
		all, first := plan.direct(starts)
		direct.Work, direct.First = upload(l, all), upload(l, first)
	}
	return each(sets, func(s set) []cuda.Op {
		p.Cache = l.cacheOf(l.in.Shape, s.key.Address, s.value.Address)
		arguments := cuda.ArgumentsOf(p)
		if o.kernel != "" {
			direct.decode = p
			arguments = cuda.ArgumentsOf(direct)
		}
		return []cuda.Op{cuda.Launch{Function: f, Grid: [3]int{len(plan.Shares) - 1}, Block: [3]int{warps * 32},
			Shared: shared, Arguments: arguments}}
	})
}

func (l *loader) prefill(sets []set, p prefill, o choice) [][]cuda.Op {
	c := l.in.Case
	threads, shared := 3*128, 7*prefillRows*c.HeadSize*2 // queries, three stages of 128 keys and values
	source, name := "prefill90", l.variant("prefill90")
	switch o.kernel {
	case "mma":
		threads, shared = warps*32, prefillRows*c.HeadSize*2+2*warps*2*tile*c.HeadSize*c.DType.Bytes()
		source, name = "prefill", l.variant("prefill")
	case "stay":
		source, name = "prefill90p", l.variant("prefill90p")
	case "bulk":
		source, name = "prefill90p", l.variant("prefill90p")+"_bulk"
	}
	f, perProcessor := l.function(source, name, threads, shared)
	parts := planPrefill(l.in.Sequences, c.Heads)
	grid, stay := len(parts), source == "prefill90p"
	var all persistentPrefill
	if stay {
		var shares []int32
		parts, shares = planShares(parts, l.in.Sequences, l.b.Info.Processors*perProcessor)
		grid, all.Shares = len(shares)-1, upload(l, shares)
	}
	p.Parts = upload(l, parts)
	return each(sets, func(s set) []cuda.Op {
		p.Cache = l.cacheOf(l.in.Shape, s.key.Address, s.value.Address)
		arguments := cuda.ArgumentsOf(p)
		if stay {
			all.prefill = p
			if o.kernel == "bulk" {
				all.Keys, all.Values = l.boxes(p.Cache, s.key.Address), l.boxes(p.Cache, s.value.Address)
			}
			arguments = cuda.ArgumentsOf(all)
		}
		return []cuda.Op{cuda.Launch{Function: f, Grid: [3]int{grid}, Block: [3]int{threads}, Shared: shared,
			Arguments: arguments}}
	})
}

// boxes describes an array of a cache in rows for copies as prefill90p.cu makes them: 64 numbers of what a warp copies.
func (l *loader) boxes(c cache, address uint64) (m cuda.TensorMap) {
	s := l.in.Shape
	sizes := [4]uint64{uint64(s.HeadSize), uint64(s.BlockSize), uint64(s.KVHeads), uint64(s.Blocks)}
	strides := [3]uint64{uint64(c.Slot) * 16, uint64(c.Head) * 16, uint64(c.Block) * 16}
	l.do(func() (err error) {
		m, err = l.b.device.TensorMap(address, sizes, strides, [4]uint32{64, uint32(min(s.BlockSize, 32)), 1, 1})
		return err
	})
	return m
}

// read's grid is what the device runs at a time.
func (l *loader) read(sets []set) [][]cuda.Op {
	const threads = 512
	f, perProcessor := l.function("move", "read", threads, 0)
	sum, scratch := l.workspace(4), upload(l, make([]uint32, 2))
	l.k.output = func() (kernels.Output, error) {
		data, err := sum.Download(4)
		if err != nil {
			return kernels.Output{}, err
		}
		return kernels.Output{Sum: binary.LittleEndian.Uint32(data)}, nil
	}
	return each(sets, func(s set) []cuda.Op {
		p := arrays{FromKey: s.key.Address, FromValue: s.value.Address, Units: uint64(l.in.Shape.Bytes() / 32),
			Sum: sum.Address, Scratch: scratch}
		return []cuda.Op{cuda.Launch{Function: f, Grid: [3]int{l.b.Info.Processors * perProcessor}, Block: [3]int{threads},
			Arguments: cuda.ArgumentsOf(p)}}
	})
}

// moves prepares the operations that leave keys and values.
func (l *loader) moves() [][]cuda.Op {
	c, shape := l.in.Case, l.in.Shape
	sets := l.sets(l.in.Destination())
	l.k.output = func() (out kernels.Output, err error) {
		to := sets[0]
		if out.Key, err = to.toKey.Download(to.toKey.Bytes); err == nil {
			out.Value, err = to.toValue.Download(to.toValue.Bytes)
		}
		return out, err
	}
	switch c.Op {
	case kernels.OpCopy:
		f, _ := l.function("move", "copy", 256, 0)
		return each(sets, func(s set) []cuda.Op {
			units := shape.Bytes() / 32
			return l.launch(f, units, 2, cuda.ArgumentsOf(arrays{FromKey: s.key.Address, FromValue: s.value.Address,
				ToKey: s.toKey.Address, ToValue: s.toValue.Address, Units: uint64(units)}))
		})
	case kernels.OpCopyBlocks, kernels.OpSwapIn, kernels.OpSwapOut:
		return l.pairs(sets)
	}
	numbers := int64(8) // of a thread
	if c.Op == kernels.OpGather {
		numbers = int64(16 / c.DType.Bytes())
	}
	slots := l.slots()
	f, _ := l.function("move", l.variant(string(c.Op)), 256, 0)
	p := tokens{Slots: upload(l, slots), Tokens: int32(len(slots)), KeyScale: l.in.KeyScale, ValueScale: l.in.ValueScale}
	narrow := shape
	narrow.DType = layout.FP8
	return each(sets, func(s set) []cuda.Op {
		switch p.Cache = l.cacheOf(shape, s.key.Address, s.value.Address); c.Op {
		case kernels.OpAppend:
			p.Key, p.Value = s.newKey.Address, s.newValue.Address
		case kernels.OpGather:
			p.Key, p.Value = s.toKey.Address, s.toValue.Address
		case kernels.OpQuantize:
			p.Narrow = l.cacheOf(narrow, s.toKey.Address, s.toValue.Address)
		}
		rows := (int64(len(slots)) + tile - 1) / tile * tile
		return l.launch(f, rows*int64(shape.KVHeads*shape.HeadSize)/numbers, 1, cuda.ArgumentsOf(p))
	})
}

// slots lists where the tokens are that append writes, or gather and quantize read.
func (l *loader) slots() []int32 {
	var slots []int32
	if l.in.Case.Op == kernels.OpAppend {
		for _, s := range l.in.Slots {
			slots = append(slots, int32(s))
		}
		return slots
	}
	for i, s := range l.in.Sequences {
		for _, slot := range l.in.Table.SlotMapping(i, 0, s.Context, l.in.Case.BlockSize) {
			slots = append(slots, int32(slot))
		}
	}
	return slots
}

// runBytes is from which size on a copy engine moves a run of blocks to or from the host faster than a kernel: on an
// H100 with a link of 55 GB/s it moved runs of 512 KiB at 43 GB/s, and a kernel blocks of any size at 51 to 54.
const runBytes = 16 << 20

// pairs prepares whole blocks to be copied: by a kernel, or by the copy engine where a swap's blocks lie side by side.
func (l *loader) pairs(sets []set) [][]cuda.Op {
	block := l.in.Shape.Bytes() / int64(2*l.in.Shape.Blocks) // of keys, or of values
	var runs [][3]int64                                      // source, destination, blocks
	for _, p := range l.in.Pairs {
		if n := len(runs) - 1; n >= 0 && runs[n][0]+runs[n][2] == int64(p[0]) && runs[n][1]+runs[n][2] == int64(p[1]) {
			runs[n][2]++
		} else {
			runs = append(runs, [3]int64{int64(p[0]), int64(p[1]), 1})
		}
	}
	if l.in.Case.Op != kernels.OpCopyBlocks && int64(len(l.in.Pairs))*block >= int64(len(runs))*runBytes {
		return each(sets, func(s set) (ops []cuda.Op) {
			for _, r := range runs {
				from, to, bytes := uint64(r[0]*block), uint64(r[1]*block), r[2]*block
				ops = append(ops, cuda.Copy{To: s.toKey.Address + to, From: s.key.Address + from, Bytes: bytes},
					cuda.Copy{To: s.toValue.Address + to, From: s.value.Address + from, Bytes: bytes})
			}
			return ops
		})
	}
	f, _ := l.function("move", "copy_blocks", 256, 0)
	pairs := upload(l, l.in.Pairs)
	return each(sets, func(s set) []cuda.Op {
		p := blocks{FromKey: s.key.Address, FromValue: s.value.Address, ToKey: s.toKey.Address, ToValue: s.toValue.Address,
			Pairs: pairs, Block: uint32(block / 16), Count: uint32(len(l.in.Pairs))}
		return l.launch(f, int64(len(l.in.Pairs))*block/16, 2, cuda.ArgumentsOf(p))
	})
}

// launch gives every item a thread, in blocks of 256, for each of y arrays.
func (l *loader) launch(f *cuda.Function, items int64, y int, arguments cuda.Arguments) []cuda.Op {
	grid := (items + 255) / 256
	if grid > math.MaxInt32 {
		l.do(func() error { return fmt.Errorf("a grid of %d blocks: the device has at most %d", grid, math.MaxInt32) })
		return nil
	}
	return []cuda.Op{cuda.Launch{Function: f, Grid: [3]int{int(grid), y}, Block: [3]int{256}, Arguments: arguments}}
}

// sets copies the inputs, and the destination where the operation has one, to the device: once, and then on the device
// as often as it takes for launches to find them out of the L2 cache.
func (l *loader) sets(out kernels.Output) []set {
	const most, least, room = 1024, 8, 8 << 30 // room: bytes that copies beyond the cold ones may take
	c, count := l.in.Case, 1
	if cold := 4 * l.b.Info.L2; !l.b.Warm && c.Op != kernels.OpSwapIn && c.Op != kernels.OpSwapOut {
		count = int(min((cold+c.Bytes()-1)/c.Bytes(), most))
		count = max(count, int(min(room/c.Bytes(), least)))
	}
	list := make([]set, count)
	for i := range list {
		s := &list[i]
		from := list[0]
		switch c.Op {
		case kernels.OpAppend, kernels.OpCopyBlocks: // they change the cache in place
			s.toKey, s.toValue = l.copyOf(i, out.Key, from.toKey, false), l.copyOf(i, out.Value, from.toValue, false)
			s.key, s.value = s.toKey, s.toValue
			s.newKey, s.newValue = l.copyOf(i, l.in.NewKey, from.newKey, false), l.copyOf(i, l.in.NewValue, from.newValue, false)
		default:
			host := c.Op == kernels.OpSwapIn
			s.key, s.value = l.copyOf(i, l.in.Key, from.key, host), l.copyOf(i, l.in.Value, from.value, host)
			host = c.Op == kernels.OpSwapOut
			s.toKey, s.toValue = l.copyOf(i, out.Key, from.toKey, host), l.copyOf(i, out.Value, from.toValue, host)
		}
	}
	return list
}

// copyOf allocates memory for data, in the host if host is set, and fills it: from the data the first time, then from
// the first copy.
func (l *loader) copyOf(i int, data []byte, first *cuda.Memory, host bool) *cuda.Memory {
	if len(data) == 0 {
		return nil
	}
	alloc := l.b.device.Alloc
	if host {
		alloc = l.b.device.AllocHost
	}
	m := l.alloc(int64(len(data)), alloc)
	l.do(func() error {
		if i == 0 {
			return m.Upload(data)
		}
		copying, err := l.b.device.Series([][]cuda.Op{{cuda.Copy{To: m.Address, From: first.Address, Bytes: m.Bytes}}})
		if err != nil {
			return err
		}
		return errors.Join(copying.Run(1), copying.Close())
	})
	return m
}

// alloc allocates memory that is freed with the kernel.
func (l *loader) alloc(bytes int64, from func(int64) (*cuda.Memory, error)) *cuda.Memory {
	m := &cuda.Memory{}
	l.do(func() error {
		got, err := from(bytes)
		if e := (*cuda.Error)(nil); errors.As(err, &e) && e.Name == "CUDA_ERROR_OUT_OF_MEMORY" {
			err = fmt.Errorf("%w: memory does not hold the copies of the case that launches take in turn, to find none in "+
				"the L2 cache: fewer blocks, or --warm: %w", kernels.ErrUnsupported, err)
		}
		if err == nil {
			m = got
			l.k.memory = append(l.k.memory, m)
		}
		return err
	})
	return m
}

// workspace is memory of the device.
func (l *loader) workspace(bytes int) *cuda.Memory { return l.alloc(int64(bytes), l.b.device.Alloc) }

// upload copies numbers, or structures of numbers, to the device and returns their address.
func upload[T any](l *loader, list []T) uint64 {
	if len(list) == 0 {
		return 0
	}
	m := l.workspace(len(list) * int(unsafe.Sizeof(list[0])))
	l.do(func() error { return m.Upload(unsafe.Slice((*byte)(unsafe.Pointer(&list[0])), m.Bytes)) })
	return m.Address
}

// do calls f unless something has failed.
func (l *loader) do(f func() error) {
	if l.err == nil {
		l.err = f()
	}
}

// variant is the name of the kernel that an operation takes for the case's cache.
func (l *loader) variant(op string) string {
	name := fmt.Sprintf("%s_%v_%d", op, l.in.Case.DType, l.in.Case.HeadSize)
	if l.packed() {
		name += "_packed"
	}
	return name
}

// packed says whether the cache is not in rows; x-packed blocks of one slot are.
func (l *loader) packed() bool { return l.in.Case.Layout == layout.XPacked && l.in.Case.BlockSize > 1 }

// function finds a kernel, and says how many of its blocks a multiprocessor runs at a time.
func (l *loader) function(source, name string, threads, shared int) (f *cuda.Function, blocks int) {
	l.do(func() (err error) {
		if f, err = l.b.modules[source].Function(name); err != nil {
			return err
		}
		if blocks, err = f.Occupancy(threads, shared); err == nil && blocks == 0 {
			err = fmt.Errorf("%s does not fit into a multiprocessor of %s", name, l.b.Info.Name)
		}
		return err
	})
	return f, max(blocks, 1)
}

// each makes a step of every set.
func each(sets []set, step func(set) []cuda.Op) [][]cuda.Op {
	steps := make([][]cuda.Op, len(sets))
	for i, s := range sets {
		steps[i] = step(s)
	}
	return steps
}
