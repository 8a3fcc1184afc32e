//go:build vllm

package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"kvtune/harness"
	"kvtune/harness/archive"
	"kvtune/harness/vllm"
	"kvtune/harness/workflow"
	"kvtune/planner"
)

// installation is the real vLLM that `make test-vllm` installed. Without one the tests fail: a green run means that a real
// server was asked.
func installation(t *testing.T) (command, model string) {
	t.Helper()
	dir := os.Getenv("KVTUNE_VLLM")
	command, model = filepath.Join(dir, "bin", "vllm"), filepath.Join(dir, "tiny-llama")
	if _, err := os.Stat(command); dir == "" || err != nil {
		t.Fatalf("KVTUNE_VLLM=%q is no vLLM installation (%v); run make test-vllm, which makes one", dir, err)
	}
	return command, model
}

// serverFlags are what the tiny model needs; they go to the server unchanged.
func tinyModelFlags() []string {
	return []string{"--load-format", "dummy", "--skip-tokenizer-init", "--dtype", "bfloat16", "--enforce-eager"}
}

// kvtune runs a command line in this process and returns what it printed and its exit status.
func kvtune(args ...string) (stdout, stderr string, status int) {
	var out, errs bytes.Buffer
	status = run(append([]string{"kvtune"}, args...), &out, &errs)
	return out.String(), errs.String(), status
}

func TestVLLMProfile(t *testing.T) {
	command, model := installation(t)
	server, err := vllm.Launch(t.Context(), vllm.LaunchOptions{
		Argv: []string{command, "serve"}, Model: model, Args: []string{"--max-model-len", "4096"}, Extra: tinyModelFlags(),
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
				out, errs, status := kvtune("profile", "--endpoint", server.URL(), "--gpu", "CPU", "--C", "100", "--M", fmt.Sprint(m),
					"--B", fmt.Sprint(b), "--profiling-type", kind, "--prefix", prefix, "--num-warmup", fmt.Sprint(warmup),
					"--num-measurements", fmt.Sprint(measured), "--output-len", "16", "--model", model, "--output-dir", dir)
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
		_, errs, status := kvtune("profile", "--endpoint", server.URL(), "--gpu", "CPU", "--model", model, "--C", "5000", "--B", "1",
			"--max-model-len", "8192", "--output-dir", t.TempDir())
		if status != exitUsage || !strings.Contains(errs, "4096") {
			t.Errorf("exit status %d, %s; want 2 and the server's limit, 4096", status, errs)
		}
	})
}

func TestVLLMWorkflowLaunch(t *testing.T) {
	command, model := installation(t)
	dir := t.TempDir()
	configs := filepath.Join(dir, "configs.json")
	err := os.WriteFile(configs, []byte(`[
		{"name": "budget512", "C": 256, "M": 2, "B": 8, "max_num_batched_tokens": 512, "max_num_seqs": 8},
		{"name": "budget2048", "C": 256, "M": 2, "B": 8, "max_num_batched_tokens": 2048, "max_num_seqs": 8}]`), 0o644)
	if err != nil {
		t.Fatal(err)
	}
	out, errs, status := kvtune(append([]string{"workflow", "--quick-test", "--launch", "--launch-arg", command, "--launch-arg", "serve",
		"--model", model, "--gpu", "CPU", "--max-model-len", "4096", "--output-len", "32", "--num-measurements", "2", "--configs", configs,
		"--target-optimization", "throughput", "--output-dir", dir, "--"}, tinyModelFlags()...)...)
	t.Log(out)
	if status != exitDone {
		t.Fatalf("exit status %d: %s", status, errs)
	}
	folder, err := archive.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	for name, budget := range map[string]int{"budget512": 512, "budget2048": 2048} {
		res, err := folder.Result(name)
		if err != nil {
			t.Fatal(err)
		}
		if got := res.Conditions.Server.Args.MaxNumBatchedTokens; got != budget || res.Origin != harness.OriginMeasured {
			t.Errorf("%s: launched with a budget of %d, origin %s", name, got, res.Origin)
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
	if len(plans.Plans) != 1 || len(plans.Plans[0].Compared) == 0 || plans.Plans[0].MeasuredOrigin != harness.OriginMeasured {
		t.Errorf("the chosen plan was not measured on a real server: %+v", plans.Plans)
	}
	if !strings.Contains(strings.Join(plans.Plans[0].Launch, " "), "--max-num-batched-tokens") {
		t.Errorf("launch command %v", plans.Plans[0].Launch)
	}
}
