//go:build accuracy

package main

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"kvtune/harness"
	"kvtune/harness/archive"
	"kvtune/harness/stats"
	"kvtune/harness/vllmflags"
	"kvtune/harness/workflow"
	"kvtune/harness/workload"
	"kvtune/planner"
	"kvtune/planner/cost"
	"kvtune/planner/sim"
	"kvtune/planner/spec"
)

// TestAccuracy is `make accuracy`: what the planner predicts against what real servers did, from recorded data that is
// not part of the project. It prints every target with its error and never fails on a miss; a step that cannot be done
// is a failure. Nothing here is chosen per row: the fits see the probes and profiles, not the runs that they predict.
func TestAccuracy(t *testing.T) {
	root := os.Getenv("KVTUNE_DATA")
	if root == "" {
		root = filepath.Join("..", "..", "..", "shared", "data")
	}
	if _, err := os.Stat(root); err != nil {
		fmt.Println("skipped: no data")
		t.Skip("skipped: no data")
	}
	root, err := filepath.Abs(root)
	if err != nil {
		t.Fatal(err)
	}
	s := &score{}
	t.Run("served", func(t *testing.T) {
		s.served(t, filepath.Join(root, "vllm_h200"), "fitted on its probes and the iteration log",
			"--profiling-results", "probes_default_requests.jsonl.zst", "--steps", "step_times_default.csv")
	})
	profile, err := filepath.Abs(filepath.Join("..", "..", "bench", "results", "h200", "loop", "profile"))
	if err != nil {
		t.Fatal(err)
	}
	t.Run("profiled", func(t *testing.T) {
		s.served(t, filepath.Join(root, "vllm_h200"), "fitted on kvtune's own profile of another machine's H200",
			"--profiling-results", profile)
	})
	for _, gpu := range []string{"h200", "h100"} {
		t.Run("verified on "+gpu, func(t *testing.T) {
			s.verified(t, filepath.Join("..", "..", "bench", "results", gpu, "loop"), gpu)
		})
	}
	t.Run("kernels", func(t *testing.T) { s.kernels(t, filepath.Join(root, "llmservingsim")) })
	t.Run("aggregates", func(t *testing.T) { s.aggregates(t, filepath.Join(root, "aiconfigurator")) })
	fmt.Printf("%d of %d targets met\n", s.met, s.all)
}

// score prints targets and counts those that are met.
type score struct {
	met, all int
}

// section starts a table, or says that its data is absent.
func (s *score) section(t *testing.T, dir, title string) {
	t.Helper()
	if _, err := os.Stat(dir); err != nil {
		fmt.Printf("\n%s\nskipped: no data\n", title)
		t.Skip("skipped: no data")
	}
	fmt.Printf("\n%s\n%-44s %12s %12s %9s %9s\n", title, "target", "measured", "predicted", "error", "limit")
}

func (s *score) row(name string, measured, predicted, limit float64) {
	s.limit(name, fmt.Sprintf("%.4g", measured), fmt.Sprintf("%.4g", predicted), 100*(predicted/measured-1), limit)
}

// limit prints a target on an error in percent.
func (s *score) limit(name, measured, predicted string, percent, limit float64) {
	verdict := "pass"
	if s.all++; !(math.Abs(percent) <= limit) {
		verdict = fmt.Sprintf("MISS by %.1f points", math.Abs(percent)-limit)
	} else {
		s.met++
	}
	fmt.Printf("%-44s %12s %12s %+8.1f%% %8.0f%%  %s\n", name, measured, predicted, percent, limit, verdict)
}

// command runs kvtune in dir, as its user does.
func command(t *testing.T, dir string, args ...string) {
	t.Helper()
	t.Chdir(dir)
	var stdout, stderr bytes.Buffer
	if status := run(append([]string{"kvtune"}, args...), &stdout, &stderr); status != 0 {
		t.Fatalf("kvtune %s: status %d\n%s%s", strings.Join(args, " "), status, &stdout, &stderr)
	}
}

func requests(t *testing.T, path string) []workload.Record {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	records, partial, err := archive.ReadRequests(f)
	if err != nil || partial {
		t.Fatalf("%s: partial %v, %v", path, partial, err)
	}
	return records
}

func mustValue(t *testing.T, m harness.Metrics, name, stat string) float64 {
	t.Helper()
	v, ok := m.Value(name, stat)
	if !ok {
		t.Fatalf("no %s %s", name, stat)
	}
	return v
}

// target is how far off, in percent, a prediction of a metric may be.
type target struct {
	name, metric, stat string
	limit              float64
}

// rows are the targets of a run; what it measured as 0 has no error.
func (s *score) rows(t *testing.T, run string, measured, predicted harness.Metrics, targets []target) {
	t.Helper()
	for _, x := range targets {
		if want := mustValue(t, measured, x.metric, x.stat); want != 0 {
			s.row(run+": "+x.name, want, mustValue(t, predicted, x.metric, x.stat), x.limit)
		}
	}
}

// metrics are those of a result's file.
func metrics(t *testing.T, path string) harness.Metrics {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var result harness.Result
	if err := json.Unmarshal(data, &result); err != nil {
		t.Fatal(err)
	}
	return result.Metrics
}

// served: a fit predicts three runs of served traffic on one H200 server.
func (s *score) served(t *testing.T, data, fitted string, from ...string) {
	s.section(t, data, "vLLM 0.26 on one H200, Llama-3.1-8B: "+fitted+", runs held out")
	dir := t.TempDir()
	const model = "meta-llama/Llama-3.1-8B"
	costFile := filepath.Join(dir, "cost.json")
	command(t, data, append([]string{"fit", "--model", model, "--gpu", "h200", "--output-file", costFile}, from...)...)
	m, err := readCost(costFile)
	if err != nil {
		t.Fatal(err)
	}
	s.limit("step time, cross-validated, median", "", "", 100*m.Errors.Median, 4)
	s.limit("step time, cross-validated, mean", "", "", 100*m.Errors.Mean, 6)
	s.limit("step time, prior only (no fit), mean", "", "", 100*m.Errors.Prior, 25)
	for _, r := range []struct {
		name  string
		ttft  float64
		extra []string
	}{{"rate10", 10, nil}, {"rate20", 20, nil}, {"conc64", 10, []string{"--concurrency", "60", "--clients", "6"}}} {
		out := filepath.Join(dir, r.name)
		trace := "default_" + r.name + "_requests.jsonl.zst"
		command(t, data, append([]string{"simulate", "--cost", costFile, "--model", model, "--trace", trace,
			"--max-model-len", "16384", "--max-num-batched-tokens", "8192", "--output-dir", out}, r.extra...)...)
		want := harness.Measure(requests(t, filepath.Join(data, trace)))
		got := harness.Measure(requests(t, filepath.Join(out, "simulation"+archive.RequestsSuffix)))
		s.rows(t, r.name, want, got, []target{
			{"throughput, request/s", harness.MetricRequestThroughput, "", 3},
			{"TPOT mean, s", harness.MetricTPOT, harness.StatMean, 5},
			{"E2EL mean, s", harness.MetricE2EL, harness.StatMean, 5},
			{"TTFT mean, s", harness.MetricTTFT, harness.StatMean, r.ttft},
			{"TTFT p99, s", harness.MetricTTFT, harness.StatP99, 15},
			{"TPOT p99, s", harness.MetricTPOT, harness.StatP99, 15},
			{"E2EL p99, s", harness.MetricE2EL, harness.StatP99, 15},
		})
	}
}

// verified: a fit on a recorded loop's profile predicts the settings that were verified, on the requests that they
// served. The plans of the loop have what the model of that day said; this is what the model of now says, whose term
// for shared context was found in the runs called prefix.
func (s *score) verified(t *testing.T, loop, gpu string) {
	loop, err := filepath.Abs(loop)
	if err != nil {
		t.Fatal(err)
	}
	s.section(t, loop, "vLLM 0.26 on one "+strings.ToUpper(gpu)+", Llama-3.1-8B: fitted on kvtune's own profile, "+
		"verified settings held out")
	dir := t.TempDir()
	const model = "meta-llama/Llama-3.1-8B"
	costFile := filepath.Join(dir, "cost.json")
	command(t, loop, "fit", "--model", model, "--gpu", gpu, "--output-file", costFile, "--profiling-results", "profile")
	for _, workload := range []string{"conversation", "prefix"} {
		f, err := os.Open(filepath.Join(loop, workload, workflow.PlansFile))
		if err != nil {
			t.Fatal(err)
		}
		plans, err := planner.ReadPlans(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range append([]planner.Plan{plans.Baseline, *plans.Default}, plans.Plans...) {
			run := filepath.Join(loop, workload, "verify_"+string(p.Strategy)+"_1")
			if _, err := os.Stat(run + archive.ResultSuffix); err != nil {
				continue // it was planned, and not measured
			}
			out := filepath.Join(dir, workload+string(p.Strategy))
			command(t, loop, append([]string{"simulate", "--cost", costFile, "--model", model, "--gpu", gpu, "--vllm-version",
				"0.26", "--trace", run + archive.RequestsSuffix, "--output-dir", out}, p.Launch[3:]...)...)
			s.rows(t, workload+", "+string(p.Strategy), metrics(t, run+archive.ResultSuffix),
				metrics(t, filepath.Join(out, "simulation"+archive.ResultSuffix)), []target{
					{"throughput, token/s", harness.MetricTotalThroughput, "", 3},
					{"TPOT mean, s", harness.MetricTPOT, harness.StatMean, 5},
					{"E2EL mean, s", harness.MetricE2EL, harness.StatMean, 5},
					{"TTFT mean, s", harness.MetricTTFT, harness.StatMean, 10},
					{"cache hit rate", harness.MetricCacheHitRate, "", 5},
					{"KV usage mean", harness.MetricKVUsage, harness.StatMean, 10},
				})
		}
	}
}

// table is a CSV file by column.
func table(t *testing.T, path string) (rows []map[string]float64, names []string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	all, err := csv.NewReader(f).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range all[1:] {
		row := map[string]float64{}
		for i, name := range all[0] {
			v, err := strconv.ParseFloat(line[i], 64)
			if err != nil {
				names = append(names, line[i])
				continue
			}
			row[name] = v
		}
		rows = append(rows, row)
	}
	return rows, names
}

// curve is a time in us by size, interpolated.
type curve struct{ sizes, times []float64 }

func (c *curve) at(n float64) float64 {
	i, found := slices.BinarySearch(c.sizes, n)
	if found || i == 0 {
		return c.times[i]
	}
	i = min(i, len(c.sizes)-1)
	share := (n - c.sizes[i-1]) / (c.sizes[i] - c.sizes[i-1])
	return c.times[i-1] + share*(c.times[i]-c.times[i-1])
}

// curves reads a file of layer, size, time.
func curves(t *testing.T, path, size string) map[string]*curve {
	rows, names := table(t, path)
	out := map[string]*curve{}
	for i, row := range rows {
		c := out[names[i]]
		if c == nil {
			c = &curve{}
			out[names[i]] = c
		}
		c.sizes, c.times = append(c.sizes, row[size]), append(c.times, row["time_us"])
	}
	return out
}

// named finds a GPU and a model.
func named(t *testing.T, gpu, model string) (spec.GPU, spec.Model) {
	t.Helper()
	g, err := spec.FindGPU(gpu)
	if err != nil {
		t.Fatal(err)
	}
	m, err := spec.FindModel(model)
	if err != nil {
		t.Fatal(err)
	}
	return g, m
}

// kernels: a fit on one GPU's kernel profile predicts 300 requests that a real vLLM served on it.
func (s *score) kernels(t *testing.T, data string) {
	s.section(t, data, "vLLM 0.19 on one RTX PRO 6000, Llama-3.1-8B: fitted on a kernel profile (LLMServingSim)")
	gpu, model := named(t, "RTX-PRO-6000", "meta-llama/Llama-3.1-8B")
	args := vllmflags.Resolve(harness.EngineArgs{MaxNumSeqs: 128, MaxNumBatchedTokens: 2048, MaxModelLen: 16384},
		"0.19.0", vllmflags.Device{Name: gpu.Name, Memory: gpu.Memory})
	file := func(name string) string { return filepath.Join(data, "RTXPRO6000_llama31-8b_"+name) }
	dense := curves(t, file("tp1_profile_dense.csv"), "tokens")
	perSeq := curves(t, file("tp1_profile_per_sequence.csv"), "sequences")
	attention, _ := table(t, file("tp1_profile_attention.csv"))

	layers := float64(model.Layers)
	var all []cost.Observation
	for _, a := range attention {
		chunk, history, decodes, context := a["prefill_chunk"], a["kv_prefill"], a["n_decode"], a["kv_decode"]
		tokens, seqs := chunk+decodes, decodes
		// A profile runs kernels back to back: the device is as hot as it gets.
		step := cost.Step{DecodeSeqs: int(decodes), DecodeContext: int(decodes * context), Heat: 1}
		if chunk > 0 {
			seqs++
			step.PrefillSeqs, step.PrefillTokens, step.MaxChunk = 1, int(chunk), int(chunk)
			step.PrefillAttention = chunk * (history + chunk/2)
		}
		us := a["time_us"]
		for layer, times := range map[string]float64{"layernorm": 2, "qkv_proj": 1, "rotary_emb": 1, "o_proj": 1,
			"gate_up_proj": 1, "act_fn": 1, "down_proj": 1} {
			us += times * dense[layer].at(tokens)
		}
		us = us*layers + dense["embedding"].at(tokens) + dense["final_layernorm"].at(tokens) +
			perSeq["lm_head"].at(seqs) + perSeq["sampler"].at(seqs)
		all = append(all, cost.Observation{Steps: []cost.Step{step}, Time: time.Duration(us * 1e3), Source: "kernel profile"})
	}
	// The profile's grid is far finer than the form; a seeded share of it says as much.
	rand.New(rand.NewPCG(1, 0)).Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	m, err := cost.Fit(cost.Prior(gpu, model, args), all[:600], cost.FitOptions{})
	if err != nil {
		t.Fatal(err)
	}
	m.FrontEnd = cost.FrontEnd{} // its times are the engine core's
	memory, err := cost.Capacity(gpu, model, args)
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := sim.FromArgs(args, memory.Blocks)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Release = 19
	lines, err := os.ReadFile(file("real_requests.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	w := &workload.Workload{}
	var want []workload.Record
	start := math.Inf(1)
	for line := range bytes.Lines(lines) {
		var r struct {
			Input  int     `json:"input_toks"`
			Output int     `json:"output_toks"`
			Queued float64 `json:"queued_ts"`
			First  float64 `json:"first_token_ts"`
			Last   float64 `json:"last_token_ts"`
		}
		if err := json.Unmarshal(line, &r); err != nil {
			t.Fatal(err)
		}
		start = min(start, r.Queued)
		due := time.Duration((r.Queued - start) * 1e9)
		i := len(w.Requests)
		w.Requests = append(w.Requests, workload.Request{Index: i, Due: due, After: -1, OutputTokens: r.Output,
			Prompt: []workload.Segment{{ID: uint64(i + 1), Tokens: r.Input}}})
		rec := workload.NewRecord(&w.Requests[i])
		rec.Sent, rec.Due, rec.OutputTokens, rec.FinishReason = due, &w.Requests[i].Due, r.Output, "length"
		rec.Tokens = []workload.TokenEvent{{At: time.Duration((r.First - r.Queued) * 1e9), Tokens: 1},
			{At: time.Duration((r.Last - r.Queued) * 1e9), Tokens: r.Output - 1}}
		want = append(want, rec)
	}
	out, err := sim.Run(t.Context(), cfg, m, w, sim.Options{})
	if err != nil {
		t.Fatal(err)
	}
	measured, got := harness.Measure(want), harness.Measure(out.Records)
	for _, x := range []struct {
		name, metric string
		limit        float64
	}{{"E2EL mean, s", harness.MetricE2EL, 4}, {"TPOT mean, s", harness.MetricTPOT, 4},
		{"TTFT mean, s", harness.MetricTTFT, 10}} {
		s.row(x.name, mustValue(t, measured, x.metric, harness.StatMean), mustValue(t, got, x.metric, harness.StatMean),
			x.limit)
	}
}

// aggregates: a fit on a third of the means of closed-loop runs predicts the other two thirds.
func (s *score) aggregates(t *testing.T, data string) {
	s.section(t, data, "vLLM on H200, Llama-3.1-70B fp8, TP 1 and 2: fitted on a third of the closed-loop means "+
		"(AIConfigurator)")
	gpu, model := named(t, "H200", "meta-llama/Llama-3.1-70B")
	model.DTypeBytes = 1
	rows, _ := table(t, filepath.Join(data, "silicon_llama31-70b_fp8_vllm_h200_tp1_tp2.csv"))
	off := false
	var ttft, tpot []float64
	for _, tp := range []float64{1, 2} {
		var prior *cost.Model
		var runs []meansRun
		for _, r := range rows {
			if r["tp_size"] != tp {
				continue
			}
			n := int(r["batch_size"])
			args := vllmflags.Resolve(harness.EngineArgs{TensorParallelSize: int(tp), KVCacheDType: "fp8",
				MaxNumBatchedTokens: 8192, GPUMemoryUtilization: 0.9, MaxNumSeqs: n, MaxModelLen: 16384, EnablePrefixCaching: &off},
				"", vllmflags.Device{Name: gpu.Name, Memory: gpu.Memory})
			memory, err := cost.Capacity(gpu, model, args)
			if err != nil {
				t.Fatal(err)
			}
			cfg, err := sim.FromArgs(args, memory.Blocks)
			if err != nil {
				t.Fatal(err)
			}
			if prior == nil {
				// One model for all rows: every batch of theirs is within the captured sizes.
				prior = cost.Prior(gpu, model, harness.EngineArgs{TensorParallelSize: int(tp), KVCacheDType: "fp8"})
			}
			runs = append(runs, meansRun{
				Name:     fmt.Sprintf("isl %g osl %g concurrency %d", r["isl"], r["osl"], n),
				Workload: closedLoop(r["isl"], r["osl"], n, 10), Config: cfg, TTFT: r["silicon_ttft_ms"] / 1e3,
				TPOT: r["silicon_tpot_ms"] / 1e3,
			})
		}
		var train, test []meansRun
		for i, r := range runs {
			if i%3 == 0 {
				train = append(train, r)
			} else {
				test = append(test, r)
			}
		}
		m, err := fitMeans(t.Context(), prior, train)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range test {
			a, b, err := r.simulate(t.Context(), m)
			if err != nil {
				t.Fatal(err)
			}
			fmt.Printf("  TP %g %-34s TTFT %8.0f ms %+6.1f %%   TPOT %7.2f ms %+6.1f %%\n", tp, r.Name, 1e3*r.TTFT,
				100*(a/r.TTFT-1), 1e3*r.TPOT, 100*(b/r.TPOT-1))
			ttft, tpot = append(ttft, math.Abs(a/r.TTFT-1)), append(tpot, math.Abs(b/r.TPOT-1))
		}
	}
	s.limit("TPOT, median absolute error, held-out rows", "", "", 100*stats.New(tpot).Median(), 6)
	s.limit("TTFT, median absolute error, held-out rows", "", "", 100*stats.New(ttft).Median(), 15)
}

// closedLoop is requests for each of n slots, their lengths uniform from 0.8 of the nominal ones.
func closedLoop(isl, osl float64, n, perSlot int) *workload.Workload {
	const ratio = 0.8
	rng := rand.New(rand.NewPCG(uint64(n), 0))
	length := func(l float64) int { return int(l * (ratio + (1-ratio)*rng.Float64())) }
	w := &workload.Workload{Concurrency: n}
	for i := range perSlot * n {
		w.Requests = append(w.Requests, workload.Request{Index: i, After: -1, OutputTokens: length(osl),
			Prompt: []workload.Segment{{ID: uint64(i + 1), Tokens: length(isl)}}})
	}
	return w
}
