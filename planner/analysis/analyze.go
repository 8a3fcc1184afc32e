package analysis

import (
	"context"
	"math"
	"slices"
	"time"

	"kvtune/harness"
	"kvtune/harness/vllmflags"
	"kvtune/harness/workload"
	"kvtune/planner/cost"
)

// Input is a run and what is known of its server.
type Input struct {
	// Result names the run and holds its configuration, server, metrics and counters; it must not be nil.
	Result *harness.Result
	// Records are the run's requests, priming and warm-up included.
	Records []workload.Record
	// Steps are the engine's steps with their moments; without them (and where they have none, as in a server's log) they
	// are rebuilt from the arrivals in Records.
	Steps []harness.StepRecord
	// Series are the server's gauges over time.
	Series []harness.Sample
	// Server is the server that ran it. Without Server.Cost, compute and memory bandwidth are "not observed".
	Server Server
	// Workload is what was sent. With it and Server.Cost, counterfactuals and gains are simulated.
	Workload *workload.Workload
	// SLOs are the objectives of the run. Where one on single requests is missed, the verdict is about the time that the
	// requests spent that missed it.
	SLOs []harness.SLO
	// Draws is how many draws of the cost model stand behind the interval of a simulated gain; 0 leaves out every
	// simulation.
	Draws int
	// Flops (flop/s) and Bandwidth (B/s) are ceilings that were measured on the server's devices, all of them together; 0
	// where they were not, which takes the datasheet's.
	Flops, Bandwidth float64
	// Device is what legal values and defaults of flags depend on; the zero value takes Server.GPU.
	Device vllmflags.Device
	// File is where the report will lie, for the commands in it that read it; "" is performance_analysis.json.
	File string
	// Endpoint are words of kvtune's command line that say where such a server comes from, for the same commands.
	Endpoint []string
}

// A cause is what a moment of the run is given to.
type cause int

const (
	causeArithmetic cause = iota
	causeBandwidth
	causeKV
	causeSeqs
	causeBudget
	causeLaunch
	causeFrontEnd
	causeCache
	causeLight
	causeIdle
	causeUnknown
	numCauses
)

func (c cause) kind() Kind {
	switch c {
	case causeArithmetic:
		return Compute
	case causeBandwidth:
		return Bandwidth
	case causeKV:
		return Capacity
	case causeSeqs, causeBudget, causeLaunch, causeFrontEnd:
		return Scheduling
	case causeCache:
		return Cache
	case causeLight, causeIdle:
		return LightLoad
	}
	return NotObserved
}

func (c cause) limit() string {
	switch c {
	case causeArithmetic:
		return LimitArithmetic
	case causeBandwidth:
		return LimitBandwidth
	case causeKV:
		return LimitKVCapacity
	case causeSeqs:
		return LimitMaxNumSeqs
	case causeBudget:
		return LimitTokenBudget
	case causeLaunch:
		return LimitLaunch
	case causeFrontEnd:
		return LimitFrontEnd
	case causeCache:
		return LimitPrefixCache
	}
	return ""
}

// study is an analysis under way.
type study struct {
	Input
	model  *cost.Model // its limits are the ceilings
	args   harness.EngineArgs
	blocks int // usable ones, 0 unknown
	open   bool
	win    window
	spans  []span
	gaps   []gap // of the window; steps that were rebuilt from arrivals have none
	prefix prefixUse
	// hitShare is the share of what they could that requests are taken to have hit, where the server does not say it of
	// each; 0 where it does.
	hitShare float64
	launch   time.Duration // launch overhead of a step
	need     int           // blocks that the mean prompt needs to be admitted
	whole    int           // blocks that the mean request holds at its end
	time     [numCauses]time.Duration
	facts    facts
}

// facts are sums over the window.
type facts struct {
	compute, memory         time.Duration // roofline times
	waitFull, waitFree      time.Duration // requests waiting with the KV cache full, with free blocks
	partial                 time.Duration // requests waiting with fewer than max_num_seqs running
	waitSeen, usageSeen     bool
	usage, usagePeak        float64 // usage is time-weighted seconds
	usageTime               time.Duration
	preemptions             int
	tokens, steps           float64
	tokensPeak, runningPeak int
	parts                   cost.Parts // of the steps' time, by the cost model, in seconds
	host                    float64    // seconds in which the device waited for the host
}

// Analyze finds what binds a run. Each moment of the measured window is given to one cause:
//
//   - The part of a step that computes prompt tokens a prefix cache without limits would have held: the cache.
//   - While requests wait: memory capacity, when a request was preempted or the free KV blocks are fewer than a mean
//     prompt needs (than a whole request needs, where neither max_num_seqs nor the token budget is used up); else
//     scheduling, when max_num_seqs or the token budget is used up and a step of twice the work would cost less than
//     1.5 times (the part of its time that does not grow with the work exceeds the part that does), so that a larger
//     batch would serve more.
//   - Otherwise the hardware: launch overhead (scheduling) when it exceeds the step's work by the model, else compute
//     or memory bandwidth, whichever takes longer by the roofline; but light load, when the arrivals set the pace (open
//     loop) and a step of twice the work would cost less than 1.5 times.
//   - Between steps, while requests are being served: the cause of the step before where a limit kept requests waiting,
//     else launch overhead (the host prepares the next step), or light load by the same rule.
//   - Where no step runs otherwise although a request is in flight: the API server (scheduling), or light load in an
//     open loop; where none is: idle.
//
// The largest of the five shares and of light load with idle time binds. But a load that is light for most of the
// window may come in bursts, and an objective is missed by some requests: then the verdict is about the time of the
// requests, each moment counted as often as there are requests in it ([Focus]). Where an objective is missed, nothing
// is light load. A run that holds nothing to look at, and a ctx
// that ends during the simulations, are told in the report's notes.
func Analyze(ctx context.Context, in Input) *Report {
	s := newStudy(in)
	s.attribute()
	r := s.report()
	switch {
	case in.Draws == 0:
	case s.model == nil:
		r.Notes = append(r.Notes, "nothing was simulated and nothing is recommended: there is no cost model")
	case in.Workload == nil:
		r.Notes = append(r.Notes, "nothing was simulated and nothing is recommended: the requests cannot be sent again")
	default:
		if err := s.whatIf(ctx, r); err != nil {
			r.Counterfactuals, r.Recommendations = nil, []Recommendation{}
			r.Notes = append(r.Notes, "nothing was simulated: "+err.Error())
		}
	}
	return r
}

func newStudy(in Input) *study {
	s := &study{Input: in, args: in.Server.Args, open: openLoop(in)}
	info := in.Result.Conditions.Server
	s.args = info.Args.Merge(s.args)
	if in.Server.Cost != nil {
		s.model = in.Server.Cost.For(s.args).WithCeilings(in.Flops, in.Bandwidth)
	}
	if s.args.BlockSize == 0 {
		s.args.BlockSize = info.BlockSize
	}
	s.blocks = in.Server.NumGPUBlocks
	if s.blocks == 0 {
		s.blocks = info.NumGPUBlocks
	}
	s.blocks = max(0, s.blocks-1) // the null block
	attainable := attainableHits(in.Records, in.Workload, s.args.BlockSize)
	in.Records, s.hitShare = assumeHits(in.Records, attainable, in.Result.Counters)
	s.Records = in.Records
	if placed(in.Steps) {
		s.spans = fromSteps(in.Steps, in.Records)
		s.gaps = gapsBetween(s.spans, in.Records)
	} else {
		s.Steps = nil
		s.spans = fromArrivals(in.Records, in.Series, s.args.MaxNumBatchedTokens)
	}
	var heat cost.Heat
	for i := range s.spans {
		sp := &s.spans[i]
		sp.step.Heat = heat.During(sp.step, sp.start, sp.length)
	}
	s.win = measuredWindow(in.Records, s.Steps)
	s.spans = clip(s.spans, s.win)
	s.gaps = slices.DeleteFunc(s.gaps, func(g gap) bool { return g.start < s.win.from || g.start+g.length > s.win.to })
	s.prefix = usePrefixes(in.Records, attainable)
	s.need, s.whole = s.admission()
	if s.model != nil {
		one := cost.Step{DecodeSeqs: 1, DecodeContext: 1}
		compute, memory := s.model.Roofline(one)
		s.launch = max(0, s.model.StepTime(one)-max(compute, memory))
	}
	return s
}

// openLoop reports whether arrivals and not completions set the pace.
func openLoop(in Input) bool {
	if w := in.Workload; w != nil {
		return w.Open()
	}
	c := in.Result.Config
	if c.Concurrency > 0 || c.Clients > 0 {
		return false
	}
	return c.Rate != "" || c.Trace != "" || c.Users > 0 && c.ThinkTime > 0
}

// admission is how many free blocks the mean measured prompt needs, and how many its request needs until its end.
func (s *study) admission() (prompt, whole int) {
	if s.args.BlockSize == 0 {
		return 0, 0
	}
	tokens, output, n := 0, 0, 0
	for i := range s.Records {
		r := &s.Records[i]
		if r.Phase != workload.Measured {
			continue
		}
		tokens, output, n = tokens+r.PromptTokens, output+r.OutputTokens, n+1
		if r.CachedTokens != nil {
			tokens -= *r.CachedTokens
		}
	}
	if n == 0 {
		return 0, 0
	}
	blocks := func(tokens int) int { return max(1, (tokens+s.args.BlockSize-1)/s.args.BlockSize) }
	return blocks(tokens / n), blocks((tokens + output) / n)
}

// attribute gives every moment of the window to a cause.
func (s *study) attribute() {
	var busy time.Duration
	for i := range s.spans {
		sp := &s.spans[i]
		busy += sp.length
		rest := sp.length
		if s.model != nil {
			again := s.recomputed(sp)
			s.time[causeCache] += again
			rest -= again
		}
		s.observe(sp)
		s.time[s.causeOf(sp)] += rest
	}
	for _, g := range s.gaps {
		busy += g.length
		s.facts.host += g.length.Seconds()
		s.time[s.causeOfGap(&g)] += g.length
	}
	inFlight := s.inFlight()
	s.time[causeIdle] = max(0, s.win.length()-max(busy, inFlight))
	if rest := max(0, inFlight-busy); s.open {
		s.time[causeLight] += rest
	} else {
		s.time[causeFrontEnd] = rest
	}
}

// inFlight is how much of the window some request is under way in.
func (s *study) inFlight() time.Duration {
	var all []stretch
	for i := range s.Records {
		r := &s.Records[i]
		if from, to := max(r.Sent, s.win.from), min(r.End(), s.win.to); from < to {
			all = append(all, stretch{from, to})
		}
	}
	return counts(all).covered()
}

// recomputed is the time that a step spends on prompt tokens that an unlimited prefix cache would have held.
func (s *study) recomputed(sp *span) time.Duration {
	if s.prefix.recomputed == 0 || sp.step.PrefillTokens == 0 {
		return 0
	}
	share := min(1, float64(s.prefix.recomputed)/float64(s.prefix.computed))
	without := sp.step
	without.PrefillTokens = int(math.Round(float64(without.PrefillTokens) * (1 - share)))
	without.PrefillAttention *= 1 - share
	full := s.model.StepTime(sp.step)
	var left time.Duration
	if without.PrefillTokens == 0 {
		without.PrefillSeqs = 0
	}
	if without.Tokens() > 0 {
		left = s.model.StepTime(without)
	}
	if full <= 0 || left >= full {
		return 0
	}
	return time.Duration(float64(sp.length) * float64(full-left) / float64(full))
}

func (s *study) observe(sp *span) {
	f := &s.facts
	if s.model != nil {
		compute, memory := s.model.Roofline(sp.step)
		f.compute += time.Duration(float64(compute) * sp.count)
		f.memory += time.Duration(float64(memory) * sp.count)
		p := s.model.Parts(sp.step)
		f.parts.Fixed += sp.count * p.Fixed
		f.parts.Seqs += sp.count * p.Seqs
		f.parts.Tokens += sp.count * p.Tokens
		f.parts.Attention += sp.count * p.Attention
		f.parts.KV += sp.count * p.KV
		f.parts.Heat += sp.count * p.Heat
		if s.Steps == nil { // else the waits are the gaps
			f.host += sp.count * s.hostWait(sp.step).Seconds()
		}
	}
	if sp.kvUsage >= 0 {
		f.usageSeen = true
		f.usage += sp.kvUsage * sp.length.Seconds()
		f.usageTime += sp.length
		f.usagePeak = max(f.usagePeak, sp.kvUsage)
	}
	if sp.waiting >= 0 {
		f.waitSeen = true
		if sp.waiting > 0 {
			if s.args.MaxNumSeqs > 0 && sp.running >= 0 && sp.running < s.args.MaxNumSeqs {
				f.partial += sp.length
			}
			if s.full(sp) {
				f.waitFull += sp.length
			} else {
				f.waitFree += sp.length
			}
		}
	}
	f.preemptions += sp.preemptions
	f.steps += sp.count
	f.tokens += sp.count * float64(sp.step.Tokens())
	f.tokensPeak = max(f.tokensPeak, sp.step.Tokens())
	f.runningPeak = max(f.runningPeak, sp.running)
}

// full reports whether the free KV blocks are fewer than the next prompt needs.
func (s *study) full(sp *span) bool {
	if sp.preemptions > 0 {
		return true
	}
	if sp.kvUsage < 0 || s.blocks == 0 {
		return false
	}
	return (1-sp.kvUsage)*float64(s.blocks) < float64(s.need)
}

// tight reports whether the free KV blocks are fewer than a whole request needs, its output included. vLLM admits on
// the prompt alone, but keeps a watermark free, and gauges lag behind the steps.
func (s *study) tight(sp *span) bool {
	return sp.kvUsage >= 0 && s.blocks > 0 && (1-sp.kvUsage)*float64(s.blocks) < float64(s.whole)
}

func (s *study) causeOf(sp *span) cause {
	if sp.waiting > 0 || sp.preemptions > 0 {
		switch {
		case s.full(sp):
			return causeKV
		case s.args.MaxNumSeqs > 0 && sp.running >= s.args.MaxNumSeqs:
			if s.model == nil || s.amortises(sp.step) {
				return causeSeqs
			}
		case s.budgetUsed(sp):
			if s.model == nil || s.amortises(sp.step) {
				return causeBudget
			}
		case sp.waiting > 0 && s.tight(sp): // nothing else keeps a request out of a step
			return causeKV
		}
	}
	if s.model == nil {
		return causeUnknown
	}
	if s.open && sp.waiting <= 0 && s.amortises(sp.step) {
		return causeLight
	}
	return s.hardware(sp)
}

// causeOfGap is that of the step before where a limit kept requests waiting in it: a larger batch would share the gap,
// too.
func (s *study) causeOfGap(g *gap) cause {
	switch c := s.causeOf(&g.after); {
	case c == causeKV || c == causeSeqs || c == causeBudget:
		return c
	case s.open && g.after.waiting <= 0:
		return causeLight
	}
	return causeLaunch
}

// budgetUsed reports whether the step had no room for more prompt tokens; a prompt that must not be split needs all its
// room.
func (s *study) budgetUsed(sp *span) bool {
	budget := s.args.MaxNumBatchedTokens
	if budget == 0 {
		return false
	}
	if s.args.EnableChunkedPrefill != nil && !*s.args.EnableChunkedPrefill {
		return sp.step.Tokens()+s.need*s.args.BlockSize > budget
	}
	return sp.step.Tokens() >= budget
}

// amortises reports whether most of a step's time does not grow with its work.
func (s *study) amortises(step cost.Step) bool {
	once := s.model.StepTime(step)
	grown := s.model.StepTime(twice(step)) - once
	return grown < once-grown
}

func twice(s cost.Step) cost.Step {
	return cost.Step{PrefillSeqs: 2 * s.PrefillSeqs, PrefillTokens: 2 * s.PrefillTokens,
		PrefillAttention: 2 * s.PrefillAttention,
		MaxChunk:         s.MaxChunk,
		DecodeSeqs:       2 * s.DecodeSeqs, DecodeContext: 2 * s.DecodeContext, Heat: s.Heat}
}

// hostWait is how long the device waits for the host in a step: for what the host prepares before it, unless
// asynchronous scheduling does that while the step before runs, and for launches that take longer than the device.
func (s *study) hostWait(step cost.Step) time.Duration {
	prepare, launch := s.model.HostTime(step)
	if s.args.AsyncScheduling == nil || *s.args.AsyncScheduling {
		return max(0, prepare+launch-s.model.StepTime(step))
	}
	return prepare + max(0, launch-s.model.StepTime(step))
}

// hardware is the part of the machine that a step takes longest on.
func (s *study) hardware(sp *span) cause {
	if work := s.model.StepTime(sp.step) - s.launch; s.launch+s.hostWait(sp.step) > work {
		return causeLaunch
	}
	compute, memory := s.model.Roofline(sp.step)
	switch {
	case compute == 0 && memory == 0: // the model has no datasheet behind it
		return causeUnknown
	case compute >= memory:
		return causeArithmetic
	}
	return causeBandwidth
}

// prefixUse counts prompt tokens of the measured requests.
type prefixUse struct {
	// attainable are tokens that an earlier request had computed, hit those that came from the cache, recomputed the
	// difference; computed are all prompt tokens that were computed, prompts all prompt tokens.
	attainable, hit, recomputed, computed, prompts int
	seen                                           bool
}

// attainableHits are the prompt tokens of each request that a cache without limits would have had: every shared block
// that a request sent earlier had: the prompts' own blocks where the workload is known, else the blocks named in the
// records, else all tokens that were meant to be shared.
func attainableHits(records []workload.Record, w *workload.Workload, blockSize int) []int {
	all := make([]int, len(records))
	seen := map[uint64]bool{}
	for _, i := range bySent(records) {
		r := &records[i]
		hashes, size := r.PrefixHashes, r.HashBlock
		if w != nil && blockSize > 0 && r.Index < len(w.Requests) {
			hashes, size = workload.BlockHashes(w.Requests[r.Index].Prompt, blockSize), blockSize
		}
		if size == 0 {
			all[i] = max(0, min(r.SharedPrefixTokens, r.PromptTokens-1))
			continue
		}
		known := true
		for _, h := range hashes {
			if known = known && seen[h]; known && all[i]+size < r.PromptTokens {
				all[i] += size
			}
			seen[h] = true
		}
	}
	return all
}

// assumeHits gives requests of which the server did not say how many prompt tokens it had cached the same share of what
// they could have hit, so that together they hit what its counters say. It returns the records as they are, and a share
// of 0, where the server said it or has no such counters.
func assumeHits(records []workload.Record, attainable []int, counters map[string]float64) ([]workload.Record, float64) {
	prompts, sum := 0, 0
	wholes := make([]int, len(records))
	for i := range records {
		r := &records[i]
		if r.CachedTokens != nil {
			return records, 0
		}
		if wholes[i] = r.PromptTokens; r.OK() {
			prompts, sum = prompts+r.PromptTokens, sum+attainable[i]
		}
	}
	cached, ok := cachedShare(counters)
	if !ok {
		return records, 0
	}
	could := attainable
	if sum == 0 { // nothing says what they share
		could, sum = wholes, prompts
	}
	share := min(1, cached*float64(prompts)/float64(max(1, sum)))
	records = slices.Clone(records)
	for i := range records {
		cached := int(share * float64(could[i]))
		records[i].CachedTokens = &cached
	}
	return records, share
}

// cachedShare is the share of prompt tokens that the prefix cache held, by the server's counters: those of tokens, else
// those of lookups, of which a request that is refused for lack of KV blocks makes one per step.
func cachedShare(counters map[string]float64) (share float64, ok bool) {
	for _, c := range [...]struct{ cached, all string }{
		{harness.CounterCachedTokens, harness.CounterPromptTokens},
		{harness.CounterPrefixHits, harness.CounterPrefixQueries},
	} {
		if cached, ok := counters[c.cached]; ok && counters[c.all] > 0 {
			return cached / counters[c.all], true
		}
	}
	return 0, false
}

// usePrefixes compares the hits of measured requests with what they could have hit.
func usePrefixes(records []workload.Record, attainable []int) prefixUse {
	u := prefixUse{seen: true}
	for i := range records {
		r := &records[i]
		if r.Phase != workload.Measured || !r.OK() {
			continue
		}
		u.prompts += r.PromptTokens
		u.attainable += attainable[i]
		if r.CachedTokens == nil {
			u.seen = false
			continue
		}
		u.hit += *r.CachedTokens
		u.recomputed += max(0, attainable[i]-*r.CachedTokens)
	}
	if !u.seen {
		u.recomputed = 0
	}
	u.computed = max(1, u.prompts-u.hit)
	return u
}
