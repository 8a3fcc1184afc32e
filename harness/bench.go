package harness

import (
	"fmt"
	"strings"
	"time"
)

// BenchSchema is the schema of a [Bench] that this version writes.
const BenchSchema = "kvtune.bench/1"

// Bench is what a kernel benchmark gave: `<name>_bench.json`. Its samples are in `<name>_samples.jsonl.zst`.
type Bench struct {
	// Schema is [BenchSchema]. A newer major version is refused by readers.
	Schema string `json:"schema"`
	Name   string `json:"name"`
	Origin Origin `json:"origin"`
	// Partial is set when the run ended early; Why says how.
	Partial bool   `json:"partial,omitempty"`
	Why     string `json:"why,omitempty"`
	// Backend is what ran the kernels ("host", "gpu", "vllm"), Device the processor or GPU it ran on.
	Backend string `json:"backend"`
	Device  string `json:"device"`
	// Cold: the data of a launch is not in a cache when it begins.
	Cold bool `json:"cold"`
	// Rounds is how often all cases were gone through, forwards and backwards by turns.
	Rounds     int        `json:"rounds"`
	Conditions Conditions `json:"conditions"`
	// ReadCeiling and CopyCeiling are the bandwidths (B/s) of reading and of copying, measured in the same run; nil where
	// they were not.
	ReadCeiling *float64 `json:"read_ceiling_bytes_per_s"`
	CopyCeiling *float64 `json:"copy_ceiling_bytes_per_s"`
	// MatrixCeiling is the rate (flop/s) of multiplications and additions that attention could reach at most; ToHost and
	// ToDevice are the bandwidths (B/s) of one large copy over the link between host and device. LaunchFloor is the time
	// of a kernel that does nothing, among others like it, in s. All were measured in the same run; nil where they were
	// not, or the backend has none.
	MatrixCeiling *float64    `json:"matrix_ceiling_flop_per_s"`
	ToHost        *float64    `json:"to_host_ceiling_bytes_per_s"`
	ToDevice      *float64    `json:"to_device_ceiling_bytes_per_s"`
	LaunchFloor   *float64    `json:"launch_floor_s"`
	Cases         []BenchCase `json:"cases"`
	// Warnings are what a reader must know before believing the numbers.
	Warnings []string `json:"warnings,omitempty"`
}

// BenchCase is one case of a [Bench]. Times are of one launch.
type BenchCase struct {
	// Case is its name as a Go benchmark; Axes are the parts of it.
	Case string            `json:"case"`
	Axes map[string]string `json:"axes"`
	// Choice is which of the backend's ways to run the case was taken (see [Tuning]); "" where it has one only.
	Choice string `json:"choice,omitempty"`
	// Median and its 95 % interval, in seconds. The ends are nil where the samples cannot bound it.
	Median float64  `json:"median_s"`
	Low    *float64 `json:"low_s"`
	High   *float64 `json:"high_s"`
	// Cycles is the median in clock cycles of the device's processors; nil where they were not counted.
	Cycles *float64 `json:"median_cycles"`
	// Samples were taken of so many Launches each; Effective of them are independent. Stop says why no more.
	Samples   int    `json:"samples"`
	Launches  int    `json:"launches"`
	Effective int    `json:"effective"`
	Stop      string `json:"stop"`
	// Overhead is the clock's cost per sample in seconds, which was subtracted.
	Overhead float64 `json:"overhead_s"`
	// Autocorrelation is that of neighbouring samples, Drift the change from the first third of them to the last.
	Autocorrelation float64 `json:"autocorrelation"`
	Drift           float64 `json:"drift"`
	Gated           int     `json:"gated"`
	// Capped counts samples at the device's power limit.
	Capped   int `json:"power_capped,omitempty"`
	Outliers int `json:"outliers"`
	// Bytes and Flops are what the operation must move and compute.
	Bytes int64   `json:"bytes"`
	Flops float64 `json:"flops"`
	// Slower is the ratio of this case's time to the fastest one's of the same group (see package bench), with its 99 %
	// interval; P is the p-value of the difference after Holm's correction. All are nil for the fastest itself and where
	// there is nothing to compare with.
	Slower     *float64 `json:"slower"`
	SlowerLow  *float64 `json:"slower_low"`
	SlowerHigh *float64 `json:"slower_high"`
	P          *float64 `json:"p_holm"`
	// Best marks the fastest of its group.
	Best bool `json:"best,omitempty"`
	// Checked says what was compared with the reference before the timing: a small case whole, and of the timed one
	// places that were drawn.
	Checked  string   `json:"checked"`
	Warnings []string `json:"warnings,omitempty"`
}

// Bandwidth is the bytes moved per second.
func (c *BenchCase) Bandwidth() float64 { return float64(c.Bytes) / c.Median }

// BenchSignificance is the level at which a difference to the fastest counts, after Holm's correction.
const BenchSignificance = 0.01

// Significant says that the case is slower than the fastest of its group beyond chance.
func (c *BenchCase) Significant() bool { return c.P != nil && *c.P < BenchSignificance }

// Cost is what the case costs against the fastest: "best", "+12.3 %", "+0.1 % ~" where that is not significant.
func (c *BenchCase) Cost() string {
	if c.Slower == nil {
		return "best"
	}
	text := fmt.Sprintf("%+.1f %%", 100*(*c.Slower-1))
	if !c.Significant() {
		text += " ~"
	}
	return text
}

// Group is the case's name without layout and block size: what the choice of these is free within.
func (c *BenchCase) Group() string {
	var kept []string
	for part := range strings.SplitSeq(c.Case, "/") {
		if !strings.HasPrefix(part, "layout=") && !strings.HasPrefix(part, "block_size=") {
			kept = append(kept, part)
		}
	}
	return strings.Join(kept, " ")
}

// Link is the ceiling (B/s) of an operation that moves over the link between host and device; nil for another operation
// and where it was not measured.
func (b *Bench) Link(op string) *float64 {
	switch op {
	case "swap_out":
		return b.ToHost
	case "swap_in":
		return b.ToDevice
	}
	return nil
}

// ComputeBound says that a case does more operations for a byte than the machine does while it reads one, as far as its
// ceilings are known: its time follows the processors' clock, not the memory's.
func (b *Bench) ComputeBound(c *BenchCase) bool {
	return b.MatrixCeiling != nil && b.ReadCeiling != nil &&
		c.Flops/float64(c.Bytes) > *b.MatrixCeiling / *b.ReadCeiling
}

// BenchSample is one sample of a case: a line of `<name>_samples.jsonl.zst`, in the order in which they were taken.
type BenchSample struct {
	Case string
	// Round counts the passes over all cases, from 0.
	Round int
	// At is when the sample's series began, from the begin of the case's measurement.
	At time.Duration
	// Seconds is the time of one launch.
	Seconds float64
	// Clock is the device's SM clock in Hz, nil where it is not known. Counted: it is the mean over this sample, from
	// cycles that the device counted.
	Clock   *float64
	Counted bool
	// Gate says why the device was not fit; "" where it was.
	Gate    string
	Capped  bool // the device was at its power limit
	Outlier bool
}
