package workflow

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"kvtune/harness"
	"kvtune/harness/profile"
	"kvtune/harness/workload"
)

// searchDuration is how long a rate is measured where neither a duration nor a number of requests is given.
const searchDuration = 30 // s

// SearchRate finds the highest arrival rate within the configuration's (a range R..R2) that keeps the objectives, on
// one server; see [profile.SearchRate]. Every rate is a run of its own, named after the configuration and the rate,
// with its own seed and salt and without its warm-up ([harness.ExcludeWarmup]).
func (s *Setup) SearchRate(ctx context.Context, cfg harness.Config, slos []harness.SLO) (*profile.RateSearch, error) {
	rate, err := workload.ParseRate(cfg.Rate)
	if err != nil {
		return nil, err
	}
	if rate.From > rate.To {
		return nil, &harness.FieldError{Field: "rate", Value: cfg.Rate, Allowed: "R..R2 with R below R2, to search in"}
	}
	if cfg.Duration == 0 && cfg.NumRequests == 0 {
		cfg.Duration = searchDuration
	}
	cfg.SteadyState = true
	ep, err := s.Source.Start(ctx, cfg.EngineArgs)
	if err != nil {
		return nil, err
	}
	step := uint64(0)
	found, err := profile.SearchRate(ctx, profile.SearchOptions{
		From: rate.From, To: rate.To, SLOs: slos,
		Measure: func(ctx context.Context, r float64) (*profile.Output, error) {
			run := cfg
			text := strconv.FormatFloat(r, 'f', 3, 64)
			if run.Rate = text; rate.Even {
				run.Rate = "fixed:" + text
			}
			run.Name = cfg.Name + "_rate_" + text
			run.Seed += step // other arrivals at every rate, the same in every search
			step++
			s.stage("%s: %s requests/s", cfg.Name, text)
			return s.Measure(ctx, ep, run)
		},
	})
	return found, errors.Join(err, ep.Close())
}

// SearchVerdict says what a search found, in one line.
func SearchVerdict(found *profile.RateSearch) string {
	describe := func(i int) string {
		step := &found.Steps[i]
		text := fmt.Sprintf("%.4g requests/s", step.Rate)
		if !step.Sure {
			text += " (within noise of the limit)"
		}
		return text
	}
	var text string
	switch {
	case len(found.Steps) == 0:
		return "no rate was measured"
	case found.Best < 0 && found.Missed < 0:
		text = "no rate could be judged"
	case found.Best < 0:
		text = fmt.Sprintf("no rate keeps the SLO: missed at %s (%s)", describe(found.Missed), found.Steps[found.Missed].Why)
	case found.Missed < 0:
		text = fmt.Sprintf("SLO kept up to %s, and no higher rate was measured", describe(found.Best))
	default:
		text = fmt.Sprintf("SLO kept up to %s, missed at %s (%s)", describe(found.Best), describe(found.Missed),
			found.Steps[found.Missed].Why)
	}
	if found.Ended != "" {
		text += "; the search ended early: " + found.Ended
	}
	return text
}
