package report

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"fmt"
	"html/template"
	"image/color"
	"io"
	"strconv"
	"strings"
	"unicode"

	"kvtune/harness"
	"kvtune/planner"
)

//go:embed page.html
var pageSource string

// page is what the template shows.
type page struct {
	Input
	Verdict      string
	Simulated    bool
	Warnings     []string
	Style        template.CSS
	Rows         []htmlRow
	Charts       []chart
	PlanHead     []string
	PlanRows     []planRow
	Verified     []verified
	Conditions   []conditions
	Coefficients [][]string
	KernelPage   *kernelPage
}

type htmlRow struct {
	Label, Unit string
	Cells       []htmlCell
}

type htmlCell struct {
	Text, Interval, Note string
	Missing              bool
}

// chart is a panel as an element of the page.
type chart struct {
	Title, Missing string
	SVG            template.HTML
	Head           []string
	Rows           [][]string
}

type planRow struct {
	Name            string
	Cells           []htmlCell
	Details         []string
	Why, BindingWhy string
	Launch          string
}

type verified struct {
	Name, Origin string
	// Rows are the metrics of the table of runs, All every metric that can be compared.
	Rows, All [][]string
}

// conditions are the circumstances of one run, what failed in it and what the analysis says.
type conditions struct {
	Run    Run
	Facts  [][2]string
	Errors []string
	Binds  [][]string
}

// HTML writes one page that holds everything and loads nothing: verdict and warnings first, then the table of runs,
// the charts with their figures, what binds, the plans, predicted beside measured, conditions and the commands to
// repeat. All text of the input is escaped; the page's policy forbids scripts and loading.
func HTML(w io.Writer, in Input) error {
	t, err := template.New("page").Parse(pageSource)
	if err != nil {
		return err
	}
	p := page{Input: in, Simulated: in.simulated(), Warnings: in.Warnings(), Style: stylesheet()}
	origin, partial := harness.OriginMeasured, false
	if p.Simulated {
		origin = harness.OriginSimulated
	}
	for _, r := range in.Runs {
		partial = partial || r.Result.Partial
	}
	p.Verdict = VerdictLine(in.Verdict, origin, partial)
	if p.Title == "" {
		p.Title = "kvtune report"
	}
	for _, r := range rowsOf(in.Runs) {
		row := htmlRow{Label: r.label, Unit: r.unit}
		for _, c := range r.cells {
			row.Cells = append(row.Cells, htmlCell{c.text, c.interval, c.note, c.missing})
		}
		p.Rows = append(p.Rows, row)
	}
	if len(in.Runs) > 0 {
		for _, panel := range panelsOf(in) {
			svg, err := panel.svg(in.Runs)
			if err != nil {
				return err
			}
			// The element is drawn here; every text in it was escaped when it was drawn.
			p.Charts = append(p.Charts, chart{panel.title, panel.missing, template.HTML(svg), panel.head, panel.rows})
		}
	}
	for _, r := range in.Runs {
		p.Conditions = append(p.Conditions, conditionsOf(r))
	}
	if in.Plans != nil {
		p.plans(in.Plans)
	}
	if in.Kernels != nil {
		if p.KernelPage, err = kernelPageOf(in.Kernels); err != nil {
			return err
		}
	}
	if in.Cost != nil {
		for _, c := range in.Cost.Coefficients {
			p.Coefficients = append(p.Coefficients, []string{c.Name, fmt.Sprintf("%.3g", c.Value),
				fmt.Sprintf("%.3g to %.3g", c.Low, c.High), c.Unit, c.Meaning})
		}
	}
	var b bytes.Buffer
	if err := t.Execute(&b, p); err != nil {
		return err
	}
	_, err = w.Write(bytes.Map(func(r rune) rune {
		if unicode.IsControl(r) && r != '\n' && r != '\t' {
			return '?'
		}
		return r
	}, b.Bytes()))
	return err
}

func (p *page) plans(ps *planner.Plans) {
	all := allPlans(ps)
	scales := planScales(all)
	for i, c := range planned {
		p.PlanHead = append(p.PlanHead, c.label+", "+scales[i].unit)
	}
	for _, plan := range all {
		row := planRow{
			Name: string(plan.Strategy), Details: planDetails(plan), Why: plan.Why, BindingWhy: plan.BindingWhy,
		}
		for i, c := range planned {
			cell := htmlCell{Text: notObserved, Missing: true}
			if m := plan.Predicted.Get(c.name, c.stat); m != nil {
				cell = htmlCell{scales[i].number(*m), scales[i].interval(*m), m.Note, m.Value == nil}
			}
			row.Cells = append(row.Cells, cell)
		}
		if len(plan.Launch) > 0 {
			row.Launch = ShellLine(plan.Launch)
		}
		p.PlanRows = append(p.PlanRows, row)
		if len(plan.Compared) == 0 {
			continue
		}
		v := verified{Name: string(plan.Strategy), Origin: measuredOrigin(plan)}
		for _, c := range comparisonsOf(plan, false) {
			v.Rows = append(v.Rows, c.cells())
		}
		for _, c := range comparisonsOf(plan, true) {
			v.All = append(v.All, c.cells())
		}
		p.Verified = append(p.Verified, v)
	}
}

func conditionsOf(r Run) conditions {
	res := r.Result
	s := res.Conditions.Server
	c := conditions{Run: r, Errors: r.errors()}
	add := func(name, value string) {
		if value != "" && value != "0" {
			c.Facts = append(c.Facts, [2]string{name, value})
		}
	}
	number := func(n int) string { return grouped(strconv.Itoa(n)) }
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
	add("max_model_len", number(s.MaxModelLen))
	add("block_size", number(s.BlockSize))
	add("KV blocks", number(s.NumGPUBlocks))
	if args, err := json.Marshal(s.Args); err == nil && string(args) != "{}" {
		add("settings in force", string(args))
	}
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
	for _, f := range s.Features {
		add("feature "+f.Name, strings.TrimSpace(f.Support+" "+f.Note))
	}
	if len(res.Conditions.Command) > 0 {
		add("command", ShellLine(res.Conditions.Command))
	}
	if r.Analysis != nil {
		for _, b := range r.Analysis.Bottlenecks {
			binds := ""
			if b.Binds {
				binds = "binds"
			}
			evidence := make([]string, len(b.Evidence))
			for i, m := range b.Evidence {
				evidence[i] = m.String()
			}
			c.Binds = append(c.Binds, []string{string(b.Kind), binds, share(b.Share), share(b.Threshold), b.Limit,
				b.Why, strings.Join(evidence, "; ")})
		}
	}
	return c
}

// stylesheet names the palette's colours for the page's own rules.
func stylesheet() template.CSS {
	rgb := func(c color.NRGBA) string { return fmt.Sprintf("rgb(%d,%d,%d)", c.R, c.G, c.B) }
	return template.CSS(fmt.Sprintf(":root{--ink:%s;--faint:%s;--grid:%s;--ground:%s;--alarm:%s;--paper:%s}\n"+
		"@media(prefers-color-scheme:dark){:root{--ink:%s;--faint:%s;--grid:%s;--ground:%s}}",
		rgb(palette.ink), rgb(palette.faint), rgb(palette.grid), rgb(palette.ground), rgb(palette.alarm),
		rgb(palette.ground),
		rgb(palette.night.ink), rgb(palette.night.faint), rgb(palette.night.grid), rgb(palette.night.ground)))
}
