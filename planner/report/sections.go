package report

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"kvtune/harness"
	"kvtune/planner"
	"kvtune/planner/analysis"
	"kvtune/planner/cost"
)

// plans lays out the plans with what they are predicted to do and what was measured of them.
func (p *page) plans(in Input) error {
	ps := in.Plans
	if ps == nil {
		return nil
	}
	var first block
	first.Text = []string{"Predicted figures are SIMULATED in virtual time; small figures are where a measurement is " +
		"expected with 95 %."}
	if len(ps.SLOs) > 0 {
		first.Text[0] += " SLOs: " + strings.Join(ps.SLOs, ", ") + "."
	}
	if ps.Infeasible != nil {
		first.Alarms = []string{"NO FEASIBLE PLAN: " + ps.Infeasible.Why}
	}
	all := allPlans(ps)
	scales := planScales(all)
	t := table{Caption: "Plans", Head: []string{"plan", "origin"}}
	for i, c := range planned {
		t.Head = append(t.Head, c.label+", "+scales[i].unit)
	}
	row := func(name, origin string, ms harness.Metrics) {
		cells := []cellText{{Text: name}, {Text: origin, Words: true}}
		for i, c := range planned {
			cell := cellText{Text: notObserved, Missing: true}
			if m := ms.Get(c.name, c.stat); m != nil {
				cell = cellText{Text: scales[i].number(*m), Small: scales[i].interval(*m), Note: m.Note, Missing: m.Value == nil}
				if m.Value != nil {
					cell.Value = number(*m.Value)
				}
			}
			cells = append(cells, cell)
		}
		t.Rows = append(t.Rows, cells)
	}
	for _, plan := range all {
		row(string(plan.Strategy), "predicted", plan.Predicted)
		if len(plan.Measured) > 0 {
			origin := "measured"
			if plan.MeasuredOrigin != harness.OriginMeasured {
				origin = "SIMULATED"
			}
			row(string(plan.Strategy), origin, plan.Measured)
		}
	}
	first.Tables = []table{t}
	blocks := []block{first}
	for i, plan := range all {
		b := block{Heading: string(plan.Strategy), List: planDetails(plan)}
		if plan.Why != "" {
			b.Text = append(b.Text, plan.Why)
		}
		if plan.BindingWhy != "" {
			b.Text = append(b.Text, plan.BindingWhy)
		}
		if len(plan.Launch) > 0 {
			b.Code = []string{ShellLine(plan.Launch)}
		}
		if plan.Strategy == planner.Current || plan.Strategy == planner.Default {
			b.Fold, b.Heading = "the settings of "+b.Heading, ""
		} else if plan.Keep && i > 0 && all[i-1].Strategy != planner.Current && all[i-1].Strategy != planner.Default {
			b.Fold, b.Heading = b.Heading+": keep your settings", ""
		}
		blocks = append(blocks, b)
	}
	blocks = append(blocks, block{Notes: ps.Notes})
	if ps.Search.Statement != "" {
		blocks = append(blocks, block{Text: []string{"Search: " + ps.Search.Statement}})
	}
	p.add("plans", "Plan", blocks...)
	return p.verified(Verified(ps))
}

// verified lays out what was predicted beside what was measured of plans: of the one that the verdict speaks of, and
// folded away of the others.
func (p *page) verified(plans []*planner.Plan) error {
	if len(plans) == 0 {
		return nil
	}
	first := told(plans)
	var blocks []block
	for _, plan := range append([]*planner.Plan{first},
		slices.DeleteFunc(plans, func(p *planner.Plan) bool { return p == first })...) {
		rows := func(everything bool) (rows [][]string) {
			for _, c := range comparisonsOf(plan, everything) {
				rows = append(rows, c.cells())
			}
			return rows
		}
		head := []string{"metric", "unit", "predicted", "95 % range", "measured", "error", "inside"}
		forest := predictedPanel(plan)
		forest.stamped = plan.MeasuredOrigin != harness.OriginMeasured
		cs, err := charts([]panel{forest}, nil)
		if err != nil {
			return err
		}
		cs[0].Table = table{} // the one beside it
		caption := fmt.Sprintf("%s: predicted beside measured on %s", plan.Strategy, measuredOn(plan))
		t := tableOf(caption, head, rows(false))
		t.Sort, t.Filter = false, false
		t.Note = "error: of the prediction, as a share of what was measured; inside: the measured value lies in the " +
			"predicted range"
		for i, row := range t.Rows {
			if row[len(row)-1].Text == "no" {
				t.Rows[i][len(row)-1].Mark = true
			}
		}
		b := block{Text: []string{string(plan.Strategy) + ": " + VerifiedVerdict(plan) + "."}, Tables: []table{t}, Charts: cs}
		if plan != first {
			b.Fold = string(plan.Strategy) + ": predicted beside measured"
		}
		blocks = append(blocks, b,
			block{Fold: string(plan.Strategy) + ": every metric", Tables: []table{tableOf("", head, rows(true))}})
	}
	p.add("verified", "Predicted and measured", blocks...)
	return nil
}

// runs lays out the table of runs.
func (p *page) runs(in Input) error {
	if len(in.Runs) == 0 {
		return nil
	}
	p.add("runs", "Runs", block{Tables: []table{runsTable(in.Runs, "All runs, with 95 % intervals")}})
	return nil
}

// runsTable is the table of runs; metrics link to their definition.
func runsTable(runs []Run, caption string) table {
	t := table{Caption: caption, Head: []string{"metric", "unit"},
		Note: "Point at a dotted value to read what limits it or why it was not observed."}
	for _, r := range runs {
		t.Head = append(t.Head, r.Result.Name)
	}
	terms := map[string]string{}
	for _, s := range shown {
		terms[s.label] = s.name
	}
	for _, r := range rowsOf(runs) {
		label := cellText{Text: r.label}
		if name := terms[r.label]; harness.Definition(name) != "" {
			label.Term, label.Note = name, harness.Definition(name)
		}
		cells := []cellText{label, {Text: r.unit, Words: true}}
		for _, c := range r.cells {
			cells = append(cells, cellText{Text: c.text, Small: c.interval, Note: c.note, Missing: c.missing,
				Mark: strings.Contains(c.text, "GENERATOR-LIMITED") || strings.Contains(c.text, "PARTIAL")})
		}
		t.Rows = append(t.Rows, cells)
	}
	return t
}

// charts lays out the charts of the runs.
func (p *page) charts(in Input) error {
	if len(in.Runs) == 0 {
		return nil
	}
	cs, err := charts(pagePanels(in), in.Runs)
	if err != nil {
		return err
	}
	p.add("charts", "Latency, throughput and memory", block{Charts: cs})
	var use []panel
	for _, r := range drawn(in.Runs) {
		if r.Analysis != nil {
			use = append(use, useOverTime(r))
		}
	}
	if cs, err = charts(stamped(use, in.simulated()), nil); err != nil || len(use) == 0 {
		return err
	}
	p.add("use", "Use over time", block{Charts: cs})
	return nil
}

// binds lays out what the analysis of each run says.
func (p *page) binds(in Input) error {
	var blocks []block
	for _, r := range in.Runs {
		a := r.Analysis
		if a == nil {
			blocks = append(blocks, block{Heading: r.Result.Name, Notes: []string{"not analysed"}})
			continue
		}
		t := causeTable(a)
		blocks = append(blocks, block{Heading: r.Result.Name, Text: []string{a.Verdict}, Tables: []table{t}},
			evidence(a))
		if len(a.StepTime) > 0 || len(a.Use) > 0 {
			cs, err := charts(stamped(stepTimePanels(r), in.simulated()), nil)
			if err != nil {
				return err
			}
			blocks = append(blocks, block{Tables: useTables(a), Charts: cs})
		}
		if len(a.Counterfactuals) > 0 {
			blocks = append(blocks, block{Tables: []table{counterfactualTable(a)}})
		}
		blocks = append(blocks, recommendations(a)...)
		if len(a.Notes) > 0 {
			blocks = append(blocks, block{Notes: a.Notes})
		}
	}
	p.add("binds", "What binds and why", blocks...)
	return nil
}

// causeTable is what each cause takes of the run's time and, where the verdict is about some requests' time, of that.
func causeTable(a *analysis.Report) table {
	t := table{Caption: "Share of the time by cause", Head: []string{"cause", "verdict", "share of time", "binds above",
		"limit", "why"}}
	focused := func(share string, row ...cellText) []cellText {
		if a.Focus == nil {
			return row
		}
		return slices.Insert(row, 3, cellText{Text: share})
	}
	if a.Focus != nil {
		t.Head = slices.Insert(t.Head, 3, a.Focus.Name())
	}
	for _, b := range a.Bottlenecks {
		binds := cellText{Words: true}
		if b.Binds {
			binds.Text, binds.Mark = "BINDS", true
		}
		why := strings.ReplaceAll(b.Why, " %", "\u00a0%")
		t.Rows = append(t.Rows, focused(share(b.FocusShare), cellText{Text: string(b.Kind)},
			binds, cellText{Text: share(b.Share)}, cellText{Text: share(b.Threshold)}, cellText{Text: b.Limit, Words: true},
			cellText{Text: why, Words: true}))
	}
	for _, rest := range []struct {
		name  string
		share *float64
	}{{"light load", a.Light}, {"idle", a.Idle}} {
		if rest.share != nil {
			t.Rows = append(t.Rows, focused("", cellText{Text: rest.name}, cellText{}, cellText{Text: share(rest.share)},
				cellText{}, cellText{}, cellText{}))
		}
	}
	return t
}

// evidence are the numbers behind the verdict.
func evidence(a *analysis.Report) block {
	t := table{Caption: "Evidence", Head: []string{"cause", "quantity", "value", "unit", "interval or note"}}
	for _, b := range a.Bottlenecks {
		for _, m := range b.Evidence {
			row := metricCells(m)
			t.Rows = append(t.Rows, append([]cellText{{Text: string(b.Kind)}}, row...))
		}
	}
	return block{Fold: "the evidence", Tables: []table{t}}
}

// metricCells are a metric's name, value, unit, and interval or note.
func metricCells(m harness.Metric) []cellText {
	var values []float64
	if m.Value != nil {
		values = []float64{*m.Value}
	}
	s := scaleFor(m.Unit, values...)
	small := s.interval(m)
	if small == "" {
		small = m.Note
	}
	name := cellText{Text: harness.Words(m.Name, m.Stat), Words: true}
	if d := harness.Definition(m.Name); d != "" {
		name.Term, name.Note = m.Name, d
	}
	return []cellText{name, {Text: s.number(m), Missing: m.Value == nil}, {Text: s.unit, Words: true},
		{Text: small, Words: true}}
}

func useTables(a *analysis.Report) []table {
	if len(a.Use) == 0 {
		return nil
	}
	t := table{Caption: "Use of what there is", Head: []string{"quantity", "value", "unit", "interval or note"}}
	for _, m := range a.Use {
		t.Rows = append(t.Rows, metricCells(m))
	}
	return []table{t}
}

// counterfactualTable has a row per question, and for each metric that it was asked of the change, its interval and the
// values.
func counterfactualTable(a *analysis.Report) table {
	t := table{Caption: "What if a limit were lifted (SIMULATED; + is better)", Head: []string{"what if"}}
	for _, g := range a.Counterfactuals[0].Gains {
		t.Head = append(t.Head, harness.Words(g.Metric, g.Stat), "95 % interval", "from, to")
	}
	for _, c := range a.Counterfactuals {
		row := []cellText{{Text: c.Name, Words: true}}
		for _, g := range c.Gains {
			cells := gainCells(g)
			row = append(row, cells[1], cells[2], cellText{Text: cells[3].Text + " → " + cells[4].Text + " " + cells[5].Text})
		}
		t.Rows = append(t.Rows, row)
	}
	return t
}

// gainCells are a gain's metric, change, interval, before, after and unit.
func gainCells(g analysis.Gain) []cellText {
	s := scaleFor(g.Unit, g.Before, g.After)
	interval := "-"
	if g.Low != nil && g.High != nil {
		interval = harness.Percent(*g.Low, true) + " to " + harness.Percent(*g.High, true)
	}
	return []cellText{{Text: harness.Words(g.Metric, g.Stat), Words: true},
		{Text: harness.Percent(g.Change, true), Value: number(g.Change)}, {Text: interval}, {Text: s.digits(g.Before, 0)},
		{Text: s.digits(g.After, 0)}, {Text: s.unit, Words: true}}
}

// recommendations are ranked by gain, each with what it is expected to do and how to verify it.
func recommendations(a *analysis.Report) (blocks []block) {
	for i, r := range a.Recommendations {
		from := r.From
		if from == "" {
			from = "unset"
		}
		b := block{Heading: fmt.Sprintf("%d. %s: %s → %s", i+1, r.Flag, from, r.Value), Text: []string{r.Why}}
		for _, also := range r.Also {
			b.List = append(b.List, fmt.Sprintf("with it: %s %s → %s", also.Flag, also.From, also.To))
		}
		if r.Risk != "" {
			b.List = append(b.List, "risk: "+r.Risk)
		}
		if r.Gain != nil {
			b.List = append(b.List, "gain (SIMULATED): "+gainText(*r.Gain))
		}
		if len(r.Effects) > 0 {
			t := table{Caption: "Expected effect on every metric (SIMULATED)",
				Head: []string{"metric", "change, + is better", "95 % interval", "before", "after", "unit"}}
			for _, g := range r.Effects {
				t.Rows = append(t.Rows, gainCells(g))
			}
			b.Tables = []table{t}
		}
		for _, words := range [][]string{r.Command, r.Verify} {
			if len(words) > 0 {
				b.Code = append(b.Code, ShellLine(words))
			}
		}
		blocks = append(blocks, b)
	}
	return blocks
}

// search lays out what the search for plans found beside them: the front, the range of rates, the sweep.
func (p *page) search(in Input) error {
	var blocks []block
	if in.Plans != nil {
		var panels []panel
		var facts []string
		if len(in.Plans.Front) > 0 {
			panels = append(panels, frontPanel(in.Plans))
		}
		if r := in.Plans.Range; r != nil {
			panels = append(panels, rangePanel(in.Plans))
			for i := range r.Choices {
				facts = append(facts, rangeFact(in.Plans, &r.Choices[i]))
				for _, s := range r.Choices[i].Switches {
					facts = append(facts, switchFact(in.Plans, s))
				}
			}
		}
		cs, err := charts(stamped(panels, true), nil)
		if err != nil {
			return err
		}
		if len(panels) > 0 {
			blocks = append(blocks, block{Charts: cs, List: facts})
		}
	}
	if in.Sweep != nil && len(in.Sweep.Rows) > 0 {
		hs, err := heats(SweepHeatMaps(in.Sweep))
		if err != nil {
			return err
		}
		blocks = append(blocks, block{Heading: "Parameter sweep", Tables: []table{sweepTable(in.Sweep)}, Heats: hs})
	}
	p.add("search", "What else was searched", blocks...)
	return nil
}

// costModel lays out the model behind the predictions.
func (p *page) costModel(m *cost.Model) {
	if m == nil {
		return
	}
	t := table{Caption: "Coefficients of the cost model",
		Head: []string{"name", "value", "95 % interval", "unit", "meaning"}}
	for _, c := range m.Coefficients {
		t.Rows = append(t.Rows, []cellText{{Text: c.Name}, {Text: fmt.Sprintf("%.3g", c.Value)},
			{Text: fmt.Sprintf("%.3g to %.3g", c.Low, c.High)}, {Text: c.Unit, Words: true}, {Text: c.Meaning, Words: true}})
	}
	p.add("model", "Cost model", block{Text: []string{CostVerdict(m)}}, block{Fold: "coefficients", Tables: []table{t}})
}

// conditions lays out under which circumstances each run was taken.
func (p *page) conditions(in Input) {
	var blocks []block
	for _, r := range in.Runs {
		b := block{Heading: r.Result.Name, Facts: factsOf(r)}
		if len(r.Result.Warnings) > 0 {
			b.List = append(b.List, r.Result.Warnings...)
		}
		for _, e := range r.errors() {
			b.List = append(b.List, "error of requests: "+e)
		}
		blocks = append(blocks, b)
	}
	if in.Kernels != nil {
		blocks = append(blocks, block{Heading: "kernel benchmark", Facts: benchFacts(in.Kernels)})
	}
	p.add("conditions", "Conditions", blocks...)
}

// closing lays out commands, files and definitions.
func (p *page) closing(in Input) {
	if len(in.Commands) > 0 {
		p.add("repeat", "Repeat it", block{Code: in.Commands})
	}
	if len(in.Files) > 0 {
		p.add("files", "Files", block{List: in.Files})
	}
	if len(in.Runs) > 0 {
		p.add("definitions", "What the words mean", block{Terms: definitions()})
	}
}

// definitions are the metrics that the page's tables link to, and the words of a workload.
func definitions() []term {
	terms := []term{{"c", "C", "new input tokens per prompt"},
		{"m", "M", "KV-cache blocks already computed per request: a prefix of M x block_size tokens that the prefix " +
			"cache holds"},
		{"b", "B", "batch size: requests in flight"}}
	var names []string
	for _, s := range shown {
		names = append(names, s.name)
	}
	names = append(names, harness.MetricBestHitRate, harness.MetricComputeUse, harness.MetricBandwidthUse,
		harness.MetricBudgetUse, harness.MetricPartialBatches, harness.MetricQueueTime)
	for i, name := range names {
		if text := harness.Definition(name); text != "" && slices.Index(names, name) == i {
			terms = append(terms, term{name, harness.Words(name, ""), text})
		}
	}
	return terms
}

// settings are the settings of a server that are set: "max_num_seqs 256, block_size 16".
func settings(args harness.EngineArgs) string {
	data, err := json.Marshal(args)
	if err != nil {
		return ""
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	d.Token() // the brace
	var parts []string
	for d.More() {
		name, _ := d.Token()
		var value any
		if d.Decode(&value) != nil {
			break
		}
		parts = append(parts, fmt.Sprint(name, " ", value))
	}
	return strings.Join(parts, ", ")
}

// factsOf are the circumstances of one run.
func factsOf(r Run) (facts [][2]string) {
	res := r.Result
	s := res.Conditions.Server
	add := func(name, value string) {
		if value != "" && value != "0" {
			facts = append(facts, [2]string{name, value})
		}
	}
	whole := func(n int) string { return grouped(strconv.Itoa(n)) }
	add("workload", describe(res.Config))
	add("prefix", res.Config.Prefix)
	add("output_len", res.Config.OutputLen)
	server := strings.TrimSpace(s.Kind + " " + s.Version)
	if s.Simulated() || res.Origin != harness.OriginMeasured {
		server += " (" + Stamp + ")"
	}
	add("server", server)
	add("model", s.Model)
	add("GPU", s.GPU)
	add("max_model_len", whole(s.MaxModelLen))
	add("block_size", whole(s.BlockSize))
	add("KV blocks", whole(s.NumGPUBlocks))
	add("settings in force", settings(s.Args))
	if !res.Conditions.Started.IsZero() {
		add("started", res.Conditions.Started.UTC().Format("2006-01-02 15:04:05 UTC"))
	}
	if d := res.Conditions.Duration; d > 0 {
		add("measured window", seconds(d))
	}
	add("host", res.Conditions.Host)
	add("tool", res.Conditions.Tool)
	add("seed", strconv.FormatUint(res.Conditions.Seed, 10))
	add("cache salt", res.Conditions.Salt)
	if lag := res.Conditions.SendLag99; lag != nil {
		add("generator lag p99", seconds(*lag))
	}
	if cpu := res.Conditions.GeneratorCPU; cpu != nil {
		add("generator CPU, busiest 5 s", harness.Percent(*cpu, false))
	}
	add("generator-limited", res.Conditions.GeneratorLimited)
	add("retries", whole(res.Conditions.Retries))
	for _, f := range s.Features {
		add("feature "+f.Name, strings.TrimSpace(f.Support+" "+f.Note))
	}
	if len(res.Conditions.Command) > 0 {
		add("command", ShellLine(res.Conditions.Command))
	}
	return facts
}
