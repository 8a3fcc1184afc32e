package profile

import (
	"fmt"
	"strings"
	"time"

	"kvtune/harness"
	"kvtune/harness/workload"
)

// Probes is the workload that isolates what a cost model needs, sized to the server: every probe is one or more waves,
// so nothing of one probe runs beside another. A probe that the server's context, KV cache or max_num_seqs cannot hold
// is left out. Their names: prefill_C (lone prompts of C tokens), decode_B_c (B requests decode together at a context
// of c tokens), prefix_M (M blocks reused under 512 new tokens), shared_B_c (B requests decode behind one prefix of c
// tokens), mixed (prompts dropped into n running decodes).
//
// With quick set the design is the smallest that still separates the terms: about 15 s on an H200 with an 8B model
// instead of 2 minutes.
func Probes(info harness.ServerInfo, seed uint64, quick bool) *workload.Workload {
	p := prober{info: info, next: seed << 32, w: &workload.Workload{BlockSize: info.BlockSize}}
	prefills, batches, contexts, mixes, repeats, tokens := []int{64, 256, 512, 1024, 2048, 4096, 8192},
		[]int{1, 2, 4, 8, 16, 32, 64, 128, 256}, []int{64, 1024, 4096}, []int{8, 32, 96}, 5, 48
	if quick {
		prefills, batches, contexts, mixes, repeats, tokens = []int{64, 256, 1024, 4096}, []int{1, 8, 32, 96},
			[]int{64, 2048}, []int{16, 64}, 3, 24
	}
	// The server's first requests pay for warm caches and lazy work; they are sent and not kept.
	for _, c := range []int{256, 64, 16} {
		if p.fits(1, c, 4) {
			for range 2 {
				p.alone(workload.Request{Probe: "warmup", Phase: workload.Warmup, OutputTokens: 4}, p.fresh(c))
			}
			break
		}
	}
	for _, c := range prefills {
		if !p.fits(1, c, 1) {
			continue
		}
		for range repeats {
			p.alone(workload.Request{Probe: fmt.Sprintf("prefill_%d", c), OutputTokens: 1}, p.fresh(c))
		}
	}
	for _, c := range contexts {
		for _, b := range batches {
			if !p.fits(b, c, tokens) {
				continue
			}
			p.wave++
			for range b {
				p.join(workload.Request{Probe: fmt.Sprintf("decode_B%d_c%d", b, c), OutputTokens: tokens}, p.fresh(c))
			}
		}
	}
	for _, blocks := range []int{32, 128} {
		shared := blocks * info.BlockSize
		if info.BlockSize == 0 || !p.fits(1, shared+513, 1) {
			continue
		}
		prefix := p.fresh(shared)
		name := fmt.Sprintf("prefix_M%d", blocks)
		p.alone(workload.Request{Probe: name, Phase: workload.Prime, OutputTokens: 1}, prefix, p.fresh(512))
		for range repeats {
			p.alone(workload.Request{Probe: name, OutputTokens: 1}, prefix, p.fresh(512))
		}
	}
	caching := info.EnablePrefixCaching
	type together struct{ batch, shared int }
	groups := []together{{32, 4096}, {96, 2048}}
	if quick {
		groups = []together{{32, 2048}}
	}
	for _, s := range groups {
		// Where they fit unshared, they fit whatever the cache keeps.
		if info.BlockSize == 0 || caching != nil && !*caching || !p.fits(s.batch, s.shared+64, tokens) {
			continue
		}
		prefix := p.fresh(s.shared / info.BlockSize * info.BlockSize)
		name := fmt.Sprintf("shared_B%d_c%d", s.batch, s.shared)
		p.alone(workload.Request{Probe: name, Phase: workload.Prime, OutputTokens: 1}, prefix, p.fresh(64))
		p.wave++
		for range s.batch {
			p.join(workload.Request{Probe: name, OutputTokens: tokens}, prefix, p.fresh(64))
		}
	}
	for _, n := range mixes {
		// Prompts whose step a CUDA graph still covers, and ever larger ones; n decode for long enough to meet them all.
		drops := []int{256, 640, 1280, 2048, 256}
		const context, run = 1024, 192
		dropped := len(drops)
		if !p.fits(n+dropped, context, run) {
			continue
		}
		p.wave++
		name := fmt.Sprintf("mixed%d", n)
		for range n {
			p.join(workload.Request{Probe: name, OutputTokens: run}, p.fresh(context))
		}
		for i, c := range drops {
			if !p.fits(n+dropped, max(c, context), run) {
				continue
			}
			// Late enough that all n decode, and far enough apart that one prompt is through before the next.
			due := time.Duration(n)*25*time.Millisecond + time.Duration(i+1)*200*time.Millisecond
			p.join(workload.Request{Probe: name, OutputTokens: 1, Due: due}, p.fresh(c))
		}
	}
	return p.w
}

// Isolates says what a probe is for, by its name in [Probes] or [Capacity].
func Isolates(probe string) string {
	for _, p := range [...]struct{ prefix, what string }{
		{"warmup", "nothing: the first requests of a server pay for lazy work, and are not kept"},
		{"prefill_", "what a prompt costs, against C: lone prompts, one token out"},
		{"decode_", "what a decode step costs, against B and the context: B requests together"},
		{"prefix_", "what reuse saves, against M: one cold request, then the same prefix again"},
		{"shared_", "what a decode step costs where requests read the same KV blocks"},
		{"mixed", "what a prompt adds to steps of running decodes"},
		{CapacityProbe, "how much the KV cache holds, what decoding costs up to there, when requests are preempted"},
	} {
		if strings.HasPrefix(probe, p.prefix) {
			return p.what
		}
	}
	return ""
}

type prober struct {
	info harness.ServerInfo
	w    *workload.Workload
	// next is the last segment ID given out.
	next uint64
	wave int
}

// fits reports whether b requests of a prompt and output length fit the context, the KV cache and the running limit.
func (p *prober) fits(b, prompt, output int) bool {
	if p.info.MaxModelLen > 0 && prompt+output > p.info.MaxModelLen {
		return false
	}
	if s := p.info.Args.MaxNumSeqs; s > 0 && b > s {
		return false
	}
	blocks := (p.info.NumGPUBlocks - 1) * 9 / 10
	if p.info.NumGPUBlocks == 0 || p.info.BlockSize == 0 {
		return true
	}
	return b*((prompt+output+p.info.BlockSize-1)/p.info.BlockSize) <= blocks
}

// alone sends a request in a wave of its own.
func (p *prober) alone(r workload.Request, prompt ...workload.Segment) {
	p.wave++
	p.join(r, prompt...)
}

// join adds a request to the present wave.
func (p *prober) join(r workload.Request, prompt ...workload.Segment) {
	r.Index, r.After, r.Wave, r.Prompt = len(p.w.Requests), -1, p.wave, prompt
	if len(prompt) > 1 {
		r.SharedTokens = prompt[0].Tokens
	}
	p.w.Requests = append(p.w.Requests, r)
}

// fresh is a segment that no other request has.
func (p *prober) fresh(tokens int) workload.Segment {
	p.next++
	return workload.Segment{ID: p.next, Tokens: tokens}
}
