package profile_test

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"kvtune/harness"
	"kvtune/harness/profile"
	"kvtune/harness/workload"
)

// kinds are the forms that a probe's name can have, with the kind as the first group.
var kinds = regexp.MustCompile(`^(warmup|prefill|decode|prefix|shared|mixed)(_\d+|_B\d+_c\d+|_M\d+|\d+)?$`)

// checkProbes checks what holds for the probes of every server.
func checkProbes(t *testing.T, info harness.ServerInfo, w *workload.Workload) {
	t.Helper()
	if len(w.Requests) > 0 {
		if err := w.Validate(); err != nil {
			t.Fatal(err)
		}
	}
	ids := map[uint64]bool{}        // of fresh segments
	wave := map[int]string{}        // its probe
	held := map[int][2]int{}        // by wave: requests, blocks
	prefix := map[string][]uint64{} // by probe: the blocks of its priming request
	ended := map[string]bool{}
	last := ""
	for i := range w.Requests {
		r := &w.Requests[i]
		name := r.Probe
		if r.Index != i || r.After != -1 || !kinds.MatchString(name) {
			t.Errorf("request %d: index %d, after %d, probe %q", i, r.Index, r.After, name)
		}
		if p, ok := wave[r.Wave]; ok && p != name {
			t.Errorf("wave %d has requests of %s and %s", r.Wave, p, name)
		}
		wave[r.Wave] = name
		if name != last {
			if ended[name] || i > 0 && r.Wave <= w.Requests[i-1].Wave {
				t.Errorf("%s runs beside or between %s", name, last)
			}
			ended[last], last = true, name
		}
		if n := r.PromptTokens() + r.OutputTokens; info.MaxModelLen > 0 && n > info.MaxModelLen {
			t.Errorf("%s needs %d tokens of %d", name, n, info.MaxModelLen)
		}
		if bs := info.BlockSize; bs > 0 {
			h := held[r.Wave]
			held[r.Wave] = [2]int{h[0] + 1, h[1] + (r.PromptTokens()+r.OutputTokens+bs-1)/bs}
		}
		for k, s := range r.Prompt {
			if len(r.Prompt) == 2 && k == 0 && r.Phase != workload.Prime {
				continue // the prefix
			}
			if ids[s.ID] {
				t.Errorf("%s: segment %d is not fresh", name, s.ID)
			}
			ids[s.ID] = true
		}
		var m int
		var b, c int
		if n, _ := fmt.Sscanf(name, "shared_B%d_c%d", &b, &c); n == 2 {
			m = c / info.BlockSize
		} else if _, err := fmt.Sscanf(name, "prefix_M%d", &m); err != nil {
			if r.SharedTokens != 0 || r.Phase == workload.Prime {
				t.Errorf("%s shares %d tokens, phase %q", name, r.SharedTokens, r.Phase)
			}
			continue
		}
		blocks := workload.BlockHashes(r.Prompt, info.BlockSize)
		if r.Phase == workload.Prime {
			prefix[name] = blocks
			continue
		}
		same := 0
		for same < len(blocks) && blocks[same] == prefix[name][same] {
			same++
		}
		if same != m || r.SharedTokens != m*info.BlockSize || (r.PromptTokens()-1)/info.BlockSize < m {
			t.Errorf("%s reuses %d blocks, shares %d tokens of %d", name, same, r.SharedTokens, r.PromptTokens())
		}
	}
	for k, h := range held {
		if info.NumGPUBlocks > 0 && h[1] > info.NumGPUBlocks-1 {
			t.Errorf("wave %d (%s) needs %d blocks of %d", k, wave[k], h[1], info.NumGPUBlocks)
		}
		if s := info.Args.MaxNumSeqs; s > 0 && h[0] > s {
			t.Errorf("wave %d (%s) has %d requests, max_num_seqs is %d", k, wave[k], h[0], s)
		}
	}
}

func TestProbesFitEveryServer(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	pick := func(values ...int) int { return values[rng.IntN(len(values))] }
	for range 300 {
		info := harness.ServerInfo{
			MaxModelLen: pick(0, 40, 128, 300, 1024, 4096, 16384), BlockSize: pick(0, 8, 16, 32, 128),
			NumGPUBlocks: pick(0, 3, 40, 400, 3000, 30000), Args: harness.EngineArgs{MaxNumSeqs: pick(0, 1, 8, 64, 1024)},
		}
		seed, quick := rng.Uint64N(100), rng.IntN(2) == 0
		w := profile.Probes(info, seed, quick)
		checkProbes(t, info, w)
		if again := profile.Probes(info, seed, quick); !reflect.DeepEqual(w, again) {
			t.Errorf("%+v: the same seed gives other probes", info)
		}
		if t.Failed() {
			t.Fatalf("with %+v, seed %d, quick %v", info, seed, quick)
		}
	}
}

func TestProbesOfALargeServer(t *testing.T) {
	info := harness.ServerInfo{MaxModelLen: 16384, BlockSize: 16, NumGPUBlocks: 60000,
		Args: harness.EngineArgs{MaxNumSeqs: 256}}
	tokens := map[bool]int{}
	for _, quick := range []bool{false, true} {
		w := profile.Probes(info, 1, quick)
		found := map[string]int{}
		warm := true
		for i := range w.Requests {
			r := &w.Requests[i]
			found[kinds.FindStringSubmatch(r.Probe)[1]]++
			tokens[quick] += r.PromptTokens() + r.OutputTokens
			if w := r.Phase == workload.Warmup; w && !warm {
				t.Errorf("request %d warms up after what is measured", i)
			} else if !w {
				warm = false
			}
			if strings.HasPrefix(r.Probe, "prefill") && r.OutputTokens != 1 {
				t.Errorf("%s generates %d tokens", r.Probe, r.OutputTokens)
			}
		}
		for _, kind := range []string{"warmup", "prefill", "decode", "prefix", "shared", "mixed"} {
			if found[kind] == 0 {
				t.Errorf("quick %v: no %s", quick, kind)
			}
		}
		other := profile.Probes(info, 2, quick)
		if len(other.Requests) != len(w.Requests) || other.Requests[0].Prompt[0].ID == w.Requests[0].Prompt[0].ID {
			t.Error("another seed should have the same design with other tokens")
		}
	}
	if tokens[true]*3 > tokens[false] {
		t.Errorf("the quick probes have %d tokens, all probes %d", tokens[true], tokens[false])
	}
}
