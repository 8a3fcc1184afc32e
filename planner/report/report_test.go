package report

import (
	"bytes"
	"context"
	"encoding/xml"
	"fmt"
	"html"
	"image/png"
	"io"
	"regexp"
	"slices"
	"strings"
	"testing"

	"kvtune/harness"
	"kvtune/harness/stats"
	"kvtune/harness/vllmflags"
	"kvtune/harness/workload"
	"kvtune/planner"
	"kvtune/planner/analysis"
	"kvtune/planner/cost"
	"kvtune/planner/sim"
	"kvtune/planner/spec"
)

// demo is a report on simulated runs of an L4: what `kvtune workflow` would hand over.
func demo(t testing.TB) Input {
	t.Helper()
	ctx := context.Background()
	gpu, err := spec.FindGPU("L4")
	if err != nil {
		t.Fatal(err)
	}
	model, err := spec.FindModel("meta-llama/Llama-3.2-3B")
	if err != nil {
		t.Fatal(err)
	}
	in := Input{
		Title: "meta-llama/Llama-3.2-3B on L4", Verdict: "KEEP your settings (balanced): the gain is within noise",
		Files: []string{"results/report.html"}, Commands: []string{"kvtune workflow --quick-test --output-dir results"},
	}
	for i, c := range []struct {
		name    string
		c, m, b int
		rate    string
	}{{"low-latency", 256, 16, 16, "6"}, {"high-throughput", 1024, 64, 96, ""}, {"memory-efficient", 512, 32, 32, ""}} {
		args := vllmflags.Resolve(harness.EngineArgs{MaxModelLen: 4096, NumGPUBlocksOverride: 4000 - 1200*i}, "0.32.0",
			vllmflags.Device{Name: gpu.Name, Memory: gpu.Memory})
		in.Cost = cost.Prior(gpu, model, args)
		cfg, err := sim.FromArgs(args, 0)
		if err != nil {
			t.Fatal(err)
		}
		w, err := workload.Spec{C: c.c, M: c.m, B: c.b, BlockSize: args.BlockSize, Type: "mixed", NumMeasurements: 2,
			Rate: c.rate, MaxModelLen: 4096, Seed: 1}.Build()
		if err != nil {
			t.Fatal(err)
		}
		out, err := sim.Run(ctx, cfg, in.Cost, w, sim.Options{Steps: true, Series: true})
		if err != nil {
			t.Fatal(err)
		}
		info := harness.ServerInfo{Kind: harness.KindEmbedded, Version: "0.32.0", Model: model.Name,
			BlockSize: args.BlockSize, NumGPUBlocks: cfg.NumGPUBlocks, KVBytesPerToken: model.KVBytesPerToken("auto", 1),
			Args: args, GPU: gpu.Name}
		res := &harness.Result{
			Schema: harness.ResultSchema, Name: c.name, Origin: harness.OriginSimulated,
			Config:     harness.Config{C: c.c, M: c.m, B: c.b, EngineArgs: args, ProfilingType: harness.Mixed, Rate: c.rate},
			Conditions: harness.Conditions{Server: info, Seed: 1, Tool: "kvtune test"},
			Metrics:    append(harness.Measure(out.Records), harness.Observe(info, out.Counters, out.Series)...),
			Counters:   out.Counters,
		}
		run := Run{Result: res, Records: out.Records, Steps: out.Steps, Series: out.Series}
		run.Analysis = analysis.Analyze(ctx, analysis.Input{Result: res, Records: out.Records, Steps: out.Steps,
			Series: out.Series, Workload: w, Server: analysis.Server{Args: args, NumGPUBlocks: cfg.NumGPUBlocks, GPU: &gpu,
				Model: &model, Cost: in.Cost}})
		in.Runs = append(in.Runs, run)
		if i > 0 {
			continue
		}
		in.Plans, err = planner.Make(ctx, planner.Request{
			Server: analysis.Server{Args: args, NumGPUBlocks: cfg.NumGPUBlocks, GPU: &gpu, Model: &model, Cost: in.Cost},
			Model:  model.Name, Version: "0.32.0", Seed: 1,
			Workload: func(uint64) (*workload.Workload, error) { return w, nil },
			Options: planner.Options{Budget: 200, Requests: 20, Replicas: 2, Axes: []planner.Axis{
				{Flag: "max_num_seqs", Values: []string{"8", "256"}}}},
		})
		if err != nil {
			t.Fatal(err)
		}
		in.Plans.Plans[0].SetMeasured(planner.Measured{Origin: res.Origin, Metrics: res.Metrics, Records: out.Records})
	}
	return in
}

var hostile = `</text></svg><script src="https://evil.example/x.js">alert(1)</script>` + "\x1b[31m\x00\n'\"&<b>"

func render(t *testing.T, in Input) (text, page, svg string) {
	t.Helper()
	var a, b, c bytes.Buffer
	for _, err := range []error{Text(&a, in, everything(in)...), HTML(&b, in), Picture(&c, in, "svg")} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return a.String(), b.String(), c.String()
}

// Whatever a model, a configuration, an error or a verdict is called, it stays text.
func TestHostileNames(t *testing.T) {
	in := demo(t)
	in.Title, in.Verdict = hostile, hostile
	in.Files, in.Commands = []string{hostile}, []string{hostile}
	for i := range in.Runs {
		r := in.Runs[i].Result
		r.Name, r.Warnings, r.Partial, r.Why = hostile, []string{hostile}, true, hostile
		r.Conditions.Server.Model, r.Conditions.Host, r.Conditions.Salt, r.Config.Trace = hostile, hostile, hostile, hostile
		in.Runs[i].Records[len(in.Runs[i].Records)-1].Error = hostile
		in.Runs[i].Analysis.Verdict = hostile
	}
	in.Plans.Plans[0].Why, in.Plans.Plans[0].Launch = hostile, []string{"vllm", "serve", hostile}
	text, page, svg := render(t, in)
	staysText(t, page)
	if strings.Contains(page, "<b>'") || strings.Contains(page, "&<b>") || strings.Contains(svg, "<script") ||
		strings.Count(svg, "</svg>") != 1 {
		t.Error("markup of a name reached a drawing")
	}
	for name, s := range map[string]string{"text": text, "svg": svg} {
		if strings.ContainsAny(s, "\x1b\x00") {
			t.Errorf("control characters of a name reached the %s", name)
		}
	}
	var doc struct{}
	if err := xml.Unmarshal([]byte(svg), &doc); err != nil {
		t.Errorf("svg is not XML: %v", err)
	}
}

// The page loads nothing and runs nothing but its own script: a policy that says so, with the hash of each source; no
// reference to anywhere; no style attribute, which the policy would not let through.
func TestPageIsSelfContained(t *testing.T) {
	_, page, _ := render(t, demo(t))
	if n := strings.Count(page, "<title>"); n != 1 {
		t.Errorf("%d titles", n)
	}
	found := regexp.MustCompile(`http-equiv="Content-Security-Policy" content="([^"]*)"`).FindStringSubmatchIndex(page)
	if found == nil || found[0] > strings.Index(page, "<style>") {
		t.Fatal("the policy is missing or comes after what it governs")
	}
	policy := html.UnescapeString(page[found[2]:found[3]])
	for _, element := range []string{"style", "script"} {
		_, rest, _ := strings.Cut(page, "<"+element+">")
		source, _, _ := strings.Cut(rest, "</"+element+">")
		if !strings.Contains(policy, element+"-src "+sourceHash(source)+";") {
			t.Errorf("the policy does not name the page's %s: %s", element, policy)
		}
	}
	if !strings.HasPrefix(policy, "default-src 'none'; ") || strings.Contains(policy, "unsafe") {
		t.Errorf("policy %s", policy)
	}
	for _, loads := range []string{"http://", "https://", "src=", "url(", "@import", "<link", "<iframe", "<img", " style=",
		"onclick"} {
		if strings.Contains(page, loads) {
			t.Errorf("the page has %q", loads)
		}
	}
	if elsewhere := regexp.MustCompile(`href="[^#"]`).FindString(page); elsewhere != "" {
		t.Errorf("the page links elsewhere: %s", elsewhere)
	}
	for _, link := range regexp.MustCompile(`href="#([^"]*)"`).FindAllStringSubmatch(page, -1) {
		if !strings.Contains(page, ` id="`+link[1]+`"`) {
			t.Errorf("nothing has the name %s, which is linked to", link[1])
		}
	}
	texts := strings.Count(page, "<text ")
	if coloured := len(regexp.MustCompile(`<text [^>]*textLength="[^>]*class="f-`).FindAllString(page, -1)) +
		len(regexp.MustCompile(`<text [^>]*class="[^>]*f-[^>]*textLength="`).FindAllString(page, -1)); texts == 0 ||
		coloured != texts {
		t.Errorf("of %d texts in drawings %d have a colour of the theme and a width", texts, coloured)
	}
	if strings.Contains(page, "ZgotmplZ") {
		t.Error("the template refused a value")
	}
	verdict, table := strings.Index(page, "KEEP your settings"), strings.Index(page, "<table")
	if verdict < 0 || verdict > table {
		t.Error("the verdict does not come first")
	}
}

// Everything of a simulated server says so, and nothing of a real one does.
func TestStamp(t *testing.T) {
	in := demo(t)
	text, page, svg := render(t, in)
	if first, _, _ := strings.Cut(text, "\n"); !strings.Contains(first, "SIMULATED") {
		t.Errorf("the first line does not say so: %q", first)
	}
	if !strings.Contains(page, `<div class="stamp"`) {
		t.Error("the page has no stamp")
	}
	panels := len(panelsOf(in))
	if n := strings.Count(svg, ">"+Stamp+"<") + strings.Count(svg, ">"+panelStamp+"<"); n != panels+1 {
		t.Errorf("%d stamps on a picture of %d charts", n, panels)
	}
	for _, part := range strings.Split(page, `<figure class="chart"><svg`)[1:] {
		if !strings.Contains(part, ">"+panelStamp+"</text>") {
			t.Error("a chart of the page has no stamp")
		}
	}

	in.Plans = nil
	for i := range in.Runs {
		in.Runs[i].Result.Origin = harness.OriginMeasured
		in.Runs[i].Result.Conditions.Server.Kind = harness.KindVLLM
	}
	text, page, svg = render(t, in)
	for name, s := range map[string]string{"text": text, "svg": svg} {
		if strings.Contains(s, "SIMULATED") {
			t.Errorf("the %s of a real server says simulated", name)
		}
	}
	if strings.Contains(page, `<div class="stamp"`) || strings.Contains(page, panelStamp+"</text>") {
		t.Error("the page of a real server is stamped")
	}
	in.Runs[1].Result.Origin = harness.OriginSimulated
	if text, _, _ = render(t, in); !strings.Contains(text, Stamp) {
		t.Error("one simulated run among real ones is not pointed out")
	}
}

func TestPictureSize(t *testing.T) {
	in := demo(t)
	var pictures [2]bytes.Buffer
	for i := range pictures {
		if err := Picture(&pictures[i], in, "png"); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(pictures[0].Bytes(), pictures[1].Bytes()) {
		t.Error("the same input gave another picture")
	}
	img, err := png.Decode(&pictures[0])
	if err != nil {
		t.Fatal(err)
	}
	if size := img.Bounds().Size(); size.X != 1760 || size.Y != 1100 {
		t.Errorf("picture of %v", size)
	}
	if err := Picture(io.Discard, in, "gif"); err == nil {
		t.Error("a gif was drawn")
	}
}

func TestSameInputSameBytes(t *testing.T) {
	text, page, svg := render(t, demo(t))
	text2, page2, svg2 := render(t, demo(t))
	if text != text2 || page != page2 || svg != svg2 {
		t.Error("the same input gave other bytes")
	}
}

// Runs of which nothing is known, more runs than colours and an empty input are reports too.
func TestSparse(t *testing.T) {
	var in Input
	for i := range 9 {
		in.Runs = append(in.Runs, Run{Result: &harness.Result{Name: fmt.Sprintf("run %d", i),
			Origin: harness.OriginMeasured}})
	}
	text, page, svg := render(t, in)
	for _, want := range []string{notObserved, "run 8", "not analysed"} {
		if !strings.Contains(text, want) || !strings.Contains(page, want) {
			t.Errorf("%q is missing", want)
		}
	}
	if !strings.Contains(svg, "and 3 more, not drawn") || !strings.Contains(svg, "not observed: no request was answered") {
		t.Error("the picture does not say what it leaves out")
	}
	render(t, Input{})
	one := demo(t)
	one.Runs = one.Runs[:1] // throughput over time instead of per run
	if _, page, svg = render(t, one); !strings.Contains(page, "tokens per second over time") ||
		!strings.Contains(svg, "tokens per second over time") {
		t.Error("one run has no throughput over time")
	}
}

// What is drawn is what harness.Measure computes.
func TestSamplesAreTheMetrics(t *testing.T) {
	for _, r := range demo(t).Runs {
		for _, name := range []string{harness.MetricTTFT, harness.MetricITL, harness.MetricTPOT, harness.MetricE2EL} {
			want, _ := r.Result.Metrics.Value(name, harness.StatP99)
			if got := stats.New(harness.Samples(r.Records, name)).Percentile(99); got != want {
				t.Errorf("%s: p99 of the samples %g, of the metric %g", name, got, want)
			}
		}
	}
}

// A column without anything in it is not shown.
func TestFilled(t *testing.T) {
	got := table{Head: []string{"a", "b", "c"}, Rows: [][]cellText{
		{{Text: "1"}, {Words: true}, {}}, {{}, {Words: true}, {Small: "2"}},
	}}.Filled()
	if want := []string{"a", "c"}; !slices.Equal(got.Head, want) || len(got.Rows[0]) != 2 || got.Rows[1][1].Small != "2" {
		t.Errorf("columns %v, rows %v", got.Head, got.Rows)
	}
}
