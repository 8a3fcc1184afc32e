package bench

import (
	"context"
	"slices"
	"time"

	"kvtune/harness"
	"kvtune/harness/archive"
	"kvtune/harness/timing"
	"kvtune/kernels"
)

// blockSizesName is the part of an archive that [BlockSizes] writes.
const blockSizesName = "kernels"

// BlockSizes measures in about ten seconds what every block size costs in decode, on the GPU where there is one, else
// on the host, and keeps it in a folder as the part "kernels". With resume set, a whole one that is there is read
// instead. tool and command go into the conditions; tell is told what happens.
func BlockSizes(ctx context.Context, f *archive.Folder, resume bool, tool string, command []string,
	tell func(string)) (*harness.Bench, error) {
	if resume && slices.Contains(f.Benches(), blockSizesName) {
		b, _, err := archive.ReadBench(f.Path(blockSizesName + archive.BenchSuffix))
		if err != nil || !b.Partial {
			return b, err
		}
	}
	m, err := Open("auto", true)
	if err != nil {
		return nil, err
	}
	defer m.Close()
	list, err := Cases([]string{string(kernels.OpDecode)}, []string{"block_size=1,2,4,8,16,32,64,128,256"}, m.Large)
	if err != nil {
		return nil, err
	}
	out, err := Run(ctx, Options{Name: blockSizesName, Backend: m.Backend, Device: m.Device, Cases: list, Cold: true,
		Rounds: 1, Timing: timing.Options{MaxTime: 500 * time.Millisecond, Probe: m.Probe},
		Progress: func(_, _ int, what string) { tell("kernels: " + what) }})
	if out == nil {
		return nil, err
	}
	if m.Note != "" {
		out.Bench.Warnings = append(out.Bench.Warnings, m.Note)
	}
	out.Bench.Conditions.Tool, out.Bench.Conditions.Command = tool, command
	if e := out.Save(f); e != nil {
		return nil, e
	}
	return out.Bench, err
}
