package workflow

import (
	"context"
	"time"

	"kvtune/harness"
	"kvtune/harness/profile"
	"kvtune/harness/workload"
)

// capacityName is the part under which the capacity probe is kept, and maxCapacity how long it may be expected to take.
const (
	capacityName = profile.CapacityProbe
	maxCapacity  = 90 * time.Second
)

// PlannedProbe is a probe before it is run.
type PlannedProbe struct {
	Name string
	// Isolates says what it is for.
	Isolates                             string
	Requests, PromptTokens, OutputTokens int
	// Expected is how long it takes with the device's prior.
	Expected time.Duration
}

// PlanProbes lists the probes that [Setup.ProfileWithProbes] would run on a server, in order, with how long each is
// expected to take.
func (s *Setup) PlanProbes(ctx context.Context, info harness.ServerInfo, cfg harness.Config, quick bool) (
	[]PlannedProbe, error) {
	plan, err := s.planned(ctx, info, cfg, profile.Probes(info, cfg.Seed, quick))
	if err != nil || quick {
		return plan, err
	}
	if w := profile.Capacity(info, cfg.Seed); w != nil {
		last, err := s.planned(ctx, info, cfg, w)
		if err != nil {
			return nil, err
		}
		if last[0].Expected <= maxCapacity {
			plan = append(plan, last...)
		}
	}
	return plan, nil
}

// planned simulates a workload of probes.
func (s *Setup) planned(ctx context.Context, info harness.ServerInfo, cfg harness.Config, w *workload.Workload) (
	[]PlannedProbe, error) {
	basis := BasisOf(&harness.Result{Config: cfg, Conditions: harness.Conditions{Server: info}}, s.Model, s.GPU, nil)
	run, err := basis.simulate(ctx, w)
	if err != nil {
		return nil, err
	}
	var plan []PlannedProbe
	from := time.Duration(0) // the end of the probe before
	for i := range run.Records {
		r := &run.Records[i]
		if n := len(plan); n == 0 || plan[n-1].Name != r.Probe {
			if n > 0 {
				from += plan[n-1].Expected
			}
			plan = append(plan, PlannedProbe{Name: r.Probe, Isolates: profile.Isolates(r.Probe)})
		}
		p := &plan[len(plan)-1]
		p.Requests++
		p.PromptTokens += r.PromptTokens
		p.OutputTokens += r.AskedTokens
		p.Expected = max(p.Expected, r.End()-from)
	}
	return plan, nil
}

// ProbesTotal is what probes take together.
func ProbesTotal(plan []PlannedProbe) (requests int, expected time.Duration) {
	for i := range plan {
		requests += plan[i].Requests
		expected += plan[i].Expected
	}
	return requests, expected
}

// MeasureCapacity fills the KV cache of an endpoint until requests are preempted ([profile.Capacity]). It is nil where
// that cannot be done, or would take longer than 90 s.
func (s *Setup) MeasureCapacity(ctx context.Context, ep *Endpoint, cfg harness.Config) (*profile.Output, error) {
	info := ep.Info()
	w := profile.Capacity(info, cfg.Seed)
	if w == nil {
		return nil, nil
	}
	plan, err := s.planned(ctx, info, cfg, w)
	if err != nil || plan[0].Expected > maxCapacity {
		return nil, nil // a server that the prior does not know, or a slow one: the rest is measured without it
	}
	s.stage("filling the KV cache: %d requests, about %v", plan[0].Requests, round(plan[0].Expected))
	return s.measure(ctx, ep, capacityConfig(cfg), w)
}
