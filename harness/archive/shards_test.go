package archive

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"kvtune/harness"
)

func stamp(i, n int, seed int) Shard {
	return Shard{Shard: harness.Shard{Index: i, Count: n}, Kind: ShardedSweep, Tool: "kvtune v1",
		Work: json.RawMessage(fmt.Sprintf(`{"config": {"seed": %d, "C": [1, 2]}}`, seed)), Parts: []string{"a", "b"}}
}

func shardDir(t *testing.T, dir string, s Shard) string {
	t.Helper()
	f, err := CreateShard(dir, s, false)
	if err != nil {
		t.Fatal(err)
	}
	return f.Dir()
}

func TestOpenShards(t *testing.T) {
	dir := t.TempDir()
	var paths []string
	for _, i := range []int{2, 0, 1} {
		paths = append(paths, shardDir(t, dir, stamp(i, 3, 1)))
	}
	for name, given := range map[string][]string{"the folder": {dir}, "each": paths, "both": {dir, paths[1]}} {
		folders, err := OpenShards(given)
		if err != nil || len(folders) != 3 {
			t.Fatalf("%s: %d folders, %v", name, len(folders), err)
		}
		for i, f := range folders {
			if s := f.Shard(); s.Index != i || s.Kind != ShardedSweep || !slices.Equal(s.Parts, []string{"a", "b"}) {
				t.Errorf("%s: shard %d is %+v", name, i, s)
			}
		}
	}
}

func TestOpenShardsRefuses(t *testing.T) {
	other := func(change func(*Shard)) Shard {
		s := stamp(1, 2, 1)
		change(&s)
		return s
	}
	for _, tt := range []struct {
		name, err string
		shards    []Shard
	}{
		{"missing", "of 4 shards 1/4, 3/4 are missing: run the same command with --shard 1/4",
			[]Shard{stamp(0, 4, 1), stamp(2, 4, 1)}},
		{"one missing", "of 2 shards 0/2 is missing", []Shard{stamp(1, 2, 1)}},
		{"twice", "shard 0/2 is there twice", []Shard{stamp(0, 2, 1), stamp(0, 2, 1)}},
		{"another seed", "config.seed is 1 in one and 2 in the other", []Shard{stamp(0, 2, 1), stamp(1, 2, 2)}},
		{"another count", "the number of shards is 2 in one and 3 in the other", []Shard{stamp(0, 2, 1), stamp(1, 3, 1)}},
		{"another version", "the version of kvtune is kvtune v1 in one and kvtune v2 in the other", []Shard{stamp(0, 2, 1),
			other(func(s *Shard) { s.Tool = "kvtune v2" })}},
		{"another kind", "the kind is sweep in one and load in the other",
			[]Shard{stamp(0, 2, 1), other(func(s *Shard) { s.Kind = ShardedLoad })}},
		{"a key more", "config.rate is not set in one and \"5\" in the other", []Shard{stamp(0, 2, 1),
			other(func(s *Shard) { s.Work = json.RawMessage(`{"config": {"seed": 1, "C": [1, 2], "rate": "5"}}`) })}},
		{"another list", "config.C[1] is 2 in one and 3 in the other", []Shard{stamp(0, 2, 1),
			other(func(s *Shard) { s.Work = json.RawMessage(`{"config": {"C": [1, 3], "seed": 1}}`) })}},
		{"a longer list", "config.C is [1,2] in one and [1] in the other", []Shard{stamp(0, 2, 1),
			other(func(s *Shard) { s.Work = json.RawMessage(`{"config": {"C": [1], "seed": 1}}`) })}},
		{"other parts", "their parts are not the same",
			[]Shard{stamp(0, 2, 1), other(func(s *Shard) { s.Parts = []string{"a"} })}},
		{"an index beyond", "says that it is shard 2/2", []Shard{stamp(0, 2, 1), stamp(2, 2, 1)}},
	} {
		var paths []string
		for _, s := range tt.shards {
			paths = append(paths, shardDir(t, t.TempDir(), s))
		}
		if _, err := OpenShards(paths); err == nil || !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.err)
		}
	}
	whole, err := Create(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{whole.Dir(), t.TempDir(), filepath.Join(t.TempDir(), "nowhere")} {
		if _, err := OpenShards([]string{path}); err == nil ||
			!strings.Contains(err.Error(), "is not the output of a shard, and holds none") {
			t.Errorf("%s: %v", path, err)
		}
	}
	if _, err := OpenShards(nil); err == nil {
		t.Error("no path is no error")
	}
}

// TestCreateShardAgain: without resume a shard begins anew; with it, what was done stays, if it is of the same work.
func TestCreateShardAgain(t *testing.T) {
	dir := t.TempDir()
	f, err := CreateShard(dir, stamp(0, 2, 1), false)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.WriteJSON("x_results.json", map[string]int{"a": 1}); err != nil {
		t.Fatal(err)
	}
	if err := f.SetPart("x", Done); err != nil {
		t.Fatal(err)
	}
	if f, err = CreateShard(dir, stamp(0, 2, 1), true); err != nil {
		t.Fatal(err)
	}
	if p, _ := f.Part("x"); p.State != Done || len(f.Files()) != 2 {
		t.Errorf("resumed: %v and %v", f.Parts(), f.Files())
	}
	if _, err := CreateShard(dir, stamp(0, 2, 2), true); err == nil ||
		!strings.Contains(err.Error(), "cannot be resumed: config.seed is 1") {
		t.Errorf("another seed: %v", err)
	}
	if f, err = CreateShard(dir, stamp(0, 2, 2), false); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(f.Path("x_results.json")); len(f.Parts()) != 0 || len(f.Files()) != 1 || err == nil {
		t.Errorf("begun anew: %v, %v, %v", f.Parts(), f.Files(), err)
	}
}

// TestRows: rows survive a crash and damage up to the first broken one; what comes later goes on behind, and nothing
// that is damaged is taken for a row.
func TestRows(t *testing.T) {
	f, err := Create(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	const file = "rows.jsonl.zst"
	write := func(from, to int) (found int) {
		t.Helper()
		rows, err := f.OpenRows(file, func(line []byte) error {
			if string(line) != fmt.Sprintf(`{"row":%d,"text":"%0100d"}`, found, found) {
				t.Fatalf("row %d is %s", found, line)
			}
			found++
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		for i := max(from, found); i < to; i++ {
			row := struct {
				Row  int    `json:"row"`
				Text string `json:"text"`
			}{i, fmt.Sprintf("%0100d", i)}
			if err := rows.Append(row); err != nil {
				t.Fatal(err)
			}
		}
		if err := rows.Close(); err != nil {
			t.Fatal(err)
		}
		return found
	}
	count := func() (n int, err error) {
		err = f.ReadRows(file, func([]byte) error { n++; return nil })
		return n, err
	}
	write(0, 0)
	if n, err := count(); n != 0 || err != nil {
		t.Errorf("%d rows of none, %v", n, err)
	}
	write(0, 10)
	if n, err := count(); n != 10 || err != nil {
		t.Errorf("%d rows of 10, %v", n, err)
	}
	whole, err := os.ReadFile(f.Path(file))
	if err != nil {
		t.Fatal(err)
	}
	for at := 1; at < len(whole); at += 97 {
		if err := os.WriteFile(f.Path(file), whole[:at], 0o644); err != nil {
			t.Fatal(err)
		}
		found := write(0, 10)
		if n, err := count(); n != 10 || err != nil || found > at*10/len(whole)+1 {
			t.Errorf("cut at %d of %d: %d rows were found, %d are there, %v", at, len(whole), found, n, err)
		}
		damaged := bytes.Clone(whole)
		damaged[at] ^= 0x10
		if err := os.WriteFile(f.Path(file), damaged, 0o644); err != nil {
			t.Fatal(err)
		}
		write(0, 10) // which compares every row it finds
		if again, err := os.ReadFile(f.Path(file)); err != nil || !bytes.Equal(again, whole) {
			t.Errorf("damaged at %d: not mended (%v)", at, err)
		}
	}
}

func TestTake(t *testing.T) {
	from, err := Create(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	into, err := Create(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"a", "b"} {
		if err := from.WriteResult(&harness.Result{Name: part}); err != nil {
			t.Fatal(err)
		}
		if err := from.SetPart(part, Done); err != nil {
			t.Fatal(err)
		}
	}
	if err := into.Take(from, "b"); err != nil {
		t.Fatal(err)
	}
	want, _ := os.ReadFile(from.Path("b_results.json"))
	got, err := os.ReadFile(into.Path("b_results.json"))
	if err != nil || !bytes.Equal(got, want) || len(into.Files()) != 2 ||
		!slices.Equal(into.Parts(), []Part{{"b", Done}}) {
		t.Errorf("%v, %v, %v", into.Files(), into.Parts(), err)
	}
}
