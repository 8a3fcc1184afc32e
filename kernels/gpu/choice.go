package gpu

import (
	"fmt"
	"slices"
	"strings"

	"kvtune/kernels"
)

// choice is a way to run a case: which kernel, and how its work is dealt to blocks.
type choice struct {
	// kernel is, of decode, "" or "direct" or "deep" (decode.cu); of prefill, "mma" (prefill.cu), "wgmma" (prefill90.cu),
	// "stay" or "bulk" (prefill90p.cu, with small copies or bulk ones); "" of everything else.
	kernel string
	// blocks is how many a multiprocessor runs at a time, at most. 0 is as many as it can, for all but decode.
	blocks int
	// least is the units of tokens that a block of decode attends to at least.
	least int
}

// name is the choice in words.
func (c choice) name() kernels.Choice {
	var words []string
	if c.kernel != "" {
		words = append(words, "kernel="+c.kernel)
	}
	if c.blocks != 0 {
		words = append(words, fmt.Sprintf("blocks=%d,least=%d", c.blocks, c.least))
	}
	return kernels.Choice(strings.Join(words, ","))
}

// bulkSlots is the block size from which on a box of a bulk copy is whole rows of the swizzle's pattern.
const bulkSlots = 8

// choicesOf lists what a case can be run with; rows says that its cache lies in rows of 16-bit numbers, and has which
// images there are. The first is what was measured first, and is taken where nothing is known.
func choicesOf(c kernels.Case, rows bool, has func(source string) bool) []choice {
	switch c.Op {
	case kernels.OpDecode:
		list := []choice{{"", 2, 4}, {"", 1, 4}}
		for _, kernel := range []string{"direct", "deep"} {
			list = append(list, choice{kernel, 2, 4}, choice{kernel, 2, 8}, choice{kernel, 1, 4}, choice{kernel, 2, 1})
		}
		return list
	case kernels.OpPrefill:
		list := []choice{{kernel: "mma"}}
		if rows && has("prefill90") {
			list = slices.Insert(list, 0, choice{kernel: "wgmma"})
		}
		if rows && has("prefill90p") {
			list = append(list, choice{kernel: "stay"})
			if c.BlockSize >= bulkSlots {
				list = append(list, choice{kernel: "bulk"})
			}
		}
		return list
	}
	return []choice{{}}
}
