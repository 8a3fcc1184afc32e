package bench

import (
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"kvtune/harness"
	"kvtune/harness/timing"
	"kvtune/kernels"
)

// tunable is the fake with choices that take times of their own; counted are how often each was chosen.
type tunable struct {
	fake
	choices []kernels.Choice
	seconds map[kernels.Choice]float64
	wrong   kernels.Choice // whose output is not the reference's
	counted map[kernels.Choice]int
}

func (tunable) Architecture() string { return "made_up" }

func (b tunable) Load(in *kernels.Inputs) (kernels.Kernel, error) {
	k, err := b.fake.Load(in)
	if err != nil {
		return nil, err
	}
	t := &tunableKernel{fakeKernel: k.(*fakeKernel), b: b}
	t.rng = rand.New(rand.NewPCG(1, 2))
	return t, t.Choose(b.choices[0])
}

type tunableKernel struct {
	*fakeKernel
	b tunable
}

func (k *tunableKernel) Choices() []kernels.Choice { return k.b.choices }

func (k *tunableKernel) Choose(c kernels.Choice) error {
	k.truth, k.fakeKernel.wrong = k.b.seconds[c], c == k.b.wrong
	k.b.counted[c]++
	return nil
}

// TestTuning: the fastest choice is found, timed with and written down; a later run reads it and measures nothing else;
// a choice that gains less than half a percent is not taken.
func TestTuning(t *testing.T) {
	b := tunable{choices: []kernels.Choice{"first", "slow", "fast"}, counted: map[kernels.Choice]int{},
		seconds: map[kernels.Choice]float64{"first": 100e-6, "slow": 150e-6, "fast": 80e-6}}
	path := filepath.Join(t.TempDir(), "tuning.json")
	tuning := read(t, path)
	o := Options{Cases: cases(t, []string{"decode"}, "block_size=16", "batch=1", "context=64"), Backend: b, Cold: true,
		NoCeilings: true, Tuning: tuning, Tune: time.Millisecond,
		Timing: timing.Options{MinSamples: 100, MaxTime: time.Millisecond}}
	out := run(t, o)
	row := out.Bench.Cases[0]
	if row.Choice != "fast" || row.Median > 81e-6 || row.Median < 79e-6 {
		t.Errorf("choice %q takes %g s: want fast, 80 us", row.Choice, row.Median)
	}
	name := row.Case + "/cold"
	entry := tuning.Architectures["made_up"][name]
	if len(entry.Candidates) != 3 || entry.Choice != "fast" || entry.Device != "made up" || entry.Measured.IsZero() {
		t.Fatalf("table %+v", tuning)
	}
	for _, c := range entry.Candidates {
		if want := b.seconds[kernels.Choice(c.Choice)]; c.Median < 0.98*want || c.Median > 1.02*want {
			t.Errorf("candidate %+v, the truth is %g", c, want)
		}
	}
	if err := WriteTuning(path, tuning); err != nil {
		t.Fatal(err)
	}

	clear(b.counted)
	o.Tuning, o.Tune = read(t, path), 0
	if diff := cmp.Diff(tuning, o.Tuning); diff != "" {
		t.Error(diff)
	}
	if row := run(t, o).Bench.Cases[0]; row.Choice != "fast" || row.Median > 81e-6 {
		t.Errorf("read: choice %q takes %g s", row.Choice, row.Median)
	}
	if b.counted["slow"] != 1 { // checked, not timed
		t.Errorf("with a table, choices were made: %v", b.counted)
	}

	o.Cold = false // not in the table
	if row := run(t, o).Bench.Cases[0]; row.Choice != "first" {
		t.Errorf("a case that was not tuned takes %q", row.Choice)
	}

	b.seconds = map[kernels.Choice]float64{"first": 100e-6, "slow": 150e-6, "fast": 99.9e-6}
	o.Backend, o.Tuning, o.Tune = b, read(t, "none"), time.Millisecond
	if row := run(t, o).Bench.Cases[0]; row.Choice != "first" {
		t.Errorf("for 0.1 %% the choice is %q", row.Choice)
	}
	if got := slices.Collect(maps.Keys(o.Tuning.Architectures["made_up"])); len(got) != 1 || got[0] != row.Case+"/warm" {
		t.Errorf("the table has %v", got)
	}
}

// TestTuningRefuses: a choice with a wrong output is not timed, a table of another version's choices is not used.
func TestTuningRefuses(t *testing.T) {
	b := tunable{choices: []kernels.Choice{"first", "fast"}, counted: map[kernels.Choice]int{}, wrong: "fast",
		seconds: map[kernels.Choice]float64{"first": 100e-6, "fast": 80e-6}}
	o := Options{Name: "kernels", Cases: cases(t, []string{"decode"}, "block_size=16", "batch=1", "context=64"),
		Backend: b, NoCeilings: true, Tuning: read(t, "none"), Tune: time.Millisecond}
	if _, err := Run(t.Context(), o); err == nil ||
		!strings.Contains(err.Error(), `choice "fast": fake backend against the ref`) {
		t.Errorf("a wrong choice: %v", err)
	}
	b.wrong = "none"
	o.Backend, o.Tune = b, 0
	o.Tuning.Architectures["made_up"] = harness.TuningTable{o.Cases[0].Name() + "/warm": {Choice: "gone"}}
	_, err := Run(t.Context(), o)
	if err == nil || !strings.Contains(err.Error(), `the tuning has choice "gone": this version has "first", "fast"`) {
		t.Errorf("an unknown choice: %v", err)
	}
}

func read(t *testing.T, path string) *harness.Tuning {
	t.Helper()
	tuning, err := ReadTuning(path)
	if err != nil {
		t.Fatal(err)
	}
	return tuning
}
