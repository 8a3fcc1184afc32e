package report

import (
	"testing"

	"kvtune/planner/analysis"
)

// Where the verdict is about some requests' time, the table of causes has a column for it, and every row one cell for
// it.
func TestCauseTable(t *testing.T) {
	half := 0.5
	a := &analysis.Report{Light: &half, Idle: &half, Bottlenecks: []analysis.Bottleneck{
		{Kind: analysis.Scheduling, Binds: true, Share: &half, FocusShare: &half, Threshold: new(0.25),
			Why: "50 % of the time"}}}
	for _, focus := range []*analysis.Focus{nil, {SLO: "p99 TTFT <= 200ms", Requests: 1, Of: 2}, {Requests: 2, Of: 2}} {
		a.Focus = focus
		table := causeTable(a)
		columns := 6
		if focus != nil {
			columns = 7
			if table.Head[3] != focus.Name() || table.Rows[0][3].Text != "50 %" || table.Rows[0][4].Text != "25 %" {
				t.Errorf("%s: %q, %+v", focus.Name(), table.Head, table.Rows[0])
			}
		}
		if len(table.Head) != columns || len(table.Rows) != 3 {
			t.Errorf("%d columns, %d rows", len(table.Head), len(table.Rows))
		}
		for _, row := range table.Rows {
			if len(row) != columns {
				t.Errorf("a row of %d cells under %d heads", len(row), columns)
			}
		}
	}
}
