package fit

import (
	"encoding/csv"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"kvtune/harness"
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
	t.Helper()
	f, err := os.Open(dataFile(t, name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := zstd.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	var out []workload.Record
	for d := json.NewDecoder(z); d.More(); {
		var line struct {
			Probe   string       `json:"probe"`
			Sent    float64      `json:"sent_s"`
			Prompt  int          `json:"prompt_tokens"`
			Shared  int          `json:"shared_prefix_tokens"`
			Output  int          `json:"output_tokens"`
			Times   [][2]float64 `json:"token_times_s"`
			Problem string       `json:"error"`
		}
		if err := d.Decode(&line); err != nil {
			t.Fatal(err)
		}
		r := workload.Record{
			Index: len(out), Probe: line.Probe, Sent: seconds(line.Sent), PromptTokens: line.Prompt,
			SharedPrefixTokens: line.Shared, OutputTokens: line.Output, Error: line.Problem,
		}
		for _, e := range line.Times {
			r.Tokens = append(r.Tokens, workload.TokenEvent{At: seconds(e[0]), Tokens: int(e[1])})
		}
		out = append(out, r)
	}
	return out
}

func seconds(s float64) time.Duration { return time.Duration(math.Round(s * 1e9)) }

func readSteps(t *testing.T, name string) []harness.StepRecord {
	t.Helper()
	f, err := os.Open(dataFile(t, name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	rows, err := csv.NewReader(f).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	var out []harness.StepRecord
	for _, row := range rows[1:] {
		var v [6]float64
		for i := range v {
			if v[i], err = strconv.ParseFloat(row[i], 64); err != nil {
				t.Fatal(err)
			}
		}
		out = append(out, harness.StepRecord{
			T: -1, ContextRequests: int(v[0]), ContextTokens: int(v[1]), GenerationRequests: int(v[2]),
			GenerationTokens: int(v[3]), Elapsed: seconds(v[4] / 1e3), KVUsage: v[5] / 100, Running: -1, Waiting: -1,
		})
	}
	return out
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

func TestH200(t *testing.T) {
	prior := h200(t)
	probes := Run{Name: "probes", Records: readRequests(t, "probes_default_requests.jsonl.zst"), Args: defaults}
	steps := Run{Name: "steps", Steps: readSteps(t, "step_times_default.csv"), Args: defaults, NumGPUBlocks: 57489}
	for _, runs := range [][]Run{{probes}, {steps}, {probes, steps}} {
		m, err := FromRuns(t.Context(), prior, runs, Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%v %+v knee %d request latency %v", m.FittedOn, *m.Errors, m.Knee, m.RequestLatency)
		for i, c := range m.Coefficients {
			t.Logf("  %-18s %.3g (%.3g..%.3g) prior %.3g %s", c.Name, c.Value, c.Low, c.High, prior.Coefficients[i].Value, c.Unit)
		}
		for _, run := range runs {
			obs, _ := Observations(run)
			kinds := map[string][]float64{}
			for _, o := range obs {
				var d time.Duration
				kind := "decode"
				for _, s := range o.Steps {
					d += m.StepTime(s)
					if s.PrefillTokens > 0 {
						kind = fmt.Sprint("prefill fromsend ", o.FromSend)
					}
				}
				if o.FromSend {
					d += m.RequestLatency + m.TokenLatency
				}
				kinds[kind] = append(kinds[kind], math.Abs(float64(d)/float64(o.Time)-1))
			}
			for k, v := range kinds {
				sum := 0.
				for _, x := range v {
					sum += x
				}
				t.Logf("   %s %s: n %d mean %.2f %%", run.Name, k, len(v), 100*sum/float64(len(v)))
			}
		}
	}
}
