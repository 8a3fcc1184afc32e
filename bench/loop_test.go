package bench

import (
	"cmp"
	"flag"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"kvtune/harness"
	"kvtune/harness/archive"
	"kvtune/harness/profile"
	"kvtune/harness/workflow"
	"kvtune/harness/workload"
	"kvtune/planner"
)

// loopFlag names the loop that TestLoop looks at, instead of those that are committed.
var loopFlag = flag.String("loop", "", "the `folder` of a loop, as bench/loop.sh writes it")

// promise is how far off a prediction of the loop may be.
type promise struct {
	metric, stat string
	// within is a share of what was measured; requests is how many an arm must have for the figure to mean something.
	within   float64
	requests float64
}

// promises are what the loop sets out to show. The time to first token holds below 0.85 of what the server can serve:
// beyond it queues grow without bound, and a small error in the capacity is a large one in the wait.
var promises = []promise{
	{harness.MetricTotalThroughput, "", 0.03, 1},
	{harness.MetricTPOT, harness.StatMean, 0.05, 1},
	{harness.MetricE2EL, harness.StatMean, 0.05, 1},
	{harness.MetricTTFT, harness.StatMean, 0.10, 1},
	{harness.MetricTTFT, harness.StatP99, 0.15, 1000},
	{harness.MetricITL, harness.StatP99, 0.15, 1},
	{harness.MetricCacheHitRate, "", 0.05, 1},
	{harness.MetricKVUsage, harness.StatPeak, 0.10, 1},
}

// owns is what decides between the arms of a workload.
var owns = map[string]struct{ metric, stat string }{
	"conversation": {harness.MetricTotalThroughput, ""},
	"code":         {harness.MetricTTFT, harness.StatP99},
	"prefix":       {harness.MetricCacheHitRate, ""},
}

// TestLoop: the loops that are committed are whole, all arms of a workload served the same requests, and what the
// planner had said of them is printed beside what was measured.
func TestLoop(t *testing.T) {
	loops, err := filepath.Glob(filepath.Join("results", "*", "loop*"))
	if err != nil {
		t.Fatal(err)
	}
	if *loopFlag != "" {
		loops = []string{*loopFlag}
	}
	if len(loops) == 0 {
		t.Error("no loop is committed")
	}
	read := 0
	for _, loop := range loops {
		for _, name := range slices.Sorted(maps.Keys(owns)) {
			dir := filepath.Join(loop, name)
			if _, err := os.Stat(dir); err != nil {
				t.Logf("%s was not run", dir)
				continue
			}
			l, err := readLoop(dir)
			if err != nil {
				t.Errorf("%s: %v", dir, err)
				continue
			}
			read++
			l.laws(t, dir)
			var text strings.Builder
			l.print(&text, name)
			t.Logf("%s\n%s", dir, &text)
		}
	}
	if read == 0 {
		t.Errorf("%s: no verified workload", loops)
	}
}

// arm is one setting of a verified workload.
type arm struct {
	*planner.Plan
	runs []*profile.Output
}

// loop is a verified workload: settings called bad, vLLM's defaults, the plan.
type loop struct {
	arms []arm
}

func readLoop(dir string) (*loop, error) {
	f, err := os.Open(filepath.Join(dir, workflow.PlansFile))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	plans, err := planner.ReadPlans(f)
	if err != nil {
		return nil, err
	}
	folder, err := archive.Open(dir)
	if err != nil {
		return nil, err
	}
	l := &loop{}
	all := []*planner.Plan{&plans.Baseline}
	if plans.Default != nil {
		all = append(all, plans.Default)
	}
	for i := range plans.Plans {
		all = append(all, &plans.Plans[i])
	}
	for _, p := range all {
		a := arm{Plan: p}
		for _, name := range folder.Results() {
			if !strings.Contains(name, "verify_"+string(p.Strategy)+"_") {
				continue
			}
			run, err := workflow.ReadRun(folder, name)
			if err != nil {
				return nil, err
			}
			a.runs = append(a.runs, run)
		}
		if len(a.runs) > 0 {
			l.arms = append(l.arms, a)
		}
	}
	if len(l.arms) < 2 {
		return nil, fmt.Errorf("%d settings were measured, expected at least two", len(l.arms))
	}
	return l, nil
}

// laws are what holds for a verified workload, whatever the figures are.
func (l *loop) laws(t *testing.T, dir string) {
	first := l.arms[0]
	for _, a := range l.arms {
		if len(a.runs) != len(first.runs) {
			t.Errorf("%s: %s ran %d times, %s %d times", dir, a.Strategy, len(a.runs), first.Strategy, len(first.runs))
			continue
		}
		for i, run := range a.runs {
			if run.Result.Partial || run.Result.Origin != first.runs[0].Result.Origin {
				t.Errorf("%s: %s is not whole, or of another origin", dir, run.Result.Name)
			}
			sent := map[int]*workload.Record{} // lines are in the order in which requests ended
			for k := range first.runs[i].Records {
				sent[first.runs[i].Records[k].Index] = &first.runs[i].Records[k]
			}
			for k := range run.Records {
				x, y := &run.Records[k], sent[run.Records[k].Index]
				if y == nil || x.PromptTokens != y.PromptTokens || x.OutputTokens != y.OutputTokens || due(x) != due(y) {
					t.Errorf("%s: request %d of %s differs from that of %s", dir, x.Index, a.Strategy, first.Strategy)
					break
				}
			}
		}
	}
}

func (l *loop) print(text *strings.Builder, name string) {
	own := owns[name]
	device := l.arms[0].runs[0].Result.Conditions
	fmt.Fprintf(text, "%s, %d runs of each, %s\n", device.Started.Format("2006-01-02"), len(l.arms[0].runs),
		l.arms[0].MeasuredOrigin)
	t := tabwriter.NewWriter(text, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(t, "settings\tmetric\tpredicted\tmeasured\terror\tpromised\t\t\n")
	for _, a := range l.arms {
		requests, _ := a.Measured.Value(harness.MetricRequests, harness.StatOK)
		for _, p := range promises {
			i := slices.IndexFunc(a.Compared,
				func(c planner.Comparison) bool { return c.Metric == p.metric && c.Stat == p.stat })
			if i < 0 || requests < p.requests {
				continue
			}
			c := a.Compared[i]
			verdict, off := "", "-"
			if c.Error != nil {
				off = fmt.Sprintf("%+.1f %%", 100**c.Error)
				if math.Abs(*c.Error) > p.within {
					verdict = "MISSED"
				}
			}
			fmt.Fprintf(t, "%s\t%s %s (%s)\t%.4g\t%.4g\t%s\t%.0f %%\t%s\t\n", a.Strategy, c.Metric, c.Stat, c.Unit, c.Predicted,
				c.Measured, off, 100*p.within, verdict)
		}
	}
	t.Flush()
	for _, a := range l.arms {
		fmt.Fprintf(text, "%s: %s\n", a.Strategy, strings.Join(a.Launch, " "))
		for _, check := range a.SLOs {
			slo, err := harness.ParseSLO(check.SLO)
			if err != nil || check.Value == nil {
				continue
			}
			if v, ok := a.Measured.Value(slo.Metric, slo.Stat); ok {
				met, _ := slo.Met(a.Measured)
				fmt.Fprintf(text, "  %s: predicted %.3g (%s), measured %.3g (%s)\n", check.SLO, *check.Value, yes(check.Met), v,
					yes(met))
			}
		}
	}
	order := func(value func(a arm) (float64, bool)) string {
		arms := slices.Clone(l.arms)
		slices.SortStableFunc(arms, func(a, b arm) int {
			x, _ := value(a)
			y, _ := value(b)
			if harness.HigherIsBetter(own.metric) {
				x, y = y, x
			}
			return cmp.Compare(x, y)
		})
		var names []string
		for _, a := range arms {
			v, _ := value(a)
			names = append(names, fmt.Sprintf("%s (%.4g)", a.Strategy, v))
		}
		return strings.Join(names, ", ")
	}
	fmt.Fprintf(text, "%s %s, best first: predicted %s; measured %s\n", own.metric, own.stat,
		order(func(a arm) (float64, bool) { return a.Predicted.Value(own.metric, own.stat) }),
		order(func(a arm) (float64, bool) { return a.Measured.Value(own.metric, own.stat) }))
	l.overDefault(text)
}

// overDefault prints what the plan gained over vLLM's defaults, in pairs of runs.
func (l *loop) overDefault(text *strings.Builder) {
	at := func(s planner.Strategy) int {
		return slices.IndexFunc(l.arms, func(a arm) bool { return a.Strategy == s })
	}
	d, last := at(planner.Default), len(l.arms)-1
	if d < 0 || d == last {
		fmt.Fprint(text, "the plan is vLLM's defaults\n")
		return
	}
	plan := *l.arms[last].Plan
	plan.Gain = plan.DefaultRegret
	plan.SetMeasuredGain(planner.Default, measured(l.arms[d].runs), measured(l.arms[last].runs))
	if g := plan.MeasuredGain; g != nil {
		fmt.Fprintf(text, "over vLLM's defaults: %s %s %.4g -> %.4g %s, %+.1f %%", g.Metric, g.Stat, g.Before, g.After,
			g.Unit, 100*g.Change)
		if g.Low != nil {
			fmt.Fprintf(text, " (%+.1f to %+.1f %%)", 100**g.Low, 100**g.High)
		}
		if r := plan.DefaultRegret; r != nil {
			fmt.Fprintf(text, "; predicted %+.1f %%", 100*r.Change)
		}
		fmt.Fprintln(text)
	}
}

// due is when a request was due; -1 in a closed loop, and for a later turn of a conversation, which is due after the
// answer to the turn before.
func due(r *workload.Record) time.Duration {
	if r.Due == nil || r.Turn > 0 {
		return -1
	}
	return *r.Due
}

func yes(met bool) string {
	if met {
		return "met"
	}
	return "missed"
}

func measured(runs []*profile.Output) (out []planner.Measured) {
	for _, r := range runs {
		out = append(out, planner.Measured{Metrics: r.Result.Metrics, Records: r.Records})
	}
	return out
}
