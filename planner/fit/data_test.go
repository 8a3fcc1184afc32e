package fit

import (
	"io"
	"math"
	"os"
	"path/filepath"
	"testing"
	"time"

	"kvtune/harness"
	"kvtune/harness/archive"
	"kvtune/harness/workload"
	"kvtune/planner/cost"
	"kvtune/planner/spec"
)

// dataFile is a file of the shared measurements; the test is skipped where they are absent.
func dataFile(t *testing.T, name string) string {
	t.Helper()
	root := os.Getenv("KVTUNE_DATA")
	if root == "" {
		root = filepath.Join("..", "..", "..", "shared", "data")
	}
	path := filepath.Join(root, "vllm_h200", name)
	if _, err := os.Stat(path); err != nil {
		t.Skip("skipped: no data")
	}
	return path
}

func readRequests(t *testing.T, name string) []workload.Record {
	return read(t, name, archive.ReadRequests)
}
func readSteps(t *testing.T, name string) []harness.StepRecord {
	return read(t, name, archive.ReadSteps)
}

func read[T any](t *testing.T, name string, from func(io.Reader) ([]T, bool, error)) []T {
	t.Helper()
	f, err := os.Open(dataFile(t, name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	all, partial, err := from(f)
	if err != nil || partial {
		t.Fatalf("%s: partial %v, %v", name, partial, err)
	}
	return all
}

func h200(t *testing.T) *cost.Model {
	t.Helper()
	gpu, err := spec.FindGPU("H200")
	if err != nil {
		t.Fatal(err)
	}
	return cost.Prior(gpu, spec.Default(), harness.EngineArgs{})
}

var defaults = harness.EngineArgs{MaxNumBatchedTokens: 8192, MaxNumSeqs: 1024, BlockSize: 16}

// meanError is the mean relative error of a model's step times over observations.
func meanError(m *cost.Model, observations []cost.Observation) (mean, bias float64) {
	for _, o := range observations {
		var d time.Duration
		for _, s := range o.Steps {
			d += m.StepTime(s)
		}
		if o.Prompt > 0 {
			d += m.FrontEnd.Arrival(o.Prompt) + m.FrontEnd.Token
		}
		e := float64(d)/float64(o.Time) - 1
		mean, bias = mean+math.Abs(e), bias+e
	}
	return mean / float64(len(observations)), bias / float64(len(observations))
}

func mustObserve(t *testing.T, run Run) []cost.Observation {
	t.Helper()
	o, _, err := observe(run)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// The prior knows the datasheet and operator timings only; it must be within a quarter of a real server's steps.
func TestPriorOnH200(t *testing.T) {
	for _, run := range []Run{
		{Name: "probes", Records: readRequests(t, "probes_default_requests.jsonl.zst"), Args: defaults},
		{Name: "steps", Steps: decodeOnly(readSteps(t, "step_times_default.csv")), Args: defaults, NumGPUBlocks: 57489},
	} {
		o := mustObserve(t, run)
		mean, bias := meanError(h200(t), o)
		t.Logf("%s: %d observations, mean error %.1f %%, bias %+.1f %%", run.Name, len(o), 100*mean, 100*bias)
		if mean > 0.25 {
			t.Errorf("%s: prior is off by %.0f %% on average", run.Name, 100*mean)
		}
	}
}

// decodeOnly leaves out steps with prompts, whose logged time lacks the launch.
func decodeOnly(steps []harness.StepRecord) []harness.StepRecord {
	var out []harness.StepRecord
	for _, s := range steps {
		if s.ContextRequests == 0 {
			out = append(out, s)
		}
	}
	return out
}

func TestFitOnH200(t *testing.T) {
	m, err := FromRuns(t.Context(), h200(t), []Run{
		{Name: "probes", Records: readRequests(t, "probes_default_requests.jsonl.zst"), Args: defaults},
		{Name: "steps", Steps: readSteps(t, "step_times_default.csv"), Args: defaults, NumGPUBlocks: 57489},
	}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("errors %+v, knee %d tokens, front end %+v", *m.Errors, m.Knee, m.FrontEnd)
	if m.Errors.Median > 0.04 || m.Errors.Mean > 0.06 {
		t.Errorf("cross-validated error: median %.1f %%, mean %.1f %%", 100*m.Errors.Median, 100*m.Errors.Mean)
	}
	if m.Errors.Mean >= m.Errors.Prior {
		t.Errorf("held-out error %.1f %% is no better than the prior's %.1f %%", 100*m.Errors.Mean, 100*m.Errors.Prior)
	}
}

// Served traffic was not fitted on: other lengths, arrivals and batch compositions of the same server.
func TestFitHoldsOnServedTraffic(t *testing.T) {
	probes := Run{Name: "probes", Records: readRequests(t, "probes_default_requests.jsonl.zst"), Args: defaults}
	m, err := FromRuns(t.Context(), h200(t), []Run{probes}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"conc64", "rate10", "rate20"} {
		o := mustObserve(t, Run{Records: readRequests(t, "default_"+name+"_requests.jsonl.zst"), Args: defaults})
		mean, bias := meanError(m, o)
		inside := 0
		for _, x := range o {
			for _, s := range x.Steps {
				if m.InRange(s) {
					inside++
					break
				}
			}
		}
		t.Logf("%s: %d observations (%d within range), mean error %.1f %%, bias %+.1f %%",
			name, len(o), inside, 100*mean, 100*bias)
		if len(o) < 500 {
			t.Errorf("%s: only %d observations", name, len(o))
		}
		if mean > 0.08 {
			t.Errorf("%s: off by %.1f %% on average", name, 100*mean)
		}
	}
}
