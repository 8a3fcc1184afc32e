package bench

import (
	"bytes"
	"os"
	"slices"
	"strings"
	"testing"

	"kvtune/harness"
	"kvtune/harness/archive"
	"kvtune/harness/timing"
	"kvtune/kernels"
)

// TestDeal: every case has one owner; cases that are compared stay together where that leaves no shard without any.
func TestDeal(t *testing.T) {
	list := cases(t, []string{"decode", "append", "gather"}, "block_size=1,16,64", "layout=NHD,HND")
	for n := 2; n <= 18; n++ {
		var all []kernels.Case
		at := map[kernels.Case][]int{}
		for i := range n {
			own := Deal(list, harness.Shard{Index: i, Count: n})
			if len(own) == 0 {
				t.Errorf("shard %d/%d has no case", i, n)
			}
			all = append(all, own...)
			for _, c := range own {
				if g := group(c); !slices.Contains(at[g], i) {
					at[g] = append(at[g], i)
				}
			}
		}
		if len(all) != len(list) {
			t.Errorf("%d shards have %d of %d cases", n, len(all), len(list))
		}
		for g, owners := range at {
			if n <= 3 && len(owners) != 1 {
				t.Errorf("%d shards: group %s is on shards %v", n, g.Name(), owners)
			}
		}
	}
	if whole := Deal(list, harness.Shard{}); !slices.Equal(whole, list) {
		t.Errorf("the whole is %d of %d cases", len(whole), len(list))
	}
}

// split writes what shards of n would have of a whole run.
func split(t *testing.T, whole *Outcome, o Options, dir string, n int) {
	t.Helper()
	o.Name, o.Device, o.Backend = whole.Bench.Name, whole.Bench.Device, fake{}
	for i := range n {
		folder, own, err := CreateShard(dir, harness.Shard{Index: i, Count: n}, &o, "test")
		if err != nil {
			t.Fatal(err)
		}
		part := &Outcome{cases: own, Bench: new(harness.Bench)}
		*part.Bench = *whole.Bench
		part.Bench.Cases = nil
		for _, row := range whole.Bench.Cases {
			if slices.ContainsFunc(own, func(c kernels.Case) bool { return c.Name() == row.Case }) {
				row.Slower, row.P, row.Best = nil, nil, false
				part.Bench.Cases = append(part.Bench.Cases, row)
			}
		}
		for _, s := range whole.Samples {
			if slices.ContainsFunc(own, func(c kernels.Case) bool { return c.Name() == s.Case }) {
				part.Samples = append(part.Samples, s)
			}
		}
		part.rank(part.values())
		if err := part.Save(folder); err != nil {
			t.Fatal(err)
		}
	}
}

// TestMergeIsTheWhole: a run that is split into shards and merged has the bytes of the run in every file: the same
// order of samples, the same comparisons over all cases.
func TestMergeIsTheWhole(t *testing.T) {
	o := Options{Cases: cases(t, []string{"decode", "append"}, "block_size=1,16,64", "layout=NHD,HND", "batch=1",
		"context=64"), Rounds: 3,
		Timing: timing.Options{MinSamples: 50}}
	whole := run(t, o)
	one, err := archive.Create(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := whole.Save(one); err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{2, 5} {
		dir := t.TempDir()
		split(t, whole, o, dir, n)
		folders, err := archive.OpenShards([]string{dir})
		if err != nil {
			t.Fatal(err)
		}
		merged, err := Merge(folders)
		if err != nil {
			t.Fatal(err)
		}
		if n == 5 { // more shards than groups
			last := len(merged.Bench.Warnings) - 1
			if last < 0 || !strings.Contains(merged.Bench.Warnings[last], "may be one of machines") {
				t.Fatalf("warnings %q", merged.Bench.Warnings)
			}
			merged.Bench.Warnings = merged.Bench.Warnings[:last:last]
			if last == 0 {
				merged.Bench.Warnings = nil
			}
		}
		into, err := archive.Create(dir)
		if err != nil {
			t.Fatal(err)
		}
		if err := merged.Save(into); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(one.Files(), into.Files()) {
			t.Fatalf("files %v, want %v", into.Files(), one.Files())
		}
		for _, file := range one.Files() {
			want, err := os.ReadFile(one.Path(file))
			if err != nil {
				t.Fatal(err)
			}
			if got, err := os.ReadFile(into.Path(file)); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%d shards: %s has %d bytes, want the %d of one process (%v)", n, file, len(got), len(want), err)
			}
		}
	}
}

func TestMergeRefuses(t *testing.T) {
	o := Options{Cases: cases(t, []string{"decode"}, "block_size=1,16,64", "batch=1", "context=64"),
		Timing: timing.Options{MinSamples: 20}, NoCeilings: true}
	whole := run(t, o)
	for _, tt := range []struct {
		name, err string
		spoil     func(b *harness.Bench)
	}{
		{"a shard that ended early", "ended early (interrupted): run shard 1/2 again", func(b *harness.Bench) {
			b.Partial, b.Why = true, "interrupted"
		}},
		{"a case that is missing", "no shard has case decode", func(b *harness.Bench) { b.Cases = b.Cases[:0] }},
		{"a case of another list", "is not one of its share", func(b *harness.Bench) { b.Cases[0].Case += "0" }},
	} {
		dir := t.TempDir()
		split(t, whole, o, dir, 2)
		folders, err := archive.OpenShards([]string{dir})
		if err != nil {
			t.Fatal(err)
		}
		b, samples, err := archive.ReadBench(folders[1].Dir())
		if err != nil {
			t.Fatal(err)
		}
		tt.spoil(b)
		if err := folders[1].WriteBench(b, samples); err != nil {
			t.Fatal(err)
		}
		if _, err := Merge(folders); err == nil || !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.err)
		}
	}
	// Machines that are not alike are merged with a warning.
	dir := t.TempDir()
	split(t, whole, o, dir, 2)
	folders, err := archive.OpenShards([]string{dir})
	if err != nil {
		t.Fatal(err)
	}
	for i, f := range folders {
		b, samples, err := archive.ReadBench(f.Dir())
		if err != nil {
			t.Fatal(err)
		}
		b.ReadCeiling = new(1e12 + 1e11*float64(i))
		if err := f.WriteBench(b, samples); err != nil {
			t.Fatal(err)
		}
	}
	merged, err := Merge(folders)
	if err != nil {
		t.Fatal(err)
	}
	if w := strings.Join(merged.Bench.Warnings, "\n"); !strings.Contains(w, "read bandwidth differs by 10 %") {
		t.Errorf("warnings: %s", w)
	}
}
