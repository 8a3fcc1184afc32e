package analysis

import (
	"slices"
	"strconv"

	"kvtune/harness"
	"kvtune/harness/vllmflags"
)

// proposal is a flag to try, with the settings that try it.
type proposal struct {
	flag, why, risk string
	settings        []harness.EngineArgs
}

// proposals are the flags that act on the limits that took time, then every other flag whose effect is simulated at the
// values beside its own; each flag once.
func (s *study) proposals(r *Report) []proposal {
	var ps []proposal
	add := func(more ...proposal) {
		for _, p := range more {
			known := slices.ContainsFunc(ps, func(q proposal) bool { return q.flag == p.flag })
			if len(p.settings) > 0 && !known {
				ps = append(ps, p)
			}
		}
	}
	add(s.forLimit(r.Limit)...)
	for c := range causeLight {
		if s.time[c] > 0 {
			add(s.forLimit(c.limit())...)
		}
	}
	for _, p := range s.neighbours() {
		add(p)
	}
	return ps
}

// set are the settings in force with each edit alone.
func (s *study) set(edits ...func(*harness.EngineArgs)) []harness.EngineArgs {
	all := make([]harness.EngineArgs, len(edits))
	for i, edit := range edits {
		all[i] = s.args
		edit(&all[i])
	}
	return all
}

func (s *study) seqs(why string, values ...int) proposal {
	p := proposal{flag: "max_num_seqs", why: why,
		risk: "each request's tokens come slower in a larger batch; more requests share the KV cache"}
	for _, n := range values {
		if n < s.args.MaxNumSeqs {
			p.risk = "fewer requests share a step: others wait longer before their first token"
		}
		if n > 0 && s.args.MaxNumSeqs > 0 {
			p.settings = append(p.settings, s.set(func(a *harness.EngineArgs) {
				a.MaxNumSeqs, a.MaxNumBatchedTokens = n, max(n, a.MaxNumBatchedTokens)
			})...)
		}
	}
	return p
}

func (s *study) budget(why string, values ...int) proposal {
	p := proposal{flag: "max_num_batched_tokens", why: why,
		risk: "longer steps delay the tokens of requests that decode; activations take memory from the KV cache"}
	for _, n := range values {
		if n < s.args.MaxNumBatchedTokens {
			p.risk = "long prompts take more steps: their first tokens come later"
		}
		if n >= s.args.MaxNumSeqs && s.args.MaxNumBatchedTokens > 0 {
			p.settings = append(p.settings, s.set(func(a *harness.EngineArgs) { a.MaxNumBatchedTokens = n })...)
		}
	}
	return p
}

// memory gives the KV cache more of the device.
func (s *study) memory(why string) proposal {
	p := proposal{flag: "gpu_memory_utilization", why: why,
		risk: "less memory is left for others on the device and for peaks; the server may fail to start"}
	if u := s.args.GPUMemoryUtilization; u > 0 && u < 0.95 && s.Server.GPU != nil && s.args.NumGPUBlocksOverride == 0 {
		p.settings = s.set(func(a *harness.EngineArgs) { a.GPUMemoryUtilization = 0.95 })
	}
	return p
}

// override lifts an override of the KV cache's size, so that vLLM takes what the memory holds; where that is not known,
// it is raised.
func (s *study) override(why string) proposal {
	p := proposal{flag: "num_gpu_blocks_override", why: why,
		risk: "the cache takes the memory that the override left free"}
	switch n := s.args.NumGPUBlocksOverride; {
	case n == 0:
	case s.Server.GPU != nil && s.Server.Model != nil:
		p.settings = s.set(func(a *harness.EngineArgs) { a.NumGPUBlocksOverride = 0 })
	default:
		p.risk = "what the memory holds is not known here: the server may fail to start"
		for _, factor := range []int{2, 4} {
			p.settings = append(p.settings, s.set(func(a *harness.EngineArgs) { a.NumGPUBlocksOverride = factor*(n-1) + 1 })...)
		}
	}
	return p
}

func (s *study) forLimit(limit string) []proposal {
	switch n := s.args.MaxNumSeqs; limit {
	case LimitMaxNumSeqs:
		return []proposal{s.seqs("requests wait beside free KV blocks while max_num_seqs run, and a larger batch costs "+
			"little more", 2*n, 4*n, 8*n)}
	case LimitTokenBudget:
		b := s.args.MaxNumBatchedTokens
		return []proposal{s.budget("prompts wait beside free KV blocks because each step is full", 2*b, 4*b, 8*b)}
	case LimitKVCapacity:
		const why = "requests wait for KV blocks: more memory for the cache admits them"
		ps := []proposal{s.memory(why), s.override(why)}
		if peak := s.facts.runningPeak; s.facts.preemptions > 0 && peak > 3 {
			ps = append(ps, s.seqs("running requests lose their KV blocks to each other and compute them again: run "+
				"fewer at once", peak*3/4, peak/2))
		}
		return ps
	case LimitPrefixCache:
		if on := s.args.EnablePrefixCaching; on != nil && !*on {
			yes := true
			return []proposal{{
				flag: "enable_prefix_caching", why: "prompt tokens are computed again that the prefix cache would hold",
				risk:     "hashing prompts costs the API server a little; tenants can tell from the time what others have sent",
				settings: s.set(func(a *harness.EngineArgs) { a.EnablePrefixCaching = &yes }),
			}}
		}
		const why = "shared prefixes are evicted before they are used again: a larger cache keeps them"
		ps := []proposal{s.memory(why), s.override(why)}
		if s.args.BlockSize > 16 {
			ps = append(ps, proposal{
				flag: "block_size", why: "only full blocks are shared: smaller blocks share more of a prefix",
				risk:     "the kernels' speed at another block size is not modelled: kvtune bench measures it",
				settings: s.set(func(a *harness.EngineArgs) { a.BlockSize = 16 }),
			})
		}
		return ps
	}
	return nil
}

// neighbours are flags that may help whatever binds, at values beside their own.
func (s *study) neighbours() []proposal {
	b, n := s.args.MaxNumBatchedTokens, s.args.MaxNumSeqs
	ps := []proposal{
		s.budget("another token budget shares the steps better between prompts and decodes", b/4, b/2, 2*b),
		s.seqs("another number of sequences suits this load better", n/2, 2*n),
	}
	if on := s.args.EnableChunkedPrefill; on != nil && !*on {
		yes := true
		ps = append(ps, proposal{
			flag: "enable_chunked_prefill", why: "a whole prompt in one step holds up every request that decodes",
			risk:     "a long prompt takes several steps: its own first token may come later",
			settings: s.set(func(a *harness.EngineArgs) { a.EnableChunkedPrefill = &yes }),
		})
	}
	if on := s.args.AsyncScheduling; on != nil && !*on {
		yes := true
		ps = append(ps, proposal{
			flag: "async_scheduling", why: "the device waits while the host schedules the next step",
			risk:     "a request that stops early has one more step computed for it",
			settings: s.set(func(a *harness.EngineArgs) { a.AsyncScheduling = &yes }),
		})
	}
	return ps
}

func (s *study) recommendation(p proposal, args harness.EngineArgs) Recommendation {
	rec := Recommendation{Flag: p.flag, Value: vllmflags.Get(args, p.flag), From: vllmflags.Get(s.args, p.flag),
		Why: p.why, Effects: []Gain{}, Risk: p.risk, Args: args}
	for _, f := range vllmflags.Known(s.version(), s.device()) {
		from, to := vllmflags.Get(s.args, f.Name), vllmflags.Get(args, f.Name)
		if f.Name != p.flag && from != to {
			rec.Also = append(rec.Also, Setting{Flag: f.Name, From: from, To: to})
		}
	}
	rec.Command = s.command(args)
	return rec
}

func (s *study) version() string { return s.Result.Conditions.Server.Version }

func (s *study) device() vllmflags.Device {
	if g := s.Server.GPU; g != nil && s.Device == (vllmflags.Device{}) {
		return vllmflags.Device{Name: g.Name, Memory: g.Memory, CPU: g.CPU}
	}
	return s.Device
}

// command starts the server with the settings: `vllm serve MODEL` and what differs from vLLM's defaults. Flags that
// kvtune does not know are not in it.
func (s *study) command(args harness.EngineArgs) []string {
	info := s.Result.Conditions.Server
	model := "MODEL"
	for _, name := range []string{s.Result.Config.Model, info.Model, info.Root} {
		if name != "" {
			model = name
		}
	}
	version, device := s.version(), s.device()
	defaults := vllmflags.Resolve(harness.EngineArgs{MaxModelLen: args.MaxModelLen}, version, device)
	said := vllmflags.Differing(args, defaults, version, device)
	said.MaxModelLen = args.MaxModelLen
	argv, _, err := vllmflags.Argv(said, version, device)
	if err != nil { // settings in force that kvtune holds for illegal
		argv = nil
	}
	return slices.Concat([]string{"vllm", "serve", model}, argv)
}

// verification is the kvtune command that measures recommendation n (from 1) beside the settings in force.
func (s *study) verification(n int) []string {
	file := s.File
	if file == "" {
		file = "performance_analysis.json"
	}
	return append([]string{"kvtune", "verify", "--analysis-file", file, "--recommendation", strconv.Itoa(n)},
		s.Endpoint...)
}
