package planner

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"kvtune/harness"
)

// SetMeasured puts a run of the plan's settings beside the prediction: every metric that both have, with the relative
// error and whether the measured value lies in the predicted interval.
func (p *Plan) SetMeasured(result *harness.Result) {
	p.Measured, p.MeasuredOrigin, p.Compared = result.Metrics, result.Origin, nil
	for i := range p.Predicted {
		m := &p.Predicted[i]
		measured, ok := result.Metrics.Value(m.Name, m.Stat)
		if !ok || m.Value == nil {
			continue
		}
		c := Comparison{Metric: m.Name, Stat: m.Stat, Unit: m.Unit, Predicted: *m.Value, Measured: measured}
		if measured != 0 {
			e := (*m.Value - measured) / measured
			c.Error = &e
		}
		if m.Low != nil && m.High != nil {
			in := *m.Low <= measured && measured <= *m.High
			c.Inside = &in
		}
		p.Compared = append(p.Compared, c)
	}
}

// Plan finds the plan of a strategy; nil when there is none.
func (p *Plans) Plan(s Strategy) *Plan {
	for i := range p.Plans {
		if p.Plans[i].Strategy == s {
			return &p.Plans[i]
		}
	}
	return nil
}

// ReadPlans reads custom_schedule_plans.json. Unknown fields are ignored; another kind of file and a newer major
// version are refused.
func ReadPlans(r io.Reader) (*Plans, error) {
	var plans Plans
	if err := json.NewDecoder(r).Decode(&plans); err != nil {
		return nil, fmt.Errorf("plans: %w; expected the JSON that `kvtune plan` writes", err)
	}
	if err := harness.CheckSchema(plans.Schema, Schema); err != nil {
		return nil, fmt.Errorf("plans: %w; give the file that `kvtune plan` writes", err)
	}
	if len(plans.Plans) == 0 && plans.Infeasible == nil {
		return nil, errors.New("plans: the file holds no plan")
	}
	return &plans, nil
}
