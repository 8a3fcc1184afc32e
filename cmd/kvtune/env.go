package main

import (
	"bufio"
	"fmt"
	"io"
	"strings"

	"github.com/urfave/cli/v2"

	"kvtune/harness/telemetry"
)

func envCommand() *cli.Command {
	return &cli.Command{
		Name:        "env",
		Usage:       "the machine, and what makes it unfit to measure",
		Description: "Examples:\n   kvtune env\n   kvtune env --format json",
		Action:      envAction,
	}
}

func envAction(c *cli.Context) error {
	e, err := telemetry.ReadEnvironment()
	if err != nil {
		return err
	}
	out := output{Verdict: fitness(e), Environment: e}
	return show(c, out, func(w io.Writer) error {
		b := bufio.NewWriter(w)
		printEnvironment(b, e)
		return b.Flush()
	})
}

// fitness is the verdict on a machine.
func fitness(e *telemetry.Environment) string {
	switch len(e.Unfit) {
	case 0:
		return "fit to measure: nothing found that disturbs a timing"
	case 1:
		return "unfit to measure to half a percent: 1 reason"
	}
	return fmt.Sprintf("unfit to measure to half a percent: %d reasons", len(e.Unfit))
}

func printEnvironment(w io.Writer, e *telemetry.Environment) {
	fmt.Fprintln(w, fitness(e))
	for _, f := range e.Unfit {
		fmt.Fprintf(w, "! %s\n  %s\n", f.What, f.Do)
	}
	fmt.Fprintf(w, "\nhost   %s\n", e.Host)
	fmt.Fprintf(w, "       noise %.1f %%, steal %s, load average %s, governor %s, core limit %s\n", 100*e.Noise,
		told(e.Steal, 100, "%"),
		told(e.Load, 1, ""), orNotTold(strings.Join(e.Governors, ", ")), told(e.Quota, 1, ""))
	if e.NoGPU != "" {
		fmt.Fprintf(w, "GPU    %s\n", e.NoGPU)
	}
	for i, g := range e.GPUs {
		fmt.Fprintf(w, "GPU %d  %s, driver %s, CUDA %s, %s GiB\n", i, g.Device.Name, orNotTold(g.Device.Driver),
			orNotTold(g.Device.CUDA),
			told(g.Device.Memory, 1.0/(1<<30), ""))
		fmt.Fprintf(w, "       SM clock %s of %s MHz, memory clock %s of %s MHz, %s of %s W, %s C, busy %s\n",
			told(g.Now.SMClock, 1e-6, ""), told(g.Device.MaxSMClock, 1e-6, ""), told(g.Now.MemoryClock, 1e-6, ""),
			told(g.Device.MaxMemoryClock, 1e-6, ""), told(g.Now.Power, 1, ""), told(g.Device.PowerLimit, 1, ""),
			told(g.Now.Temperature, 1, ""), told(g.Now.Busy, 100, "%"))
	}
}

// told is a number in another unit, "not told" for nil.
func told(v *float64, scale float64, unit string) string {
	if v == nil {
		return "not told"
	}
	return strings.TrimSpace(fmt.Sprintf("%.4g %s", *v*scale, unit))
}

func orNotTold(s string) string {
	if s == "" {
		return "not told"
	}
	return s
}
