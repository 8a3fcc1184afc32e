package harness

import "strings"

// DefaultConfig is what holds where nothing is asked for: a mixed profile of 8 requests of 512 fresh tokens each, one
// batch of warm-up and three that are measured. Server settings are not set: the server's own hold. Set fields on it;
// a field set to an impossible value, 0 included, is refused by [Config.Validate].
func DefaultConfig() Config {
	return Config{C: 512, M: 0, B: 8, ProfilingType: Mixed, Prefix: "shared", NumWarmup: 1, NumMeasurements: 3}
}

// PresetNames are the presets, in the order in which help lists them.
func PresetNames() []string { return []string{"low-latency", "high-throughput", "memory-efficient"} }

// Preset returns a preset: [DefaultConfig] with the preset's workload and server settings under its name. What a vLLM
// version refuses of them (block_size 8, swap_space) is replaced and reported when the flags are made, by package
// vllmflags. An unknown name is a [*FieldError].
func Preset(name string) (Config, error) {
	c := DefaultConfig()
	c.Name = name
	on, off := true, false
	switch name {
	case "low-latency":
		c.C, c.M, c.B = 256, 16, 16
		c.EngineArgs = EngineArgs{MaxNumBatchedTokens: 4096, MaxNumSeqs: 32, BlockSize: 16,
			SchedulingPolicy: "priority", EnableChunkedPrefill: &on}
	case "high-throughput":
		c.C, c.M, c.B = 2048, 128, 128
		c.EngineArgs = EngineArgs{MaxNumBatchedTokens: 262144, MaxNumSeqs: 256, BlockSize: 16,
			SchedulingPolicy: "fcfs", EnableChunkedPrefill: &on}
	case "memory-efficient":
		c.C, c.M, c.B = 512, 32, 32
		c.EngineArgs = EngineArgs{MaxNumBatchedTokens: 16384, MaxNumSeqs: 64, BlockSize: 8,
			SchedulingPolicy: "fcfs", EnableChunkedPrefill: &off, GPUMemoryUtilization: 0.7, SwapSpace: 8}
	default:
		return Config{}, &FieldError{Field: "preset", Value: name, Allowed: strings.Join(PresetNames(), ", ")}
	}
	return c, nil
}
