package planner

import (
	"bytes"
	"encoding/json"
	"testing"
	"time"

	"kvtune/harness"
	"kvtune/harness/workload"
)

// A setting that is best at every rate has no regret; the choice's regret is never above the baseline's, and at each
// rate the winner's prediction is the best of all.
func TestRangeRegret(t *testing.T) {
	req := request(t, load(60, 0, 1200, 80, 50*time.Millisecond, 0))
	req.Strategies = []Strategy{Latency, Throughput}
	req.SLOs = []harness.SLO{{Metric: harness.MetricTTFT, Stat: harness.StatP99, Limit: 2}}
	req.Current = harness.EngineArgs{MaxNumSeqs: 8, MaxNumBatchedTokens: 1024}
	plans, err := MakeRange(t.Context(), req, 2, 40)
	if err != nil {
		t.Fatal(err)
	}
	if plans.Infeasible != nil || len(plans.Plans) != 2 || len(plans.Range.Choices) != 2 {
		t.Fatalf("%s", plans.Verdict)
	}
	if first, last := plans.Range.Rates[0], plans.Range.Rates[len(plans.Range.Rates)-1]; first != 2 || last != 40 {
		t.Errorf("rates %v", plans.Range.Rates)
	}
	for i, c := range plans.Range.Choices {
		if c.Low > c.WorstRegret || c.High < c.WorstRegret || c.WorstRegret < 0 {
			t.Errorf("%s: regret %g (%g to %g)", c.Strategy, c.WorstRegret, c.Low, c.High)
		}
		if c.BaselineRegret != nil && *c.BaselineRegret+1e-9 < c.WorstRegret {
			t.Errorf("%s: the baseline's regret %g is below the choice's %g", c.Strategy, *c.BaselineRegret, c.WorstRegret)
		}
		worst := 0.0
		for _, p := range c.Points {
			if p.Possible && !p.Met {
				t.Errorf("%s misses the SLO at %g request/s", c.Strategy, p.Rate)
			}
			if p.Regret != nil {
				worst = max(worst, *p.Regret)
			}
		}
		if worst != c.WorstRegret {
			t.Errorf("%s: worst regret %g, the points say %g", c.Strategy, c.WorstRegret, worst)
		}
		// Eight sequences are the best at the lowest rate, where nothing queues, and never at the highest.
		if len(c.Points[0].Winner) != 0 || len(c.Points[len(c.Points)-1].Winner) == 0 || len(c.Switches) == 0 {
			t.Errorf("%s: winners %+v, switches %+v", c.Strategy, c.Points, c.Switches)
		}
		for _, s := range c.Switches {
			if s.Below > s.Above*(1+switchAt)*1.0001 || s.Above < 2 || s.Below > 40 {
				t.Errorf("%s: switch %+v", c.Strategy, s)
			}
		}
		p := plans.Plans[i]
		if p.Args.MaxNumSeqs <= 8 || p.MaxRequestRate == nil || plans.Baseline.MaxRequestRate == nil ||
			p.MaxRequestRate.Rate < plans.Baseline.MaxRequestRate.Rate {
			t.Errorf("%s: %d sequences, SLO up to %v, current %v", p.Strategy, p.Args.MaxNumSeqs, p.MaxRequestRate,
				plans.Baseline.MaxRequestRate)
		}
	}
	again, err := MakeRange(t.Context(), req, 2, 40)
	if err != nil {
		t.Fatal(err)
	}
	a, _ := json.Marshal(plans)
	if b, _ := json.Marshal(again); !bytes.Equal(a, b) {
		t.Error("the same request gives other bytes")
	}
}

// Equal settings do not take each other's place, whichever changes fewer flags; better ones do.
func TestRangeStays(t *testing.T) {
	p, err := newPlanning(request(t, load(40, 0, 400, 40, 20*time.Millisecond, 0)))
	if err != nil {
		t.Fatal(err)
	}
	var set []*candidate
	for _, args := range []harness.EngineArgs{{MaxNumSeqs: 300}, {}, {MaxNumSeqs: 2}} {
		set = append(set, p.candidate(p.base.Merge(args)))
	}
	if err := p.replicate(t.Context(), set); err != nil {
		t.Fatal(err)
	}
	many, base, few := set[0], set[1], set[2]
	for _, c := range []struct {
		from, to *candidate
		stays    bool
	}{{many, base, true}, {base, many, true}, {few, base, false}, {base, few, true}} {
		if got := p.stays(Latency, c.from, c.to); got != c.stays {
			t.Errorf("%d sequences stay beside %d: %t", c.from.args.MaxNumSeqs, c.to.args.MaxNumSeqs, got)
		}
	}
}

func TestRangeWithoutArrivals(t *testing.T) {
	for _, work := range []func(uint64) (*workload.Workload, error){load(20, 0, 100, 10, 0, 4),
		load(20, 0, 100, 10, 0, 0)} {
		if _, err := MakeRange(t.Context(), request(t, work), 1, 2); err == nil {
			t.Error("a workload without arrivals was planned for a range of rates")
		}
	}
	if _, err := MakeRange(t.Context(), request(t, load(20, 0, 100, 10, time.Second, 0)), 3, 2); err == nil {
		t.Error("a falling range was accepted")
	}
}

// Nothing meets the SLO even at the lowest rate.
func TestRangeInfeasible(t *testing.T) {
	req := request(t, load(30, 0, 1200, 20, 50*time.Millisecond, 0))
	req.Strategies = []Strategy{Latency}
	req.SLOs = []harness.SLO{{Metric: harness.MetricTTFT, Stat: harness.StatP99, Limit: 1e-6}}
	plans, err := MakeRange(t.Context(), req, 2, 4)
	if err != nil || plans.Infeasible == nil || len(plans.Plans) != 0 || plans.Baseline.MaxRequestRate != nil {
		t.Fatalf("%+v, %v", plans, err)
	}
}
