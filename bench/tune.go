package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"kvtune/harness"
	"kvtune/harness/archive"
	"kvtune/harness/stats"
	"kvtune/harness/timing"
	"kvtune/kernels"
)

const (
	tuningRounds = 3     // in which a case's choices are timed by turns
	tuningGain   = 0.005 // by which a choice has to be faster than the first to be taken
)

// ReadTuning reads the file of a tuning. A file that is not there is a tuning of nothing.
func ReadTuning(path string) (*harness.Tuning, error) {
	t := &harness.Tuning{Schema: harness.TuningSchema}
	text, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	default:
		if err := json.Unmarshal(text, t); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		if t.Schema != harness.TuningSchema {
			return nil, fmt.Errorf("%s: schema %q: expected %q, the file of kvtune bench --tuning", path, t.Schema,
				harness.TuningSchema)
		}
	}
	if t.Architectures == nil {
		t.Architectures = map[string]harness.TuningTable{}
	}
	return t, nil
}

// WriteTuning writes the file of a tuning.
func WriteTuning(path string, t *harness.Tuning) error { return archive.WriteJSON(path, t) }

// architecture is the name of the table for a backend; "" for one without choices.
func architecture(b kernels.Backend) string {
	if b, ok := b.(interface{ Architecture() string }); ok {
		return b.Architecture()
	}
	return ""
}

// tuned is the name of a case in a table.
func (r *runner) tuned(c kernels.Case) string {
	if r.Cold {
		return c.Name() + "/cold"
	}
	return c.Name() + "/warm"
}

// choose lets a kernel take the choice that the tuning has for its case, or that is the fastest now if the options want
// it measured. It returns the choice, "" where the kernel has only one.
func (r *runner) choose(ctx context.Context, k kernels.Kernel, in *kernels.Inputs, o timing.Options) (string, error) {
	t, ok := k.(kernels.Tunable)
	if !ok || len(t.Choices()) < 2 {
		return "", nil
	}
	choices, name, arch := t.Choices(), r.tuned(in.Case), architecture(r.Backend)
	choice := choices[0]
	var entry harness.TunedCase
	known := false
	if r.Tuning != nil {
		entry, known = r.Tuning.Architectures[arch][name]
	}
	switch at := slices.Index(choices, kernels.Choice(entry.Choice)); {
	case known && at >= 0:
		choice = choices[at]
	case known && r.Tune == 0:
		return "", fmt.Errorf("case %s: the tuning has choice %q: this version has %s; tune it again", in.Case.Name(),
			entry.Choice, quoted(choices))
	case r.Tune > 0:
		r.say("tuning " + in.Case.Name())
		tuned, err := r.tune(ctx, t, in, o)
		if err != nil {
			return "", err
		}
		choice = kernels.Choice(tuned.Choice)
		if r.Tuning != nil {
			if r.Tuning.Architectures[arch] == nil {
				r.Tuning.Architectures[arch] = harness.TuningTable{}
			}
			r.Tuning.Architectures[arch][name] = tuned
		}
	}
	return string(choice), t.Choose(choice)
}

func quoted(choices []kernels.Choice) string {
	words := make([]string, len(choices))
	for i, c := range choices {
		words[i] = fmt.Sprintf("%q", c)
	}
	return strings.Join(words, ", ")
}

// tune checks every choice of a loaded case and times them by turns, each for as long as the options say in all.
func (r *runner) tune(ctx context.Context, k kernels.Tunable, in *kernels.Inputs,
	o timing.Options) (harness.TunedCase, error) {
	choices := k.Choices()
	result := harness.TunedCase{Device: r.Device, Measured: time.Now().UTC().Truncate(time.Second)}
	times := make([][]float64, len(choices))
	o.MaxTime, o.Probe = r.Tune/tuningRounds, nil
	o.WarmUp = min(o.WarmUp, o.MaxTime/5)
	for round := range tuningRounds {
		for i := range choices {
			if round%2 == 1 {
				i = len(choices) - 1 - i
			}
			if err := k.Choose(choices[i]); err != nil {
				return result, err
			}
			if round == 0 {
				if err := r.spot(k, in); err != nil {
					return result, fmt.Errorf("choice %q: %w", choices[i], err)
				}
			}
			one, err := timing.Measure(ctx, r.clock(k, in.Case, &o), o)
			if err != nil {
				return result, fmt.Errorf("case %s, choice %q: %w", in.Case.Name(), choices[i], err)
			}
			for _, s := range one.Samples {
				times[i] = append(times[i], s.Seconds)
			}
		}
	}
	best := 0
	for i, c := range choices {
		result.Candidates = append(result.Candidates,
			harness.TunedChoice{Choice: string(c), Median: stats.New(times[i]).Median()})
		if result.Candidates[i].Median < result.Candidates[best].Median {
			best = i
		}
	}
	if result.Candidates[best].Median > (1-tuningGain)*result.Candidates[0].Median {
		best = 0
	}
	result.Choice = string(choices[best])
	return result, ctx.Err()
}
