package harness

import "time"

// TuningSchema is the schema of a [Tuning] that this version writes.
const TuningSchema = "kvtune.tuning/1"

// Tuning says which of a backend's ways to run a case was the fastest where it was measured: the file of
// `kvtune bench --tuning`.
type Tuning struct {
	// Schema is [TuningSchema]. A newer major version is refused by readers.
	Schema string `json:"schema"`
	// Architectures has a table for each: "sm_90" of a GPU, the instruction set of a processor ("avx2").
	Architectures map[string]TuningTable `json:"architectures"`
}

// TuningTable has what was measured for each case, by the case's name with "/cold" or "/warm" behind it.
type TuningTable map[string]TunedCase

// TunedCase is what a case was tuned to.
type TunedCase struct {
	// Choice is the fastest of the choices; the first of Candidates where none is faster than it by half a percent.
	Choice string `json:"choice"`
	// Candidates are all choices in the backend's order, the first being what runs untuned.
	Candidates []TunedChoice `json:"candidates"`
	// Device is the processor or the GPU, by name; Measured is when.
	Device   string    `json:"device"`
	Measured time.Time `json:"measured"`
}

// TunedChoice is the median time of one launch that a choice took, in seconds.
type TunedChoice struct {
	Choice string  `json:"choice"`
	Median float64 `json:"median_s"`
}
