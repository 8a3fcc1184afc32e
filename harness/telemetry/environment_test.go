package telemetry

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestUnfit: each thing that spoils a measurement is named, with what to do; a machine that is fit has none.
func TestUnfit(t *testing.T) {
	fit := func() *Environment {
		return &Environment{
			Governors: []string{"performance"}, Load: new(0.1), Quota: new(8.0), Noise: 0.01, Steal: new(0.0),
			GPUs: []DeviceState{{
				Device{MaxSMClock: new(1.98e9), MaxMemoryClock: new(3.2e9), Persistence: new(true), ECC: new(true),
					MIG: new(false)},
				GPU{SMClock: new(3.45e8), MemoryClock: new(3.2e9), Busy: new(0.0), Processes: new(0)},
			}},
		}
	}
	if found := fit().judge(8); len(found) != 0 {
		t.Errorf("a machine that is fit, with an idle GPU: %v", found)
	}
	if found := (&Environment{GPUs: []DeviceState{{}}}).judge(8); len(found) != 0 {
		t.Errorf("a machine that tells nothing: %v", found)
	}
	for want, spoil := range map[string]func(*Environment){
		"throttled: power cap":               func(e *Environment) { e.GPUs[0].Now.Throttle = []string{"power cap"} },
		"GPU 0 has other processes: 2":       func(e *Environment) { e.GPUs[0].Now.Processes = new(2) },
		"SM clock is at 17 % of its maximum": func(e *Environment) { e.GPUs[0].Now.Busy = new(0.9) },
		"clocks are held":                    func(e *Environment) { e.GPUs[0].Now.ClocksSet = true },
		"slices":                             func(e *Environment) { e.GPUs[0].Device.MIG = new(true) },
		"persistence mode is off":            func(e *Environment) { e.GPUs[0].Device.Persistence = new(false) },
		"ECC is off":                         func(e *Environment) { e.GPUs[0].Device.ECC = new(false) },
		"took 20 % or more longer":           func(e *Environment) { e.Noise = 0.2 },
		"took 3.0 % of the processor":        func(e *Environment) { e.Steal = new(0.03) },
		"load average is 4.0 on 8 cores":     func(e *Environment) { e.Load = new(4.0) },
		"may use 2.5 of 8 cores":             func(e *Environment) { e.Quota = new(2.5) },
		"governor is powersave":              func(e *Environment) { e.Governors = []string{"powersave"} },
	} {
		e := fit()
		spoil(e)
		found := e.judge(8)
		if !slices.ContainsFunc(found, func(f Finding) bool { return strings.Contains(f.What, want) && f.Do != "" }) {
			t.Errorf("want a finding %q: %v", want, found)
		}
	}
}

func TestReadEnvironment(t *testing.T) {
	e, err := ReadEnvironment()
	if err != nil {
		t.Fatal(err)
	}
	if e.Host == "" || (len(e.GPUs) == 0) == (e.NoGPU == "") || !(e.Noise >= 0) {
		t.Errorf("environment %+v", e)
	}
}

func TestHostFiles(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o666); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, core := range []string{"cpu0", "cpu1", "cpu12"} {
		write(core+"/cpufreq/scaling_governor", map[bool]string{true: "powersave\n", false: "performance\n"}[core == "cpu1"])
	}
	if got := governors(dir); !slices.Equal(got, []string{"performance", "powersave"}) {
		t.Errorf("governors %q", got)
	}
	if got := quota(write("limited", "250000 100000\n")); got == nil || *got != 2.5 {
		t.Errorf("quota %v", got)
	}
	if got := quota(write("free", "max 100000\n")); got != nil {
		t.Errorf("no quota: %v", *got)
	}
	if got := quota(filepath.Join(dir, "none")); got != nil {
		t.Errorf("no file: %v", *got)
	}
}
