package planner

import (
	"context"
	"encoding/csv"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"kvtune/harness"
	"kvtune/harness/workload"
)

// SweepSchema is the schema of a sweep's JSON.
const SweepSchema = "kvtune.sweep/1"

// Cell is one workload of a sweep, in the field's names.
type Cell struct {
	C         int `json:"C"`
	M         int `json:"M"`
	B         int `json:"B"`
	BlockSize int `json:"block_size"`
}

// SweepRequest is a grid of workloads.
type SweepRequest struct {
	// Request is what every cell is planned for. Its Workload is not used, and block_size is pinned to the cell's. Where
	// Options set neither budget nor requests nor replicas, a cell gets 30,000, 128 and 4.
	Request
	// C, M, B and BlockSize are the values of the grid ([ParseRange]); each must have at least one.
	C, M, B, BlockSize []int
	// Cell builds a cell's requests.
	Cell func(cell Cell, seed uint64) (*workload.Workload, error)
	// Only, when set, says which cells are planned, by their position in [SweepRequest.Cells]. The rows of others are not
	// in the result.
	Only func(k int) bool
	// OnCell, when set, is given the rows of every cell when it is done, and how many are done of all that are planned.
	// Its error ends the sweep.
	OnCell func(k int, rows []SweepRow, done, total int) error
}

// Cells are the grid's cells in order: C, M, B, block_size, the last varying fastest.
func (req *SweepRequest) Cells() []Cell {
	var cells []Cell
	for _, c := range req.C {
		for _, m := range req.M {
			for _, b := range req.B {
				for _, size := range req.BlockSize {
					cells = append(cells, Cell{C: c, M: m, B: b, BlockSize: size})
				}
			}
		}
	}
	return cells
}

// SweepRow is a cell with its best settings for one target.
type SweepRow struct {
	Cell
	Strategy Strategy `json:"strategy"`
	// Plan is nil where there is none; Why says so then.
	Plan *Plan  `json:"plan,omitempty"`
	Why  string `json:"why,omitempty"`
	// Notes say what was scaled or replaced in the cell.
	Notes []string `json:"notes,omitempty"`
}

// SweepResult are all rows, cells in the order of C, M, B, block_size, and targets within a cell.
type SweepResult struct {
	Schema string         `json:"schema"`
	Origin harness.Origin `json:"origin"`
	Model  string         `json:"model,omitempty"`
	Rows   []SweepRow     `json:"rows"`
}

// NewSweepResult makes a result of rows, which are in the order of the cells.
func NewSweepResult(model string, rows []SweepRow) *SweepResult {
	return &SweepResult{Schema: SweepSchema, Origin: harness.OriginSimulated, Model: model, Rows: rows}
}

// Sweep plans the cells of a grid. A cell that cannot be planned is a row that says why. The error is ctx's, OnCell's,
// or of a request that fits no cell.
func Sweep(ctx context.Context, req SweepRequest) (*SweepResult, error) {
	for _, axis := range []struct {
		name   string
		values []int
	}{{"C", req.C}, {"M", req.M}, {"B", req.B}, {"block_size", req.BlockSize}} {
		if len(axis.values) == 0 {
			return nil, fmt.Errorf("the sweep has no value of %s", axis.name)
		}
	}
	if len(req.Strategies) == 0 {
		req.Strategies = Strategies()
	}
	if req.Options.Budget == 0 && req.Options.Requests == 0 && req.Options.Replicas == 0 {
		req.Options.Budget, req.Options.Requests, req.Options.Replicas = 30_000, 128, 4
	}
	out := NewSweepResult(req.Model, []SweepRow{})
	cells, total, done := req.Cells(), 0, 0
	for k := range cells {
		if req.Only == nil || req.Only(k) {
			total++
		}
	}
	for k, cell := range cells {
		if req.Only != nil && !req.Only(k) {
			continue
		}
		rows := sweepCell(ctx, req, cell)
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		out.Rows = append(out.Rows, rows...)
		if done++; req.OnCell != nil {
			if err := req.OnCell(k, rows, done, total); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

func sweepCell(ctx context.Context, req SweepRequest, cell Cell) []SweepRow {
	r := req.Request
	r.Workload = func(seed uint64) (*workload.Workload, error) { return req.Cell(cell, seed) }
	// The cell's block size is given, for the baseline as for every candidate.
	r.Fixed.BlockSize = cell.BlockSize
	if r.Current != (harness.EngineArgs{}) {
		r.Current.BlockSize = cell.BlockSize
	}
	rows := make([]SweepRow, len(r.Strategies))
	for i, s := range r.Strategies {
		rows[i] = SweepRow{Cell: cell, Strategy: s}
	}
	plans, err := planCell(ctx, r)
	for i := range rows {
		switch {
		case err != nil:
			rows[i].Why = err.Error()
		case plans.Infeasible != nil:
			rows[i].Why, rows[i].Notes = plans.Infeasible.Why, slices.Concat(plans.Widened, plans.Notes)
		default:
			rows[i].Plan, rows[i].Notes = &plans.Plans[i], slices.Concat(plans.Widened, plans.Notes)
		}
	}
	return rows
}

// planCell is Make without the sensitivities: the rows of a sweep do not say what each flag alone does.
func planCell(ctx context.Context, req Request) (*Plans, error) {
	p, err := newPlanning(req)
	if err != nil {
		return nil, err
	}
	plans, _, err := p.make(ctx)
	return plans, err
}

// sweepMetrics are the predicted figures of a row.
var sweepMetrics = [...]struct{ name, stat string }{
	{harness.MetricTotalThroughput, ""}, {harness.MetricOutputThroughput, ""}, {harness.MetricTTFT, harness.StatMean},
	{harness.MetricTTFT, harness.StatP99}, {harness.MetricTPOT, harness.StatMean}, {harness.MetricE2EL, harness.StatMean},
	{harness.MetricE2EL, harness.StatP99}, {harness.MetricKVUsage, harness.StatPeak}, {harness.MetricCacheHitRate, ""},
}

// Table gives the rows as text: a header and one line per row. Values have base units, which the header names; what was
// not observed is empty.
func (r *SweepResult) Table() (header []string, rows [][]string) {
	header = []string{"C", "M", "B", "block_size", "strategy", "changed"}
	for _, m := range sweepMetrics {
		header = append(header, strings.TrimSuffix(m.name+"_"+m.stat, "_"))
	}
	header = append(header, "gain", "binds", "limit", "why")
	for i := range r.Rows {
		row := &r.Rows[i]
		line := []string{strconv.Itoa(row.C), strconv.Itoa(row.M), strconv.Itoa(row.B), strconv.Itoa(row.BlockSize),
			string(row.Strategy)}
		if row.Plan == nil {
			line = append(line, make([]string, len(sweepMetrics)+4)...)
			rows = append(rows, append(line, row.Why))
			continue
		}
		var changed []string
		for _, c := range row.Plan.Changed {
			change := c.Flag + "=" + c.To
			if !c.Modelled {
				change += " (not modelled)"
			}
			changed = append(changed, change)
		}
		line = append(line, strings.Join(changed, " "))
		for _, m := range sweepMetrics {
			text := ""
			if v, ok := row.Plan.Predicted.Value(m.name, m.stat); ok {
				text = strconv.FormatFloat(v, 'g', 6, 64)
			}
			line = append(line, text)
		}
		gain := ""
		if row.Plan.Gain != nil {
			gain = strconv.FormatFloat(row.Plan.Gain.Change, 'g', 4, 64)
		}
		rows = append(rows, append(line, gain, string(row.Plan.Binding), row.Plan.Limit, row.Plan.Why))
	}
	return header, rows
}

// WriteCSV writes [SweepResult.Table] as CSV.
func (r *SweepResult) WriteCSV(w io.Writer) error {
	c := csv.NewWriter(w)
	header, rows := r.Table()
	if err := c.Write(header); err != nil {
		return err
	}
	return c.WriteAll(rows)
}
