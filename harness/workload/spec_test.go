package workload

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"
)

func build(t *testing.T, s Spec) *Workload {
	t.Helper()
	w, err := s.Build()
	if err != nil {
		t.Fatalf("%+v: %v", s, err)
	}
	if err := w.Validate(); err != nil {
		t.Fatalf("%+v: %v", s, err)
	}
	return w
}

// shape tells a workload in a line per request, segments numbered in order of appearance.
func shape(w *Workload) string {
	var b strings.Builder
	names := map[uint64]int{}
	name := func(id uint64) int {
		if _, ok := names[id]; !ok {
			names[id] = len(names) + 1
		}
		return names[id]
	}
	for i := range w.Requests {
		r := &w.Requests[i]
		fmt.Fprintf(&b, "%d%.1s", r.Wave, r.Phase)
		for _, s := range r.Prompt {
			fmt.Fprintf(&b, " %d:%d", name(s.ID), s.Tokens)
		}
		fmt.Fprintf(&b, " > %d", r.OutputTokens)
		if r.After >= 0 {
			fmt.Fprintf(&b, " after %d+%v", r.After, r.Think)
		}
		b.WriteString("\n")
	}
	return b.String()
}

func TestBuildBatches(t *testing.T) {
	for _, c := range []struct {
		s    Spec
		want string
	}{
		{Spec{C: 5, B: 2, Type: "prefill", NumMeasurements: 2}, "0 1:5 > 1\n0 2:5 > 1\n1 3:5 > 1\n1 4:5 > 1\n"},
		{Spec{C: 5, M: 3, BlockSize: 16, B: 2, Type: "decode", OutputLen: "9", NumWarmup: 1, NumMeasurements: 1},
			"0p 1:48 2:1 > 1\n1w 1:48 3:5 > 9\n1w 1:48 4:5 > 9\n2 1:48 5:5 > 9\n2 1:48 6:5 > 9\n"},
		{Spec{C: 5, M: 1, BlockSize: 16, B: 2, Type: "prefill", Prefix: "own", NumMeasurements: 2},
			"0p 1:16 2:1 > 1\n0p 3:16 4:1 > 1\n1 1:16 5:5 > 1\n1 3:16 6:5 > 1\n2 1:16 7:5 > 1\n2 3:16 8:5 > 1\n"},
		{Spec{C: 5, M: 1, BlockSize: 16, B: 3, Type: "prefill", Prefix: "groups=2", NumMeasurements: 1},
			"0p 1:16 2:1 > 1\n0p 3:16 4:1 > 1\n1 1:16 5:5 > 1\n1 3:16 6:5 > 1\n1 1:16 7:5 > 1\n"},
		{Spec{C: 5, B: 2, Type: "prefill", NumRequests: 3}, "0 1:5 > 1\n0 2:5 > 1\n1 3:5 > 1\n"},
		{Spec{C: 5, M: 1, BlockSize: 4, Users: 2, Turns: 3, ThinkTime: time.Second, OutputLen: "7", NumRequests: 4},
			"0p 1:4 2:1 > 1\n" +
				"1 1:4 3:5 > 7\n1 1:4 3:5 4:7 5:5 > 7 after 1+1s\n1 1:4 3:5 4:7 5:5 6:7 7:5 > 7 after 2+1s\n" +
				"1 1:4 8:5 > 7\n1 1:4 8:5 9:7 10:5 > 7 after 4+1s\n1 1:4 8:5 9:7 10:5 11:7 12:5 > 7 after 5+1s\n"},
	} {
		if got := shape(build(t, c.s)); got != c.want {
			t.Errorf("%+v:\n%swant\n%s", c.s, got, c.want)
		}
	}
}

func TestBuildLoops(t *testing.T) {
	mixed := build(t, Spec{C: 8, B: 16, Type: "mixed", NumMeasurements: 50, Seed: 1})
	short, long, sum := 1000, 0, 0
	for i := range mixed.Requests {
		n := mixed.Requests[i].OutputTokens
		short, long, sum = min(short, n), max(long, n), sum+n
	}
	if mixed.Concurrency != 16 || len(mixed.Requests) != 800 || short != 64 || long != 192 || sum < 800*122 ||
		sum > 800*134 {
		t.Errorf("mixed: concurrency %d, %d requests, outputs %d to %d, mean %d", mixed.Concurrency, len(mixed.Requests),
			short, long, sum/800)
	}
	if w := build(t, Spec{C: 8, B: 4, Type: "mixed", OutputLen: "10",
		NumMeasurements: 1}); w.Requests[3].OutputTokens != 10 {
		t.Error("mixed: an explicit output length is not obeyed")
	}
	closed := build(t, Spec{C: 8, B: 1, Type: "decode", Concurrency: 6, Clients: 3, NumRequests: 100})
	if closed.Concurrency != 6 || closed.Clients != 3 || len(closed.Requests) != 100 ||
		closed.Requests[99].OutputTokens != 128 {
		t.Errorf("closed loop: %d by %d clients, %d requests", closed.Concurrency, closed.Clients, len(closed.Requests))
	}
	open := build(t, Spec{C: 8, B: 50, Type: "decode", Rate: "10", NumMeasurements: 100})
	last := open.Requests[4999].Due.Seconds()
	if open.Concurrency != 0 || len(open.Requests) != 5000 || last < 475 || last > 525 {
		t.Errorf("open loop: %d requests of 10/s over %.0f s", len(open.Requests), last)
	}
	if w := build(t, Spec{C: 8, B: 1, Type: "prefill", Rate: "fixed:4",
		NumRequests: 3}); w.Requests[2].Due != 500*time.Millisecond {
		t.Errorf("the third of 4/s is due at %v", w.Requests[2].Due)
	}
}

var modes = []Spec{
	{Type: "prefill"}, {Type: "decode"}, {Type: "mixed"}, {Type: "decode", OutputLen: "lognormal:50:1:1:300"},
	{Type: "mixed", Rate: "20"}, {Type: "decode", Rate: "2..9", Burstiness: 0.3},
	{Type: "mixed", Concurrency: 5, Clients: 2}, {Type: "decode", Users: 3, Turns: 4, ThinkTime: time.Second},
}

func eachMode(do func(s Spec)) {
	for _, s := range modes {
		for _, prefix := range []string{"shared", "own", "groups=3"} {
			for _, c := range []int{1, 16, 37} {
				s.C, s.M, s.B, s.BlockSize, s.Prefix, s.NumWarmup, s.NumMeasurements, s.Seed = c, 4, 5, 16, prefix, 1, 3, 9
				do(s)
			}
		}
	}
}

// Once the priming requests have ended, every request finds exactly its M blocks in the prefix cache; a conversation
// finds everything before its fresh tokens.
func TestEveryRequestHitsItsPrefix(t *testing.T) {
	eachMode(func(s Spec) {
		w := build(t, s)
		cached := make(map[uint64]bool)
		for i := range w.Requests {
			r := &w.Requests[i]
			hashes := BlockHashes(r.Prompt, s.BlockSize)
			hits := 0
			for hits < (r.PromptTokens()-1)/s.BlockSize && cached[hashes[hits]] { // as vLLM looks them up
				hits++
			}
			switch {
			case r.Phase == Prime && hits != 0:
				t.Fatalf("%+v: priming request %d finds %d blocks", s, i, hits)
			case r.Phase != Prime && r.Turn == 0 && (hits != s.M || r.SharedTokens != s.M*s.BlockSize):
				t.Fatalf("%+v: request %d finds %d blocks and shares %d tokens, want %d blocks", s, i, hits, r.SharedTokens, s.M)
			case r.Turn > 0 && (r.SharedTokens != r.PromptTokens()-s.C || hits != r.SharedTokens/s.BlockSize):
				t.Fatalf("%+v: turn %d finds %d blocks and shares %d of %d tokens", s, r.Turn, hits, r.SharedTokens,
					r.PromptTokens())
			}
			if r.OutputID != 0 {
				hashes = BlockHashes(append(r.Prompt[:len(r.Prompt):len(r.Prompt)], Segment{r.OutputID, r.OutputTokens}),
					s.BlockSize)
			}
			for _, h := range hashes {
				cached[h] = true
			}
		}
	})
}

func TestFreshTokensNeverRepeat(t *testing.T) {
	eachMode(func(s Spec) {
		seen := make(map[uint64]bool)
		w := build(t, s)
		for i := range w.Requests {
			last := w.Requests[i].Prompt[len(w.Requests[i].Prompt)-1]
			if seen[last.ID] || w.Requests[i].Phase != Prime && last.Tokens != s.C {
				t.Fatalf("%+v: request %d ends with %d tokens of segment %x", s, i, last.Tokens, last.ID)
			}
			seen[last.ID] = true
		}
	})
}

func TestSameSeedSameWorkload(t *testing.T) {
	eachMode(func(s Spec) {
		a, b := build(t, s), build(t, s)
		if !reflect.DeepEqual(a, b) {
			t.Fatalf("%+v: two builds differ", s)
		}
		s.Seed++
		if c := build(t, s); c.Requests[0].Prompt[0].ID == a.Requests[0].Prompt[0].ID {
			t.Fatalf("%+v: another seed has the same tokens", s)
		}
	})
	slow := build(t, Spec{C: 1, B: 9, Type: "mixed", Rate: "1", NumMeasurements: 9})
	fast := build(t, Spec{C: 1, B: 9, Type: "mixed", Rate: "5", Burstiness: 3, NumMeasurements: 9})
	for i := range slow.Requests {
		if slow.Requests[i].OutputTokens != fast.Requests[i].OutputTokens {
			t.Fatal("another rate changes the output lengths")
		}
	}
}

// By hand, for 3 requests of C = 100 and M = 4 blocks of 16: behind the prefix, a request has 100 + output - 1 slots.
func TestKVBlocks(t *testing.T) {
	for _, c := range []struct {
		s    Spec
		want int
	}{
		{Spec{Type: "prefill", Prefix: "shared"}, 4 + 3*7},     // 100 slots
		{Spec{Type: "prefill", Prefix: "own"}, 3*4 + 3*7},      //
		{Spec{Type: "prefill", Prefix: "groups=2"}, 2*4 + 3*7}, //
		{Spec{Type: "prefill", Prefix: "groups=9"}, 3*4 + 3*7}, // 3 of the 9 at once
		{Spec{Type: "decode", Prefix: "shared"}, 4 + 3*15},     // 227
		{Spec{Type: "decode", Prefix: "own"}, 3*4 + 3*15},      //
		{Spec{Type: "decode", Prefix: "groups=2"}, 2*4 + 3*15}, //
		{Spec{Type: "decode", OutputLen: "13"}, 4 + 3*7},       // 112: the last block is just full
		{Spec{Type: "decode", OutputLen: "14"}, 4 + 3*8},       // 113
		{Spec{Type: "mixed", Prefix: "shared"}, 4 + 3*19},      // 291, the longest output being 192
		{Spec{Type: "mixed", Prefix: "own"}, 3*4 + 3*19},       //
		{Spec{Type: "mixed", Prefix: "groups=2"}, 2*4 + 3*19},  //
		{Spec{Type: "decode", Concurrency: 5}, 4 + 5*15},       //
		{Spec{Type: "decode", Users: 2, Turns: 3}, 4 + 2*43},   // 3 x 228 - 1 = 683
	} {
		c.s.C, c.s.M, c.s.B, c.s.BlockSize, c.s.NumMeasurements = 100, 4, 3, 16, 1
		if got := c.s.KVBlocks(); got != c.want {
			t.Errorf("%+v: %d blocks, want %d", c.s, got, c.want)
		}
	}
	if got := (Spec{C: 100, B: 2, BlockSize: 16, Type: "prefill", NumMeasurements: 1}).KVBlocks(); got != 14 {
		t.Errorf("without a prefix: %d blocks, want 14", got)
	}
	if got := (Spec{C: 100, B: 0, BlockSize: 16, NumMeasurements: 1}).KVBlocks(); got != 0 {
		t.Errorf("impossible: %d blocks, want 0", got)
	}
}

func TestFit(t *testing.T) {
	for _, c := range []struct {
		s    Spec
		max  int
		m, c int
		note string
	}{
		{Spec{C: 256, M: 16, Type: "decode"}, 1024, 16, 256, ""},
		{Spec{C: 512, M: 32, Type: "decode"}, 1024, 24, 512,
			"M scaled from 32 to 24: M x block_size + C + output = 1152 tokens would not fit max_model_len 1024"},
		{Spec{C: 2048, M: 128, Type: "decode"}, 1024, 0, 896,
			"M scaled from 128 to 0: M x block_size + C + output = 4224 tokens would not fit max_model_len 1024\n" +
				"C scaled from 2048 to 896: M x block_size + C + output = 4224 tokens would not fit max_model_len 1024"},
		{Spec{C: 2048, Type: "prefill"}, 1024, 0, 1023,
			"C scaled from 2048 to 1023: M x block_size + C + output = 2049 tokens would not fit max_model_len 1024"},
		{Spec{C: 100, M: 4, Type: "decode", Users: 1, Turns: 5}, 1024, 0, 76,
			"M scaled from 4 to 0: M x block_size + 5 turns x (C + output) = 1204 tokens would not fit max_model_len 1024\n" +
				"C scaled from 100 to 76: M x block_size + 5 turns x (C + output) = 1204 tokens would not fit max_model_len 1024"},
	} {
		c.s.B, c.s.BlockSize, c.s.NumMeasurements = 2, 16, 1
		got, notes := c.s.Fit(c.max)
		if got.M != c.m || got.C != c.c || strings.Join(notes, "\n") != c.note {
			t.Errorf("%+v: M %d, C %d, %q; want %d, %d, %q", c.s, got.M, got.C, notes, c.m, c.c, c.note)
		}
		got.MaxModelLen = c.max
		w := build(t, got)
		for i := range w.Requests {
			if r := &w.Requests[i]; r.PromptTokens()+r.OutputTokens > c.max {
				t.Errorf("%+v: request %d has %d + %d tokens", got, i, r.PromptTokens(), r.OutputTokens)
			}
		}
		if again, more := got.Fit(c.max); again != got || more != nil {
			t.Errorf("fitted twice: %+v %q", again, more)
		}
	}
	// A context that has no room for the outputs cannot be helped by M and C: Build says so.
	s, _ := Spec{C: 9, B: 1, Type: "decode", NumMeasurements: 1}.Fit(100)
	s.MaxModelLen = 100
	if _, err := s.Build(); s.C != 1 || err == nil {
		t.Errorf("C is %d, and %d + 128 tokens fit 100: %v", s.C, s.C, err)
	}
}

// Outputs without an upper bound are cut to what the context leaves, and the cuts are counted.
func TestUnboundedOutputsAreCut(t *testing.T) {
	s := Spec{C: 50, M: 2, BlockSize: 16, B: 10, Type: "decode", OutputLen: "lognormal:100:2", NumMeasurements: 100,
		MaxModelLen: 1000}
	w := build(t, s)
	s.MaxModelLen = 0
	whole := build(t, s)
	cut := 0
	for i := range w.Requests {
		r, n := &w.Requests[i], whole.Requests[i].OutputTokens
		if r.PromptTokens()+n > 1000 {
			n = 1000 - r.PromptTokens()
			cut++
		}
		if r.OutputTokens != n {
			t.Fatalf("request %d has %d output tokens, want %d", i, r.OutputTokens, n)
		}
	}
	if want := fmt.Sprintf("%d outputs of lognormal:100:2 cut to fit max_model_len 1000", cut); cut == 0 ||
		len(w.Notes) != 1 || w.Notes[0] != want {
		t.Errorf("notes %q, want %q", w.Notes, want)
	}
}

func TestBuildRefuses(t *testing.T) {
	good := Spec{C: 10, M: 2, B: 4, BlockSize: 16, Type: "decode", NumMeasurements: 1}
	for _, c := range []struct {
		edit func(s *Spec)
		want string
	}{
		{func(s *Spec) { s.C = 0 }, "C is 0: allowed is from 1 to"},
		{func(s *Spec) { s.M = -1 }, "M is -1: allowed is from 0 to"},
		{func(s *Spec) { s.B = 0 }, "B is 0: allowed is from 1 to"},
		{func(s *Spec) { s.BlockSize = 0 }, "block_size is 0: allowed is at least 1 with M blocks"},
		{func(s *Spec) { s.M, s.BlockSize = 1<<20, 1<<16 }, "M is 1048576: allowed is up to 16384"},
		{func(s *Spec) { s.NumMeasurements = 0 }, "num_measurements is 0: allowed is at least 1"},
		{func(s *Spec) { s.NumMeasurements = 1 << 40 }, "num_measurements is 1099511627776: allowed is up to"},
		{func(s *Spec) { s.NumWarmup = -1 }, "num_warmup is -1"},
		{func(s *Spec) { s.Type = "both" }, `profiling_type is "both": allowed is prefill, decode, mixed`},
		{func(s *Spec) { s.Prefix = "none" }, `prefix is "none": allowed is shared, own, groups=G`},
		{func(s *Spec) { s.Prefix = "groups=0" }, `prefix is "groups=0": allowed is groups=G with G from 1`},
		{func(s *Spec) { s.OutputLen = "0" }, `output_len is "0": allowed is N, min:max`},
		{func(s *Spec) { s.Rate = "-3" }, `rate is "-3": allowed is R or R..R2`},
		{func(s *Spec) { s.Users = 2 }, "turns is 0: allowed is at least 1 with users"},
		{func(s *Spec) { s.Clients = 3; s.Concurrency = 2 }, "clients is 3: allowed is from 0 to 2"},
		{func(s *Spec) { s.Burstiness = -1 }, "burstiness is -1"},
		{func(s *Spec) { s.ThinkTime = -1 }, "think_time is -1ns"},
		{func(s *Spec) { s.M, s.MaxModelLen = 100, 1000 },
			"M is 100: allowed is from 0 to 53, so that 100 x 16 + (10 + 128) tokens"},
		{func(s *Spec) { s.C, s.MaxModelLen = 1000, 1000 },
			"C is 1000: allowed is from 1 to 840, so that 2 x 16 + (1000 + 128)"},
		{func(s *Spec) { s.OutputLen, s.MaxModelLen = "1000", 1000 }, `output_len is "1000": allowed is up to 958, so that`},
		{func(s *Spec) { s.MaxModelLen = 20 }, "max_model_len is 20: allowed is at least 170, so that"},
	} {
		s := good
		c.edit(&s)
		_, err := s.Build()
		var field *FieldError
		if !errors.As(err, &field) || !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("error %v, want %q", err, c.want)
		}
	}
	if w := build(t, Spec{C: 1, B: 1, Type: "prefill", OutputLen: "5", NumMeasurements: 1}); len(w.Notes) != 1 ||
		w.Requests[0].OutputTokens != 1 {
		t.Errorf("a prefill with outputs: notes %q, %d tokens", w.Notes, w.Requests[0].OutputTokens)
	}
}
