package harness_test

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"testing"

	"kvtune/harness"
	"kvtune/harness/archive"
)

// TestRecordedRuns compares with the summaries that another program made of the same requests, on a real server.
func TestRecordedRuns(t *testing.T) {
	dir := os.Getenv("KVTUNE_DATA")
	if dir == "" {
		dir = "../../shared/data"
	}
	dir = filepath.Join(dir, "vllm_h200")
	data, err := os.ReadFile(filepath.Join(dir, "runs.json"))
	if err != nil {
		t.Skip("skipped: no data")
	}
	var runs []struct {
		Name    string
		Summary struct {
			OK       float64
			Duration float64            `json:"dur"`
			Requests float64            `json:"req_s"`
			Output   float64            `json:"out_tok_s"`
			Total    float64            `json:"tot_tok_s"`
			TTFT     map[string]float64 `json:"ttft_ms"`
			TPOT     map[string]float64 `json:"tpot_ms"`
			ITL      map[string]float64 `json:"itl_ms"`
			E2E      map[string]float64 `json:"e2e_ms"`
			Mean     map[string]float64
		}
	}
	if err := json.Unmarshal(data, &runs); err != nil {
		t.Fatal(err)
	}
	for _, run := range runs {
		f, err := os.Open(filepath.Join(dir, run.Name+archive.RequestsSuffix))
		if err != nil {
			continue
		}
		defer f.Close()
		records, partial, err := archive.ReadRequests(f)
		if err != nil || partial {
			t.Fatalf("%s: partial %v, %v", run.Name, partial, err)
		}
		ms := harness.Measure(records)
		near := func(name, stat string, want, within float64) {
			got, ok := ms.Value(name, stat)
			if !ok || math.Abs(got-want) > within*want {
				t.Errorf("%s: %s %s = %v, want %v", run.Name, name, stat, got, want)
			}
		}
		s := run.Summary
		near(harness.MetricRequests, harness.StatOK, s.OK, 0)
		near(harness.MetricDuration, "", s.Duration, 1e-3)
		near(harness.MetricRequestThroughput, "", s.Requests, 1e-3)
		near(harness.MetricOutputThroughput, "", s.Output, 1e-3)
		near(harness.MetricTotalThroughput, "", s.Total, 1e-3)
		near(harness.MetricTTFTFromSend, harness.StatMean, s.Mean["ttft"]/1e3, 1e-3)
		near(harness.MetricTPOT, harness.StatMean, s.Mean["tpot"]/1e3, 1e-3)
		near(harness.MetricE2ELFromSend, harness.StatMean, s.Mean["e2e"]/1e3, 1e-3)
		// That program takes the order statistic above where Measure interpolates: of tens of thousands of gaps it makes no
		// difference, of some hundred requests it stays within the interval.
		for key, stat := range map[string]string{"0.5": harness.StatP50, "0.9": harness.StatP90, "0.99": harness.StatP99} {
			near(harness.MetricITL, stat, s.ITL[key]/1e3, 1e-3)
			within := func(name string, millis float64) {
				m := ms.Get(name, stat)
				if want := millis / 1e3; *m.Low > want || m.High != nil && *m.High < want {
					t.Errorf("%s: %s does not hold %v", run.Name, m, want)
				}
			}
			within(harness.MetricTTFTFromSend, s.TTFT[key])
			within(harness.MetricTPOT, s.TPOT[key])
			within(harness.MetricE2ELFromSend, s.E2E[key])
		}
	}
}
