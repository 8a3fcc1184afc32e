//go:build vllm

package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"kvtune/harness"
	"kvtune/harness/archive"
	"kvtune/harness/load"
	"kvtune/harness/vllm"
	"kvtune/harness/workflow"
	"kvtune/harness/workload"
	"kvtune/planner"
)

// installation is the real vLLM that `make test-vllm` installed. Without one the tests fail: a green run means that a
// real server was asked.
func installation(t *testing.T) (command, model string) {
	t.Helper()
	dir := os.Getenv("KVTUNE_VLLM")
	command, model = filepath.Join(dir, "bin", "vllm"), filepath.Join(dir, "tiny-llama")
	if _, err := os.Stat(command); dir == "" || err != nil {
		t.Fatalf("KVTUNE_VLLM=%q is no vLLM installation (%v); run make test-vllm, which makes one", dir, err)
	}
	return command, model
}

// tinyModelFlags are what the tiny model needs; they go to the server unchanged. In float32 since a processor without
// bfloat16 of its own is three times slower with that.
func tinyModelFlags() []string {
	return []string{"--load-format", "dummy", "--skip-tokenizer-init", "--dtype", "float32", "--enforce-eager"}
}

// kvtune runs a command line in this process and returns what it printed and its exit status.
func kvtune(args ...string) (stdout, stderr string, status int) {
	var out, errs bytes.Buffer
	status = run(append([]string{"kvtune"}, args...), &out, &errs)
	return out.String(), errs.String(), status
}

// wordTokenizer makes a tokenizer in which a word is a token, for clients that can only send text: text of n words of
// the vocabulary is n tokens on both sides.
func wordTokenizer(t *testing.T, python string) string {
	t.Helper()
	dir := t.TempDir()
	const make = `
import json, sys
from tokenizers import Tokenizer, models, pre_tokenizers
vocab = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, 4096)}
t = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
t.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
t.save(sys.argv[1] + "/tokenizer.json")
json.dump({"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
  "model_max_length": 8192}, open(sys.argv[1] + "/tokenizer_config.json", "w"))`
	if out, err := exec.Command(python, "-c", make, dir).CombinedOutput(); err != nil {
		t.Fatalf("making a tokenizer: %v: %s", err, out)
	}
	return dir
}

func TestVLLMProfile(t *testing.T) {
	command, model := installation(t)
	tokenizer := wordTokenizer(t, filepath.Join(filepath.Dir(command), "python"))
	server, err := vllm.Launch(t.Context(), vllm.LaunchOptions{
		Argv: []string{command, "serve"}, Model: model, Args: []string{"--max-model-len", "4096"},
		Extra:   []string{"--load-format", "dummy", "--tokenizer", tokenizer, "--dtype", "float32", "--enforce-eager"},
		LogPath: filepath.Join(t.TempDir(), "server.log"),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	}()
	for _, kind := range []string{"prefill", "decode", "mixed"} {
		for _, prefix := range []string{"shared", "own"} {
			t.Run(kind+"/"+prefix, func(t *testing.T) {
				const m, b, warmup, measured = 2, 4, 1, 2
				dir := t.TempDir()
				out, errs, status := kvtune("profile", "--endpoint", server.URL(), "--gpu", "CPU", "--C", "100", "--M",
					fmt.Sprint(m), "--B", fmt.Sprint(b), "--profiling-type", kind, "--prefix", prefix, "--num-warmup",
					fmt.Sprint(warmup), "--num-measurements", fmt.Sprint(measured), "--output-len", "16", "--model", model,
					"--output-dir", dir)
				if status != exitDone {
					t.Fatalf("exit status %d: %s%s", status, out, errs)
				}
				if strings.Contains(out, "SIMULATED") {
					t.Errorf("a real server's figures are called simulated:\n%s", out)
				}
				res, err := archive.ReadResult(dir)
				if err != nil {
					t.Fatal(err)
				}
				if res.Origin != harness.OriginMeasured || res.Partial {
					t.Errorf("origin %s, partial %v: %s", res.Origin, res.Partial, res.Why)
				}
				if ok, _ := res.Metrics.Value(harness.MetricRequests, harness.StatOK); ok != b*measured {
					t.Errorf("%v requests succeeded, want %d", ok, b*measured)
				}
				want := 1.0
				if kind != "prefill" {
					want = 16
				}
				if got, _ := res.Metrics.Value(harness.MetricOutputTokens, harness.StatTotal); got != want*b*measured {
					t.Errorf("%v output tokens, want %v", got, want*b*measured)
				}
				blockSize := res.Conditions.Server.BlockSize
				hits := res.Counters["vllm:prefix_cache_hits_total"]
				if wantHits := float64(m * blockSize * b * (warmup + measured)); blockSize == 0 || hits != wantHits {
					t.Errorf("block size %d: the server counted %v hit tokens, want %v", blockSize, hits, wantHits)
				}
			})
		}
	}
	t.Run("too long", func(t *testing.T) {
		_, errs, status := kvtune("profile", "--endpoint", server.URL(), "--gpu", "CPU", "--model", model, "--C", "5000",
			"--B", "1", "--max-model-len", "8192", "--output-dir", t.TempDir())
		if status != exitUsage || !strings.Contains(errs, "4096") {
			t.Errorf("exit status %d, %s; want 2 and the server's limit, 4096", status, errs)
		}
	})
	profiled := func(t *testing.T, args ...string) *harness.Result {
		t.Helper()
		dir := t.TempDir()
		out, errs, status := kvtune(append([]string{"profile", "--endpoint", server.URL(), "--gpu", "CPU", "--model", model,
			"--output-dir", dir}, args...)...)
		if status != exitDone {
			t.Fatalf("exit status %d: %s%s", status, out, errs)
		}
		res, err := archive.ReadResult(dir)
		if err != nil {
			t.Fatal(err)
		}
		return res
	}
	// A server under fcfs answers a request with a priority as any other: kvtune has to say that nobody obeys.
	t.Run("priorities under fcfs", func(t *testing.T) {
		res := profiled(t, "--C", "16", "--M", "0", "--B", "2", "--profiling-type", "decode", "--num-warmup", "0",
			"--num-measurements", "2", "--output-len", "2", "--classes", "chat=0.5,batch=0.5/10")
		if ok, _ := res.Metrics.Value(harness.MetricRequests, harness.StatOK); ok != 4 ||
			!strings.Contains(strings.Join(res.Warnings, "; "), "does not state its scheduling_policy") {
			t.Errorf("%v requests succeeded, warnings %q", ok, res.Warnings)
		}
		_, errs, status := kvtune("profile", "--endpoint", server.URL(), "--gpu", "CPU", "--model", model, "--C", "16", "--B",
			"2", "--classes", "chat=0.5,batch=0.5/0/sql", "--output-dir", t.TempDir())
		if status != exitUsage || !strings.Contains(errs,
			`lora is "sql": allowed is an adapter that the server serves (none)`) {
			t.Errorf("an adapter that is not there: exit status %d, %s", status, errs)
		}
	})
	t.Run("twice without a restart", func(t *testing.T) { sameTwice(t, profiled) })
	t.Run("as vllm bench serve", func(t *testing.T) {
		python := filepath.Join(filepath.Dir(command), "python")
		asVLLMBench(t, profiled, startVLLMBench(t, python, server.URL(), model, tokenizer))
	})
	// The last part: it stops the server.
	t.Run("stops with streams open", func(t *testing.T) { stopsWithStreamsOpen(t, server) })
}

// sameTwice: a run finds the server cold although the same run was there before, and gives the same figures.
func sameTwice(t *testing.T, profiled func(*testing.T, ...string) *harness.Result) {
	const m, b, measured = 6, 4, 6
	var runs [2]*harness.Result
	for i := range runs {
		runs[i] = profiled(t, "--C", "64", "--M", fmt.Sprint(m), "--B", fmt.Sprint(b), "--profiling-type", "decode",
			"--num-warmup", "1", "--num-measurements", fmt.Sprint(measured), "--output-len", "24", "--seed", "3")
		want := float64(m * runs[i].Conditions.Server.BlockSize * b * (1 + measured))
		if got := runs[i].Counters[harness.CounterPrefixHits]; got != want {
			t.Errorf("run %d: %v prefix hits, want %v: no more, as it begins cold, and no less", i+1, got, want)
		}
		for _, w := range runs[i].Warnings {
			if strings.Contains(w, "contaminated") || strings.Contains(w, "prefix-cache hit tokens") {
				t.Errorf("run %d: %s", i+1, w)
			}
		}
	}
	for _, metric := range []string{harness.MetricPromptTokens, harness.MetricOutputTokens} {
		x, _ := runs[0].Metrics.Value(metric, harness.StatTotal)
		y, _ := runs[1].Metrics.Value(metric, harness.StatTotal)
		if x != y || x == 0 {
			t.Errorf("%s: %v and %v", metric, x, y)
		}
	}
	// A busy machine differs from itself by tens of percent; what is logged says how far, what is wrong by a factor fails.
	near(t, "median TTFT", 0.5, value(runs[0], harness.MetricTTFTFromSend, harness.StatP50),
		value(runs[1], harness.MetricTTFTFromSend, harness.StatP50))
	near(t, "median ITL", 0.5, value(runs[0], harness.MetricITL, harness.StatP50),
		value(runs[1], harness.MetricITL, harness.StatP50))
}

func value(r *harness.Result, metric, stat string) float64 {
	v, ok := r.Metrics.Value(metric, stat)
	if !ok {
		return math.NaN()
	}
	return v
}

// near checks that two figures differ by no more than a share of the larger.
func near(t *testing.T, what string, share, a, b float64) {
	t.Helper()
	t.Logf("%s: %.4g and %.4g", what, a, b)
	if !(math.Abs(a-b) <= share*max(a, b)) {
		t.Errorf("%s: %.4g and %.4g differ by more than %.0f %%", what, a, b, share*100)
	}
}

// peerFigures are what kvtune and vllm bench serve both report, in seconds, token/s and tokens.
type peerFigures struct {
	ttft, tpot, itl, throughput float64
	prompt, output              float64
}

// The load of [asVLLMBench].
const (
	benchRequests, benchPrompt, benchOutput, benchConcurrency = 32, 100, 24, 4
	benchRuns                                                 = 4 // of each client
)

// vllmBench is vLLM's own client in a process that runs it as often as asked: its start takes longer than a run.
type vllmBench struct {
	model, tokenizer, url string
	dir                   string
	errs                  bytes.Buffer
	in                    io.Writer
	out                   *bufio.Scanner
}

func startVLLMBench(t *testing.T, python, url, model, tokenizer string) *vllmBench {
	t.Helper()
	const script = `
import sys
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = FlexibleArgumentParser()
add_cli_args(parser)
answers, sys.stdout = sys.stdout, sys.stderr
print("ready", file=answers, flush=True)
for line in sys.stdin:
    main(parser.parse_args(line.split()))
    print("ran", file=answers, flush=True)`
	b := &vllmBench{model: model, tokenizer: tokenizer, url: url, dir: t.TempDir()}
	cmd := exec.Command(python, "-c", script)
	cmd.Stderr = &b.errs
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("vllm bench serve: %v: %s", err, b.errs.String()[max(0, b.errs.Len()-2000):])
		}
	})
	b.in, b.out = in, bufio.NewScanner(out)
	b.wait(t)
	return b
}

// wait returns when the process has said that it is ready, or has run.
func (b *vllmBench) wait(t *testing.T) {
	t.Helper()
	if !b.out.Scan() {
		t.Fatalf("vllm bench serve has ended: %v", b.out.Err())
	}
}

// run runs the load of [asVLLMBench].
func (b *vllmBench) run(t *testing.T, seed string) *peerFigures {
	t.Helper()
	dir := b.dir
	fmt.Fprintln(b.in, "--backend openai --base-url", b.url, "--model", b.model, "--tokenizer", b.tokenizer,
		"--dataset-name random --random-input-len", benchPrompt, "--random-output-len", benchOutput, "--num-prompts",
		benchRequests, "--max-concurrency", benchConcurrency, "--ignore-eos --temperature 0 --seed", seed,
		"--save-result --save-detailed --result-dir", dir, "--result-filename bench.json")
	b.wait(t)
	path := filepath.Join(dir, "bench.json")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		TTFT       float64 `json:"mean_ttft_ms"`
		TPOT       float64 `json:"mean_tpot_ms"`
		ITL        float64 `json:"mean_itl_ms"`
		Throughput float64 `json:"output_throughput"`
		Input      float64 `json:"total_input_tokens"`
		Output     float64 `json:"total_output_tokens"`
	}
	if err := json.Unmarshal(data, &doc); err != nil {
		t.Fatal(err)
	}
	// What the tool computed from its requests and what kvtune computes from them is the same.
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	runs, err := workload.ReadForeign(path, f)
	if err != nil || len(runs) != 1 {
		t.Fatalf("%v, %d runs", err, len(runs))
	}
	own := &harness.Result{Metrics: harness.Measure(runs[0].Records)}
	near(t, "mean TTFT of one file", 1e-4, value(own, harness.MetricTTFTFromSend, harness.StatMean), doc.TTFT/1e3)
	near(t, "mean TPOT of one file", 1e-4, value(own, harness.MetricTPOT, harness.StatMean), doc.TPOT/1e3)
	near(t, "mean ITL of one file", 1e-4, value(own, harness.MetricITL, harness.StatMean), doc.ITL/1e3)
	return &peerFigures{ttft: doc.TTFT / 1e3, tpot: doc.TPOT / 1e3, itl: doc.ITL / 1e3, throughput: doc.Throughput,
		prompt: doc.Input, output: doc.Output}
}

// asVLLMBench: both clients with the same load by turns, each with other prompts (vLLM's would find its own in the
// prefix cache), agree within what runs of the same client differ by. The engine's own account is in between. The
// prompts are text on both sides: those that arrive together then join the same step, it seems because vLLM's front end
// collects them while the tokenizer's thread has one. Token ids go straight to the engine, now and then into two steps
// in place of one, which gives a lower TTFT and a higher TPOT: another load.
func asVLLMBench(t *testing.T, profiled func(*testing.T, ...string) *harness.Result, bench *vllmBench) {
	run := func(who rune, seed int) *peerFigures {
		if who == 'V' {
			return bench.run(t, fmt.Sprint(seed))
		}
		res := profiled(t, "--C", fmt.Sprint(benchPrompt), "--M", "0", "--concurrency", fmt.Sprint(benchConcurrency),
			"--num-requests", fmt.Sprint(benchRequests), "--num-warmup", "0", "--output-len", fmt.Sprint(benchOutput), "--seed",
			fmt.Sprint(seed), "--text")
		engineAgrees(t, res)
		return &peerFigures{
			ttft: value(res, harness.MetricTTFTFromSend, harness.StatMean),
			tpot: value(res, harness.MetricTPOT, harness.StatMean), itl: value(res, harness.MetricITL, harness.StatMean),
			throughput: value(res, harness.MetricOutputThroughput, ""),
			prompt:     value(res, harness.MetricPromptTokens, harness.StatTotal),
			output:     value(res, harness.MetricOutputTokens, harness.StatTotal),
		}
	}
	bench.run(t, "99") // its first run, and the server's, pay for lazy work
	runs := map[rune][]*peerFigures{}
	for turn := range 2 * benchRuns {
		who := []rune("KVVK")[turn%4]
		f := run(who, 100+turn)
		if f.prompt != benchRequests*benchPrompt || f.output != benchRequests*benchOutput {
			t.Errorf("%c: %v prompt and %v output tokens, want %d and %d", who, f.prompt, f.output, benchRequests*benchPrompt,
				benchRequests*benchOutput)
		}
		runs[who] = append(runs[who], f)
	}
	for _, m := range []struct {
		name string
		of   func(*peerFigures) float64
	}{
		{"mean TTFT", func(f *peerFigures) float64 { return f.ttft }},
		{"mean TPOT", func(f *peerFigures) float64 { return f.tpot }},
		{"mean ITL", func(f *peerFigures) float64 { return f.itl }},
		{"output throughput", func(f *peerFigures) float64 { return f.throughput }},
	} {
		var mean, variance [2]float64
		for i, who := range "KV" {
			for _, f := range runs[who] {
				mean[i] += m.of(f) / benchRuns
			}
			for _, f := range runs[who] {
				variance[i] += (m.of(f) - mean[i]) * (m.of(f) - mean[i]) / (benchRuns - 1)
			}
		}
		// Welch's t at 99.9 % for 6 degrees of freedom: one run of this test in 250 fails without a reason. The noise of runs
		// this short is never taken to be under 1 %.
		const t999 = 5.96
		noise := max(math.Sqrt((variance[0]+variance[1])/benchRuns), 0.01*mean[1]/t999)
		t.Logf("%s: kvtune %.4g, vllm bench serve %.4g (%+.1f %%), noise of the difference %.1f %%", m.name, mean[0], mean[1],
			100*(mean[0]/mean[1]-1), 100*noise/mean[1])
		if !(math.Abs(mean[0]-mean[1]) <= t999*noise) {
			t.Errorf("%s: kvtune %.4g, vllm bench serve %.4g, which is more than the noise of %.2g explains", m.name, mean[0],
				mean[1], noise)
		}
	}
}

// engineAgrees: what the client saw of all requests is what the server's histograms have, within their buckets, and the
// server's counters are the client's tokens.
func engineAgrees(t *testing.T, res *harness.Result) {
	t.Helper()
	for _, m := range []struct{ client, engine, family string }{
		{harness.MetricTTFTFromSend, harness.MetricEngineTTFT, harness.HistogramTTFT},
		{harness.MetricITL, harness.MetricEngineITL, harness.HistogramITL},
		{harness.MetricE2ELFromSend, harness.MetricEngineE2EL, harness.HistogramE2EL},
	} {
		h := res.Histograms[m.family]
		n := float64(res.Metrics.Get(m.client, harness.StatMean).N)
		share := 1.0 // of the engine's gaps that the client saw as gaps: a busy front end merges outputs into one event
		if m.client == harness.MetricITL {
			share = n / h.Count
			if tokens := value(res, harness.MetricOutputTokens, harness.StatTotal); h.Count != tokens-value(res,
				harness.MetricRequests, harness.StatOK) || share > 1 || share < 0.5 {
				t.Errorf("%s: %v samples at the server, %v at the client, of %v tokens", m.client, h.Count, n, tokens)
			}
		} else if h.Count != n {
			t.Errorf("%s: %v samples at the server, %v at the client", m.client, h.Count, n)
		}
		for _, stat := range []string{harness.StatP50, harness.StatP90} {
			engine := res.Metrics.Get(m.engine, stat)
			client := value(res, m.client, stat)
			if engine.Low == nil || engine.High == nil {
				t.Errorf("%s %s: no bucket", m.engine, stat)
				continue
			}
			width := *engine.High - *engine.Low
			t.Logf("%s %s: client %.4g s, engine %.4g to %.4g s", m.client, stat, client, *engine.Low, *engine.High)
			if client < *engine.Low-width || client > *engine.High+width {
				t.Errorf("%s %s: the client has %.4g s, the server's bucket is %.4g to %.4g s", m.client, stat, client, *engine.Low,
					*engine.High)
			}
		}
		mean := value(res, m.engine, harness.StatMean)
		near(t, m.client+" mean, client and engine", 0.2, share*value(res, m.client, harness.StatMean), mean)
	}
	for counter, metric := range map[string]string{harness.CounterPromptTokens: harness.MetricPromptTokens,
		harness.CounterGenerationTokens: harness.MetricOutputTokens} {
		if got, want := res.Counters[counter], value(res, metric, harness.StatTotal); got != want {
			t.Errorf("%s moved by %v, the client has %v", counter, got, want)
		}
	}
}

// stopsWithStreamsOpen: a vLLM that is told to end while it streams may let the streams hang for ever. Stop ends it all
// the same, nothing of it is left, and every request is accounted for.
func stopsWithStreamsOpen(t *testing.T, server *vllm.Process) {
	srv, err := vllm.Connect(t.Context(), server.URL(), vllm.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Close()
	w := &workload.Workload{}
	for i := range 4 {
		w.Requests = append(w.Requests, workload.Request{Index: i, After: -1, OutputTokens: 3500,
			Prompt: []workload.Segment{{ID: uint64(900 + i), Tokens: 20}}})
	}
	stopped := make(chan error, 1)
	time.AfterFunc(3*time.Second, func() { stopped <- server.Stop() })
	run, err := load.Do(t.Context(), load.Options{Client: srv.Client(vllm.ClientOptions{Salt: "stop"}), Workload: w})
	if err != nil {
		t.Fatal(err)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	if run.Sent != 4 || run.Sent != run.OK+run.Failed+run.Cancelled || run.OK == 4 {
		t.Errorf("%d sent, %d ok, %d failed, %d cancelled", run.Sent, run.OK, run.Failed, run.Cancelled)
	}
	for _, r := range run.Records {
		t.Logf("request %d: %d tokens, %q, %q", r.Index, r.OutputTokens, r.FinishReason, r.Error)
		if r.Error == "" && r.OutputTokens < r.AskedTokens {
			t.Errorf("request %d has %d of %d tokens and no error", r.Index, r.OutputTokens, r.AskedTokens)
		}
	}
	if group := groupOf(server.PID()); len(group) > 0 {
		t.Errorf("processes %v are left", group)
	}
}

// groupOf are the processes of a group that have not ended.
func groupOf(pgid int) (pids []string) {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		data, err := os.ReadFile(path)
		if err != nil {
			continue // it has just ended
		}
		_, rest, _ := strings.Cut(string(data), ") ")
		if f := strings.Fields(rest); len(f) > 2 && f[2] == fmt.Sprint(pgid) && f[0] != "Z" {
			pids = append(pids, filepath.Base(filepath.Dir(path)))
		}
	}
	return pids
}

// marked are the processes that have a variable in their environment, but for this one.
func marked(variable string) (pids []string) {
	environs, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, path := range environs {
		data, err := os.ReadFile(path)
		if pid := filepath.Base(filepath.Dir(path)); err == nil && pid != fmt.Sprint(os.Getpid()) &&
			bytes.Contains(data, []byte(variable+"=")) {
			pids = append(pids, pid)
		}
	}
	return pids
}

func TestVLLMWorkflowLaunch(t *testing.T) {
	command, model := installation(t)
	const mark = "KVTUNE_TEST_LAUNCH" // every process of the servers inherits it
	t.Setenv(mark, "1")
	dir := t.TempDir()
	configs := filepath.Join(dir, "configs.json")
	err := os.WriteFile(configs, []byte(`[
		{"name": "budget512", "C": 128, "M": 1, "B": 4, "max_num_batched_tokens": 512, "max_num_seqs": 8},
		{"name": "budget1024", "C": 128, "M": 1, "B": 4, "max_num_batched_tokens": 1024, "max_num_seqs": 8},
		{"name": "budget2048", "C": 128, "M": 1, "B": 4, "max_num_batched_tokens": 2048, "max_num_seqs": 8}]`), 0o644)
	if err != nil {
		t.Fatal(err)
	}
	out, errs, status := kvtune(append([]string{"workflow", "--quick-test", "--launch", "--launch-arg", command,
		"--launch-arg", "serve", "--model", model, "--gpu", "CPU", "--max-model-len", "4096", "--output-len", "16",
		"--num-measurements", "2", "--configs", configs, "--target-optimization", "throughput", "--output-dir", dir, "--"},
		tinyModelFlags()...)...)
	t.Log(out)
	if status != exitDone {
		t.Fatalf("exit status %d: %s", status, errs)
	}
	if left := marked(mark); len(left) > 0 {
		t.Errorf("processes %v are left", left)
	}
	folder, err := archive.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	for name, budget := range map[string]int{"budget512": 512, "budget1024": 1024, "budget2048": 2048} {
		res, err := folder.Result(name)
		if err != nil {
			t.Fatal(err)
		}
		if got := res.Conditions.Server.Args.MaxNumBatchedTokens; got != budget || res.Origin != harness.OriginMeasured {
			t.Errorf("%s: launched with a budget of %d, origin %s", name, got, res.Origin)
		}
		// The engine's log of steps: all that it generated and computed, no step above the budget.
		steps, _, err := folder.ReadSteps(name)
		if err != nil {
			t.Fatal(err)
		}
		records, _, err := folder.ReadRequests(name)
		if err != nil {
			t.Fatal(err)
		}
		for i := range records {
			if records[i].CachedTokens == nil {
				t.Errorf("%s: the server does not say what its cache had of request %d", name, i)
			}
		}
		context, generated := 0, 0
		for _, s := range steps {
			context, generated = context+s.ContextTokens, generated+s.GenerationTokens
			if n := s.ContextTokens + s.GenerationTokens; n > budget || s.Elapsed <= 0 {
				t.Errorf("%s: a step of %d tokens, %v", name, n, s.Elapsed)
			}
		}
		c := res.Counters
		firsts := c["vllm:time_to_first_token_seconds_count"] // come out of the steps of their prompts
		if computed := c[harness.CounterPromptTokens] - c[harness.CounterPrefixHits]; float64(context) != computed ||
			float64(generated) != c[harness.CounterGenerationTokens]-firsts {
			t.Errorf("%s: steps of %d prompt and %d output tokens, the server counted %v and %v", name, context, generated,
				computed, c[harness.CounterGenerationTokens]-firsts)
		}
	}
	f, err := os.Open(folder.Path(workflow.PlansFile))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	plans, err := planner.ReadPlans(f)
	if err != nil {
		t.Fatal(err)
	}
	if len(plans.Plans) != 1 || len(plans.Plans[0].Compared) == 0 ||
		plans.Plans[0].MeasuredOrigin != harness.OriginMeasured {
		t.Errorf("the chosen plan was not measured on a real server: %+v", plans.Plans)
	}
	if !strings.Contains(strings.Join(plans.Plans[0].Launch, " "), "--max-num-batched-tokens") {
		t.Errorf("launch command %v", plans.Plans[0].Launch)
	}
}

// What binds a real server is found where it was planted by one setting each: a KV cache for one request, and one
// sequence at a time.
func TestVLLMBinds(t *testing.T) {
	command, model := installation(t)
	for _, c := range []struct {
		name, verdict, evidence string
		flags                   []string
	}{
		{"tiny KV cache", "memory capacity binds (KV capacity)", "requests wait for KV blocks or lose them",
			[]string{"--num-gpu-blocks-override", "22", "--max-model-len", "640", "--C", "512", "--output-len", "120"}},
		{"max_num_seqs 1", "scheduling binds (max_num_seqs)", "because 1 run, which is max_num_seqs",
			[]string{"--max-num-seqs", "1", "--max-model-len", "1024", "--C", "64", "--output-len", "48"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, errs, status := kvtune(slices.Concat([]string{"analyze", "--launch", "--launch-arg", command, "--launch-arg",
				"serve", "--model", model, "--gpu", "CPU", "--block-size", "32", "--concurrency", "5", "--duration", "5s",
				"--num-requests", "2000", "--num-warmup", "0", "--output-dir", t.TempDir()}, c.flags, []string{"--"},
				tinyModelFlags())...)
			t.Log(out)
			if status != exitDone {
				t.Fatalf("exit status %d: %s", status, errs)
			}
			verdict, _, _ := strings.Cut(out, "\n")
			said := strings.Join(strings.Fields(out), " ") // without its line breaks
			if !strings.HasPrefix(verdict, c.verdict) || !strings.Contains(said, c.evidence) ||
				strings.Contains(out, "SIMULATED SERVER") {
				t.Errorf("the verdict is %q, planted %q", verdict, c.verdict)
			}
			if !strings.Contains(verdict, "; simulated: twice ") {
				t.Errorf("no counterfactual in %q", verdict)
			}
		})
	}
}
