package engine

import (
	"context"

	"kvtune/harness/workload"
	"kvtune/planner/cost"
	"kvtune/planner/sim"
)

// Virtual runs a workload on this engine's device in virtual time: the same settings and step times, without HTTP and
// without waiting. Of the API server it has the constant latencies, not the time per prompt token. It starts with an
// empty cache and leaves the server alone; the same workload gives the same outcome.
func (e *Engine) Virtual(ctx context.Context, w *workload.Workload) (*sim.Outcome, error) {
	cfg := e.cfg
	cfg.FrontEnd = *e.front
	var timer cost.Timer = e.opt.Cost
	if e.hidden != nil {
		timer = e.hidden.device(e.opt.Seed)
	}
	return sim.Run(ctx, cfg, timer, w, sim.Options{})
}
