package bench

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"

	"kvtune/harness"
	"kvtune/harness/archive"
	"kvtune/harness/stats"
)

// recordFlag names the record that TestRecord looks at, instead of those that are committed.
var recordFlag = flag.String("record", "", "the `folder` of a record, as bench/record.sh writes it")

// record is what bench/record.sh has measured on a GPU.
type record struct {
	first, second *harness.Bench
	tuning        *harness.Tuning
	peer          struct {
		Peer   string             `json:"peer"`
		Median map[string]float64 `json:"median_s"`
	}
}

func readRecord(dir string) (*record, error) {
	r := &record{}
	for name, to := range map[string]**harness.Bench{"first": &r.first, "second": &r.second} {
		var err error
		if *to, _, err = archive.ReadBench(filepath.Join(dir, name)); err != nil {
			return nil, err
		}
	}
	var err error
	if r.tuning, err = ReadTuning(filepath.Join(dir, "tuning.json")); err != nil {
		return nil, err
	}
	if _, err := os.Stat(filepath.Join(dir, "peer")); err == nil {
		peer, _, err := archive.ReadBench(filepath.Join(dir, "peer"))
		if err != nil {
			return nil, err
		}
		r.peer.Peer, r.peer.Median = peer.Device, map[string]float64{}
		for _, c := range peer.Cases {
			r.peer.Median[c.Case] = c.Median
		}
		return r, nil
	}
	text, err := os.ReadFile(filepath.Join(dir, "peer.json")) // of a record from before the peer was a backend
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err != nil {
		return nil, err
	}
	return r, json.Unmarshal(text, &r.peer)
}

// TestRecord: the records that are committed are whole, no time is below what the machine's ceilings allow, and what is
// said of them is printed: repeatability, and times beside the peer's.
func TestRecord(t *testing.T) {
	var dirs []string
	for _, pattern := range []string{"results/*/first", "results/*/*/first"} {
		found, err := filepath.Glob(filepath.FromSlash(pattern))
		if err != nil {
			t.Fatal(err)
		}
		dirs = append(dirs, found...)
	}
	if *recordFlag != "" {
		dirs = []string{filepath.Join(*recordFlag, "first")}
	}
	if len(dirs) == 0 {
		t.Error("there is no record")
	}
	for _, dir := range dirs {
		r, err := readRecord(filepath.Dir(dir))
		if err != nil {
			t.Fatal(err)
		}
		r.laws(t)
		var text strings.Builder
		r.print(&text)
		t.Logf("%s, %s\n%s", r.first.Device, r.first.Conditions.Started.Format("2006-01-02"), &text)
	}
}

// TestRecordWithoutCeilings: what was not measured is said to be so.
func TestRecordWithoutCeilings(t *testing.T) {
	r, err := readRecord(filepath.Join("results", "h200"))
	if err != nil {
		t.Fatal(err)
	}
	r.second.MatrixCeiling, r.second.LaunchFloor, r.first.ToHost, r.second.ToHost = nil, nil, nil, nil
	var text strings.Builder
	r.print(&text)
	for _, want := range []string{"TFLOP/s, not measured\n", "us, not measured\n",
		"to the host: not measured, not measured\n"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("no %q in\n%s", want, &text)
		}
	}
}

// laws are what holds for a record, whatever the figures are.
func (r *record) laws(t *testing.T) {
	for _, b := range []*harness.Bench{r.first, r.second} {
		if b.Partial || len(b.Cases) == 0 || b.Origin != harness.OriginMeasured || b.ReadCeiling == nil ||
			b.CopyCeiling == nil || b.MatrixCeiling == nil || b.LaunchFloor == nil || b.ToHost == nil || b.ToDevice == nil {
			t.Errorf("the record is not whole: %+v", b.Why)
			continue
		}
		for i := range b.Cases {
			c := &b.Cases[i]
			most := 1.1 * max(*b.ReadCeiling, *b.CopyCeiling) // a kernel may be a little better than the ceiling's
			if link := b.Link(c.Axes["op"]); link != nil {
				most = 1.05 * *link
			}
			if c.Bandwidth() > most || c.Flops/c.Median > *b.MatrixCeiling || c.Median < *b.LaunchFloor/2 {
				t.Errorf("%s: %.3g s is faster than the machine", c.Case, c.Median)
			}
		}
	}
}

// choices writes what the choices of every case took against the first, which runs untuned.
func (r *record) choices(text *strings.Builder) {
	for _, arch := range slices.Sorted(maps.Keys(r.tuning.Architectures)) {
		table := r.tuning.Architectures[arch]
		fmt.Fprintf(text, "\nchoices on %s: the first's us, and of the others what they take of it\n", arch)
		for _, name := range slices.Sorted(maps.Keys(table)) {
			first := table[name].Candidates[0]
			fmt.Fprintf(text, "%s\n   %.1f %s", name, first.Median*1e6, first.Choice)
			for _, c := range table[name].Candidates[1:] {
				fmt.Fprintf(text, " | %.3f %s", c.Median/first.Median, c.Choice)
			}
			fmt.Fprintf(text, "\n   -> %s\n", table[name].Choice)
		}
	}
}

// print writes the tables of a record.
func (r *record) print(text *strings.Builder) {
	a, b := r.first, r.second
	flops := func(v float64) string { return fmt.Sprintf("%.0f TFLOP/s", v/1e12) }
	seconds := func(v float64) string { return fmt.Sprintf("%.3g us", v*1e6) }
	text.WriteString("ceilings of both runs\n")
	for _, ceiling := range []struct {
		name          string
		first, second *float64
		say           func(v float64) string
	}{
		{"read", a.ReadCeiling, b.ReadCeiling, rate},
		{"copy", a.CopyCeiling, b.CopyCeiling, rate},
		{"matrix", a.MatrixCeiling, b.MatrixCeiling, flops},
		{"to the host", a.ToHost, b.ToHost, rate},
		{"to the device", a.ToDevice, b.ToDevice, rate},
		{"an empty launch in a graph", a.LaunchFloor, b.LaunchFloor, seconds},
	} {
		fmt.Fprintf(text, "  %s:", ceiling.name)
		for i, v := range []*float64{ceiling.first, ceiling.second} {
			said := "not measured"
			if v != nil {
				said = ceiling.say(*v)
			}
			fmt.Fprintf(text, "%s %s", []string{"", ","}[i], said)
		}
		text.WriteString("\n")
	}
	text.WriteString("\n")

	t := tabwriter.NewWriter(text, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(t, "repeatability of medians\tcases\tmedian\tworst\tlimit\tbeyond it\tworst case\t\n")
	for _, class := range []struct {
		name  string
		limit float64
		of    func(x *harness.BenchCase) bool
		value func(x *harness.BenchCase) float64
	}{
		{"bandwidth-bound, 50 us and more", 0.005,
			func(x *harness.BenchCase) bool { return !a.ComputeBound(x) && x.Median >= 50e-6 }, median},
		{"bandwidth-bound, below 50 us", 0.02,
			func(x *harness.BenchCase) bool { return !a.ComputeBound(x) && x.Median < 50e-6 }, median},
		{"compute-bound, time", 0.015, a.ComputeBound, median},
		{"compute-bound, clock cycles", 0.005, a.ComputeBound, cyclesOf},
	} {
		var differences []float64
		worst, beyond := "", 0
		for i := range a.Cases {
			x := &a.Cases[i]
			if y := caseOf(b, x.Case); class.of(x) && y != nil {
				d := math.Abs(class.value(y)/class.value(x) - 1)
				if len(differences) == 0 || d > slices.Max(differences) {
					worst = x.Case
				}
				if d > class.limit {
					beyond++
				}
				differences = append(differences, d)
			}
		}
		if len(differences) > 0 {
			fmt.Fprintf(t, "%s\t%d\t%.2f %%\t%.2f %%\t%.1f %%\t%d\t%s\t\n", class.name, len(differences),
				100*stats.New(differences).Median(), 100*slices.Max(differences), 100*class.limit, beyond, worst)
		}
	}
	t.Flush()

	r.choices(text)
	if len(r.peer.Median) > 0 {
		fmt.Fprintf(text, "\nbeside %s, in the same run\n", r.peer.Peer)
		t = tabwriter.NewWriter(text, 0, 0, 2, ' ', tabwriter.AlignRight)
		fmt.Fprint(t, "time us\tTB/s\tTFLOP/s\tpeer us\tratio\tcase\t\n")
		for i := range a.Cases {
			c := &a.Cases[i]
			peer, ok := r.peer.Median[c.Case]
			if !ok {
				continue
			}
			flops := ""
			if a.ComputeBound(c) {
				flops = fmt.Sprintf("%.0f", c.Flops/c.Median/1e12)
			}
			fmt.Fprintf(t, "%.1f\t%.2f\t%s\t%.1f\t%.3f\t%s\t\n", c.Median*1e6, c.Bandwidth()/1e12, flops, peer*1e6,
				c.Median/peer, c.Case)
		}
		t.Flush()
	}
}

func median(c *harness.BenchCase) float64 { return c.Median }

func cyclesOf(c *harness.BenchCase) float64 {
	if c.Cycles == nil {
		return math.NaN()
	}
	return *c.Cycles
}

func caseOf(b *harness.Bench, name string) *harness.BenchCase {
	for i := range b.Cases {
		if b.Cases[i].Case == name {
			return &b.Cases[i]
		}
	}
	return nil
}
