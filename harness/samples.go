package harness

import "kvtune/harness/workload"

// Samples are the values behind a latency metric, in seconds, in the order of the requests: what [Measure] takes means
// and percentiles of, for drawing distributions. metric is MetricTTFT, MetricITL, MetricTPOT or MetricE2EL; nil for
// another.
func Samples(records []workload.Record, metric string) []float64 {
	var values []float64
	for i := range records {
		r := &records[i]
		if r.Phase != workload.Measured || !r.OK() {
			continue
		}
		late := r.Sent - r.Start()
		switch metric {
		case MetricTTFT:
			values = append(values, (r.Tokens[0].At + late).Seconds())
		case MetricITL:
			values = append(values, gapsOf(r)...)
		case MetricTPOT:
			if r.OutputTokens > 1 {
				values = append(values, tpotOf(r))
			}
		case MetricE2EL:
			values = append(values, (r.Tokens[len(r.Tokens)-1].At + late).Seconds())
		}
	}
	return values
}
