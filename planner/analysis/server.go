package analysis

import (
	"fmt"

	"kvtune/harness"
	"kvtune/planner/cost"
	"kvtune/planner/sim"
	"kvtune/planner/spec"
)

// Server is a server whose settings may be changed in the simulator.
type Server struct {
	// Args are the settings in force, nothing left open (vllmflags.Resolve).
	Args harness.EngineArgs
	// NumGPUBlocks is the KV cache under Args, as the server states it, the null block included; 0 lets it be computed
	// from GPU and Model.
	NumGPUBlocks int
	// GPU and Model are nil where unknown. Without them gpu_memory_utilization has no known effect.
	GPU   *spec.GPU
	Model *spec.Model
	// Cost predicts step times; nil where there is no model.
	Cost *cost.Model
	// Release is the minor number of the vLLM 0.x whose scheduler rules hold; 0 is the newest known.
	Release int
}

// blocks is the number of KV blocks under other settings. Where the server states its own number, cost.Capacity gives
// only the difference from it (an estimate of a whole cache is off by more than one of a change); without GPU and Model
// the cache keeps its size in tokens.
func (s Server) blocks(args harness.EngineArgs) (int, error) {
	if args.NumGPUBlocksOverride > 0 {
		return args.NumGPUBlocksOverride, nil
	}
	if s.GPU == nil || s.Model == nil {
		if s.NumGPUBlocks == 0 || s.Args.BlockSize == 0 || args.BlockSize == 0 {
			return 0, fmt.Errorf("the number of KV blocks is not known: give num_gpu_blocks_override, or GPU and model")
		}
		return (s.NumGPUBlocks-1)*s.Args.BlockSize/args.BlockSize + 1, nil
	}
	to, err := cost.Capacity(*s.GPU, *s.Model, args)
	if err != nil {
		return 0, err
	}
	if s.NumGPUBlocks == 0 {
		return to.Blocks, nil
	}
	if s.Args.NumGPUBlocksOverride > 0 { // the stated number says nothing of the memory
		return to.Blocks, nil
	}
	from, err := cost.Capacity(*s.GPU, *s.Model, s.Args)
	if err != nil { // the server runs, so the estimate is too low; it has nothing to be compared with
		return (s.NumGPUBlocks-1)*s.Args.BlockSize/args.BlockSize + 1, nil
	}
	stated := int64(s.NumGPUBlocks) * from.BytesPerBlock
	return int(max(0, stated+to.KV-from.KV) / to.BytesPerBlock), nil
}

// Config is the simulator's configuration of the server under other settings. The error says what vLLM would refuse.
func (s Server) Config(args harness.EngineArgs) (sim.Config, error) {
	blocks, err := s.blocks(args)
	if err != nil {
		return sim.Config{}, err
	}
	cfg, err := sim.FromArgs(args, blocks)
	if err != nil {
		return sim.Config{}, err
	}
	cfg.Release = s.Release
	if s.Cost != nil {
		cfg.FrontEnd = s.Cost.FrontEnd
	}
	return cfg, nil
}
