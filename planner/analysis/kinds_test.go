package analysis

import (
	"slices"
	"testing"

	"kvtune/harness"
	"kvtune/planner/cost"
	"kvtune/planner/spec"
)

// What is told of a bottleneck stands in several places: none may have forgotten one.
func TestEveryKindIsTold(t *testing.T) {
	gpu, err := spec.FindGPU("H200")
	if err != nil {
		t.Fatal(err)
	}
	s := &study{Input: Input{Result: &harness.Result{}}, model: cost.Prior(gpu, spec.Default(), harness.EngineArgs{})}
	none := 0.0
	for _, k := range kinds {
		if len(s.evidence(k)) == 0 {
			t.Errorf("%s has no evidence", k)
		}
		if s.why(&Bottleneck{Kind: k, Share: &none}, NotObserved, nil) == "" {
			t.Errorf("%s: no words where it takes no time", k)
		}
	}
	some := 0.5
	without := s.why(&Bottleneck{Kind: Compute, Binds: true, Share: &some}, Compute, nil)
	for c := range numCauses {
		switch k := c.kind(); {
		case k == LightLoad || k == NotObserved:
		case !slices.Contains(kinds[:], k):
			t.Errorf("cause %d is of kind %q, which is not among the bottlenecks", c, k)
		case c.limit() == "":
			t.Errorf("cause %d of kind %s has no limit", c, k)
		case s.why(&Bottleneck{Kind: k, Limit: c.limit(), Binds: true, Share: &some}, k, nil) == without:
			t.Errorf("%s: no words", Binds(k, c.limit()))
		}
	}
}
