package planner

import (
	"testing"
	"time"

	"kvtune/harness/workload"
)

// BenchmarkMake is the search with the package's own axes and budget; candidates/s counts different settings.
func BenchmarkMake(b *testing.B) {
	for name, work := range map[string]func(uint64) (*workload.Workload, error){
		"closed": load(400, 512, 800, 128, 0, 64), "open": load(400, 512, 800, 128, 50*time.Millisecond, 0),
	} {
		b.Run(name, func(b *testing.B) {
			candidates, requests := 0, int64(0)
			for b.Loop() {
				req := request(b, work)
				req.Options = Options{}
				plans := mustMake(b, req)
				candidates += plans.Search.Candidates
				requests += plans.Search.Simulated
				b.Log(plans.Search.Statement, plans.Verdict)
				for _, p := range plans.Plans {
					b.Log(p.Strategy, p.Keep, p.Changed, p.Gain)
				}
			}
			b.ReportMetric(float64(candidates)/b.Elapsed().Seconds(), "candidates/s")
			b.ReportMetric(float64(requests)/b.Elapsed().Seconds(), "requests/s")
		})
	}
}
