package planner

import (
	"fmt"
	"slices"
	"strconv"

	"kvtune/harness"
	"kvtune/harness/vllmflags"
	"kvtune/planner/cost"
)

// changesBetween lists the flags whose values differ, in vLLM's order.
func (p *planning) changesBetween(from, to harness.EngineArgs) []Change {
	changes := []Change{}
	for _, f := range p.flags {
		a, b := vllmflags.Get(from, f.Name), vllmflags.Get(to, f.Name)
		if a != b {
			changes = append(changes, Change{Flag: f.Name, From: a, To: b, Modelled: f.Modelled, Note: p.caveat(f, b)})
		}
	}
	return changes
}

// caveat says what the prediction leaves out of a flag's effect at a value.
func (p *planning) caveat(f vllmflags.Flag, value string) string {
	switch {
	case !f.Modelled:
		return "emitted but not modelled: the prediction does not know its effect"
	case f.Name == "block_size":
		size, _ := strconv.Atoi(value)
		if origin := p.req.Server.Cost.BlockOrigin(size); origin != "" {
			return fmt.Sprintf("its effect on the cache is simulated; attention's speed at it is from %s",
				map[cost.KernelOrigin]string{
					cost.OurKernels: "our kernels, not the server's", cost.ServersKernel: "the server's kernel",
					cost.Probed: "a probe of the server",
				}[origin])
		}
		return "its effect on the cache is simulated; the kernels' speed at another block size is not modelled"
	case f.Name == "enable_chunked_prefill":
		return "the schedule is simulated; vLLM does not officially support turning it off"
	case f.Name == "kv_cache_dtype", f.Name == "tensor_parallel_size", f.Name == "enforce_eager":
		return "only the size of the KV cache follows from it: probe again for the step times"
	}
	return ""
}

// axes are the values to search, flag by flag; the base's own value is the first of each.
func (p *planning) axes() []Axis {
	axes := p.req.Options.Axes
	if axes == nil {
		axes = []Axis{
			{"max_num_batched_tokens", doublings(512, 32768)},
			{"max_num_seqs", doublings(8, 1024)},
			{"block_size", doublings(16, 128)},
			{"enable_chunked_prefill", []string{"true", "false"}},
		}
		if p.req.Server.GPU != nil && p.req.Server.Model != nil {
			axes = append(axes, Axis{"gpu_memory_utilization", []string{"0.8", "0.9", "0.95"}})
		} else {
			p.note("gpu_memory_utilization was not searched: without the GPU and the model its effect " +
				"on the KV cache is not known")
		}
		if p.priorities() > 1 {
			axes = append(axes, Axis{"scheduling_policy", []string{"fcfs", "priority"}})
		} else {
			p.note("scheduling_policy was not searched: every request has the same priority, so fcfs and priority do the same")
		}
	}
	out := make([]Axis, len(axes))
	for i, a := range axes {
		values := []string{}
		if own := vllmflags.Get(p.base, a.Flag); own != "" {
			values = append(values, own)
		}
		if pinned := vllmflags.Get(p.req.Fixed, a.Flag); pinned != "" {
			values = []string{pinned}
		} else {
			for _, v := range a.Values {
				if !slices.Contains(values, v) && p.legal(a.Flag, v) {
					values = append(values, v)
				}
			}
		}
		out[i] = Axis{a.Flag, values}
	}
	return out
}

func doublings(from, to int) []string {
	var vs []string
	for n := from; n <= to; n *= 2 {
		vs = append(vs, strconv.Itoa(n))
	}
	return vs
}

// legal reports whether this vLLM accepts a value on its own.
func (p *planning) legal(flag, value string) bool {
	var args harness.EngineArgs
	if vllmflags.Set(&args, flag, value) != nil {
		return false
	}
	legal, _, err := vllmflags.Legalize(args, p.req.Version, p.device)
	return err == nil && vllmflags.Get(legal, flag) == value
}

// priorities counts the different priorities of the requests.
func (p *planning) priorities() int {
	seen := map[int]bool{}
	for i := range p.work[0].Requests {
		seen[p.work[0].Requests[i].Priority] = true
	}
	return len(seen)
}
