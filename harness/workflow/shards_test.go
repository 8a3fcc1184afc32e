package workflow_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"kvtune/harness"
	"kvtune/harness/archive"
	"kvtune/harness/workflow"
	"kvtune/planner"
)

// TestSweepShardGoesOn: a shard that dies in the middle is gone on with at the cell after the last that it kept, and
// the merged files are those of shards that did not die.
func TestSweepShardGoesOn(t *testing.T) {
	basis, err := workflow.OnPaper(harness.Config{C: 32, B: 4, OutputLen: "4", NumMeasurements: 1, Seed: 1},
		gpt2(t), gpu(t, "L4"), nil)
	if err != nil {
		t.Fatal(err)
	}
	work := func(dir string) *workflow.SweepWork {
		return &workflow.SweepWork{Basis: basis,
			Options:   workflow.PlanOptions{Strategies: []planner.Strategy{planner.Throughput}, Quick: true},
			Grid:      workflow.Grid{C: []int{16, 32, 64}, M: []int{0}, B: []int{2, 4}, BlockSize: []int{16}},
			PlansFile: filepath.Join(dir, "plans.json"), SweepFile: filepath.Join(dir, "sweep.csv"), Tool: "test"}
	}
	merged := func(dir string) map[string][]byte {
		folders, err := archive.OpenShards([]string{dir})
		if err != nil {
			t.Fatal(err)
		}
		into := t.TempDir()
		_, sweep, files, err := workflow.MergeSweep(folders, into)
		if err != nil {
			t.Fatal(err)
		}
		if len(sweep.Rows) != 6 || len(files) != 3 {
			t.Fatalf("%d rows, files %v", len(sweep.Rows), files)
		}
		all := map[string][]byte{}
		for _, f := range files {
			if all[filepath.Base(f)], err = os.ReadFile(f); err != nil {
				t.Fatal(err)
			}
		}
		return all
	}
	smooth, broken := t.TempDir(), t.TempDir()
	for i := range 2 {
		if _, _, err := work(smooth).Shard(t.Context(), harness.Shard{Index: i, Count: 2}, false, nil); err != nil {
			t.Fatal(err)
		}
	}
	want := merged(smooth)

	if _, _, err := work(broken).Shard(t.Context(), harness.Shard{Index: 0, Count: 2}, false, nil); err != nil {
		t.Fatal(err)
	}
	ctx, die := context.WithCancel(t.Context())
	second := harness.Shard{Index: 1, Count: 2}
	if _, _, err := work(broken).Shard(ctx, second, false, func(done, total int) {
		if done == 2 {
			die()
		}
	}); err == nil {
		t.Fatal("it did not die")
	}
	folders, err := archive.OpenShards([]string{broken})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := workflow.MergeSweep(folders, t.TempDir()); err == nil ||
		!strings.Contains(err.Error(), "sweep is running") {
		t.Errorf("merged what is not done: %v", err)
	}
	// A row that is cut, as by a crash while it was written.
	rows := filepath.Join(folders[1].Dir(), "sweep_rows.jsonl.zst")
	info, err := os.Stat(rows)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(rows, info.Size()-7); err != nil {
		t.Fatal(err)
	}
	var seen []int
	_, taken, err := work(broken).Shard(t.Context(), second, true, func(done, total int) {
		if total != 3 {
			t.Errorf("%d of %d cells", done, total)
		}
		seen = append(seen, done)
	})
	if err != nil {
		t.Fatal(err)
	}
	if taken != 1 || len(seen) != 2 || seen[0] != 2 || seen[1] != 3 {
		t.Errorf("%d cells taken over, done anew: %v, want the second and the third", taken, seen)
	}
	for file, got := range merged(broken) {
		if !bytes.Equal(got, want[file]) {
			t.Errorf("%s differs from that of shards that did not die", file)
		}
	}
	// Nothing is left to do.
	if _, _, err := work(broken).Shard(t.Context(), second, true,
		func(done, total int) { t.Error("a cell was done again") }); err != nil {
		t.Error(err)
	}
	if _, _, err := work(broken).Shard(t.Context(), harness.Shard{Index: 0, Count: 7}, false, nil); err == nil ||
		!strings.Contains(err.Error(), "at most 6 shards") {
		t.Errorf("seven shards of six cells: %v", err)
	}
}
