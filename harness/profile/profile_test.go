package profile_test

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"kvtune/harness"
	"kvtune/harness/archive"
	"kvtune/harness/hist"
	"kvtune/harness/profile"
	"kvtune/harness/vllm"
	"kvtune/harness/workload"
	"kvtune/planner/engine"
)

// options are those of a run of cfg on a server, with a folder of its own.
func options(t *testing.T, srv *vllm.Server, cfg harness.Config) profile.Options {
	t.Helper()
	w, err := profile.Workload(cfg, srv.Info())
	if err != nil {
		t.Fatal(err)
	}
	folder, err := archive.Create(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return profile.Options{Server: srv, Config: cfg, Workload: w, Name: cfg.Name, Folder: folder}
}

const (
	late = "generator-limited"
	gap  = "by the server's own account"
)

// warnings are a result's but for the generator's lateness and the way between client and server, of which a busy test
// machine may have some.
func warnings(r *harness.Result) []string {
	return slices.DeleteFunc(slices.Clone(r.Warnings), func(w string) bool {
		return strings.HasPrefix(w, late) || strings.Contains(w, gap)
	})
}

// value is a metric that must have been observed.
func value(t *testing.T, r *harness.Result, name, stat string) float64 {
	t.Helper()
	v, ok := r.Metrics.Value(name, stat)
	if !ok {
		t.Errorf("%s %s was not observed", name, stat)
	}
	return v
}

// state is a part's in the manifest on disk.
func state(t *testing.T, f *archive.Folder, name string) archive.State {
	t.Helper()
	again, err := archive.Open(f.Dir())
	if err != nil {
		t.Fatal(err)
	}
	part, _ := again.Part(name)
	return part.State
}

func TestRunKeepsWhatItMeasured(t *testing.T) {
	srv := connect(t, serve(t, nil, nil), vllm.Options{})
	for _, kind := range []harness.ProfilingType{harness.Prefill, harness.Decode, harness.Mixed} {
		for _, prefix := range []string{"shared", "own", "groups=2"} {
			t.Run(string(kind)+" "+prefix, func(t *testing.T) {
				const m, b, warmup, measurements = 3, 4, 1, 2
				cfg := decode(50, m, b)
				cfg.ProfilingType, cfg.Prefix, cfg.Seed = kind, prefix, 7
				opt := options(t, srv, cfg)
				opt.Notes, opt.KVBytesPerToken = []string{"a note"}, 1<<10
				during := archive.State("")
				opt.OnProgress = func(profile.Progress) {
					if part, ok := opt.Folder.Part(cfg.Name); ok {
						during = part.State
					}
				}
				out, err := profile.Run(t.Context(), opt)
				if err != nil {
					t.Fatal(err)
				}
				res := out.Result
				if res.Partial || res.Origin != harness.OriginSimulated || res.Conditions.Seed != 7 || res.Conditions.Salt == "" ||
					res.Conditions.Duration <= 0 || res.Conditions.Server.BlockSize != 16 {
					t.Errorf("result %+v", res)
				}
				if want := append([]string{"a note"}, opt.Workload.Notes...); !cmp.Equal(warnings(res), want) {
					t.Errorf("warnings %q", res.Warnings)
				}
				if ok := value(t, res, harness.MetricRequests, harness.StatOK); ok != b*measurements {
					t.Errorf("%v requests succeeded", ok)
				}
				if hits := res.Counters["vllm:prefix_cache_hits_total"]; hits != m*16*b*(warmup+measurements) {
					t.Errorf("%v hit tokens", hits)
				}
				for i := range out.Records {
					r := &out.Records[i]
					want := m * 16
					if r.Phase == workload.Prime {
						want = 0
					}
					if r.CachedTokens == nil || *r.CachedTokens != want {
						t.Errorf("request %d (%s) found %v tokens, want %d", i, r.Phase, r.CachedTokens, want)
					}
				}

				if during != archive.Running || state(t, opt.Folder, cfg.Name) != archive.Done {
					t.Errorf("the part was %q and is %q", during, state(t, opt.Folder, cfg.Name))
				}
				read, err := opt.Folder.Result(cfg.Name)
				if err != nil {
					t.Fatal(err)
				}
				read.Conditions.Started = res.Conditions.Started // another clock reading of the same moment
				if d := cmp.Diff(res, read); d != "" {
					t.Error("result read back:", d)
				}
				records, partial, err := opt.Folder.ReadRequests(cfg.Name)
				if err != nil || partial {
					t.Error(err, partial)
				}
				sortByIndex(records)
				if d := cmp.Diff(out.Records, records); d != "" {
					t.Error("records read back:", d)
				}
				series, _, err := opt.Folder.ReadSeries(cfg.Name)
				if err != nil || len(series) != len(out.Series) || len(series) == 0 {
					t.Errorf("%v, %d samples, want %d", err, len(series), len(out.Series))
				}
				logs, _, err := opt.Folder.ReadHistograms(cfg.Name)
				if err != nil || len(logs) != 5 || logs[0].Hist.Count() != b*measurements ||
					logs[4].Tag != hist.LAG {
					t.Errorf("%v, histograms %v", err, logs)
				}
			})
		}
	}
}

func sortByIndex(records []workload.Record) {
	byIndex := make([]workload.Record, len(records))
	for _, r := range records {
		byIndex[r.Index] = r
	}
	copy(records, byIndex)
}

func TestRunWithoutFolder(t *testing.T) {
	srv := connect(t, serve(t, nil, nil), vllm.Options{})
	opt := options(t, srv, decode(50, 2, 2))
	dir := opt.Folder.Dir()
	opt.Folder = nil
	out, err := profile.Run(t.Context(), opt)
	if err != nil || len(out.Records) != len(opt.Workload.Requests) {
		t.Errorf("%v, %+v", err, out)
	}
	if files, _ := os.ReadDir(dir); len(files) != 1 { // the manifest
		t.Errorf("files %v", files)
	}
}

// Two runs on one server: the second starts cold, because every run has a salt of its own.
func TestRunStartsCold(t *testing.T) {
	srv := connect(t, serve(t, nil, nil), vllm.Options{})
	for range 2 {
		out, err := profile.Run(t.Context(), options(t, srv, decode(50, 2, 2)))
		if err != nil {
			t.Fatal(err)
		}
		if len(warnings(out.Result)) != 0 || out.Result.Counters["vllm:prefix_cache_hits_total"] != 2*16*2*3 {
			t.Errorf("%v hit tokens, %q", out.Result.Counters["vllm:prefix_cache_hits_total"], out.Result.Warnings)
		}
	}
}

// complete sends a request of somebody else's.
func complete(t *testing.T, url string, prompt string) {
	resp, err := http.Post(url+"/v1/completions", "application/json", strings.NewReader(
		`{"model":"openai-community/gpt2","max_tokens":2,"prompt":`+prompt+`}`))
	if err != nil {
		t.Error(err)
		return
	}
	defer resp.Body.Close()
	if body, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusOK {
		t.Errorf("somebody else's request: %s", body)
	}
}

// rewriter puts something else into what a server writes.
type rewriter struct {
	http.ResponseWriter
	pattern *regexp.Regexp
	by      string
}

func (w rewriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w rewriter) Write(p []byte) (int, error) {
	w.Header().Del("Content-Length")
	_, err := w.ResponseWriter.Write(w.pattern.ReplaceAll(p, []byte(w.by)))
	return len(p), err
}

func TestRunWarns(t *testing.T) {
	off := false
	tests := []struct {
		name    string
		server  func(*engine.Options)
		wrap    func(http.Handler) http.Handler
		connect vllm.Options
		run     func(t *testing.T, url string, opt *profile.Options)
		want    []string
	}{
		{
			name:   "prefix caching is off",
			server: func(o *engine.Options) { o.Args.EnablePrefixCaching = &off },
			want:   []string{"counted 0 prefix-cache hit tokens, the workload should have had 480: prefix caching is off"},
		},
		{
			name:   "prefixes were evicted",
			server: func(o *engine.Options) { o.NumGPUBlocks, o.Args.MaxNumSeqs = 70, 1 },
			run: func(t *testing.T, _ string, o *profile.Options) {
				cfg := decode(50, 40, 4)
				cfg.Prefix = "own"
				*o = options(t, o.Server, cfg)
			},
			want: []string{"the workload should have had 7680: blocks were evicted, or others use the server"},
		},
		{
			name: "others use the server",
			run: func(t *testing.T, url string, o *profile.Options) {
				var once atomic.Bool
				o.OnProgress = func(profile.Progress) {
					if !once.Swap(true) {
						complete(t, url, "[1,2,3,4,5,6,7]")
					}
				}
			},
			want: []string{"contaminated: the server processed 7 prompt tokens that are not ours"},
		},
		{
			name: "the generator is late",
			connect: vllm.Options{HTTPClient: &http.Client{Transport: &http.Transport{
				Proxy: func(*http.Request) (*url.URL, error) {
					time.Sleep(20 * time.Millisecond) // before a connection is asked for: our own fault
					return nil, nil
				},
			}}},
			want: []string{late + ": requests were sent up to "},
		},
		{
			name: "the server's answers contradict themselves",
			wrap: func(h http.Handler) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					h.ServeHTTP(rewriter{w, regexp.MustCompile(`"completion_tokens":\d+`), `"completion_tokens":7777`}, r)
				})
			},
			want: []string{"16 of 16 answers have another number of completion tokens in their usage"},
		},
		{
			name: "the server's counters go back",
			wrap: func(h http.Handler) http.Handler {
				var reads atomic.Int64
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if r.URL.Path == "/metrics" && reads.Add(1) <= 2 {
						w = rewriter{w, regexp.MustCompile(`(?m)^(vllm:request_success_total\{.*\}) .*$`), "$1 1e9"}
					}
					h.ServeHTTP(w, r)
				})
			},
			want: []string{"1 of its counters went back, vllm:request_success_total among them"},
		},
		{
			name: "the metrics end early",
			wrap: func(h http.Handler) http.Handler {
				var reads atomic.Int64
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if r.URL.Path == "/metrics" && reads.Add(1) > 2 { // one to connect, one before the run
						http.Error(w, "no metrics today", http.StatusInternalServerError)
						return
					}
					h.ServeHTTP(w, r)
				})
			},
			want: []string{"metrics could not be read at the end of the run"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := serve(t, tt.server, tt.wrap)
			opt := options(t, connect(t, s, tt.connect), decode(50, 2, 5))
			if tt.run != nil {
				tt.run(t, s.URL, &opt)
			}
			out, err := profile.Run(t.Context(), opt)
			if err != nil {
				t.Fatal(err)
			}
			if out.Result.Partial {
				t.Errorf("partial: %s", out.Result.Why)
			}
			got := warnings(out.Result)
			if strings.HasPrefix(tt.want[0], late) {
				got = slices.DeleteFunc(slices.Clone(out.Result.Warnings), func(w string) bool { return strings.Contains(w, gap) })
			}
			if len(got) != len(tt.want) {
				t.Fatalf("warnings %q, want %q", got, tt.want)
			}
			for i, want := range tt.want {
				if !strings.Contains(got[i], want) {
					t.Errorf("warning %q, want %q", got[i], want)
				}
			}
		})
	}
}

func TestRunSurvivesTheServersEnd(t *testing.T) {
	s := serve(t, nil, nil)
	cfg := decode(50, 2, 4)
	cfg.NumMeasurements = 50
	opt := options(t, connect(t, s, vllm.Options{}), cfg)
	const before = 25
	opt.OnProgress = func(p profile.Progress) {
		if p.Ended == before {
			s.Listener.Close()
			s.CloseClientConnections()
		}
	}
	out, err := profile.Run(t.Context(), opt)
	if err != nil {
		t.Fatal(err)
	}
	if !out.Result.Partial || !strings.Contains(out.Result.Why, "dead") {
		t.Errorf("partial %v: %q", out.Result.Partial, out.Result.Why)
	}
	checkCut(t, opt, out, before)
}

func TestRunCancelled(t *testing.T) {
	cfg := decode(50, 2, 4)
	cfg.NumMeasurements = 50
	opt := options(t, connect(t, serve(t, nil, nil), vllm.Options{}), cfg)
	ctx, cancel := context.WithCancel(t.Context())
	const before = 25
	opt.OnProgress = func(p profile.Progress) {
		if p.Ended == before {
			cancel()
		}
	}
	out, err := profile.Run(ctx, opt)
	if err != nil {
		t.Fatal(err)
	}
	if !out.Result.Partial || out.Result.Why != "interrupted" {
		t.Errorf("partial %v: %q", out.Result.Partial, out.Result.Why)
	}
	if out.Result.Counters["vllm:prompt_tokens_total"] == 0 {
		t.Error("the counters were not read after the end")
	}
	checkCut(t, opt, out, before)
}

// checkCut checks that a run which ended after some requests kept them, on disk, too.
func checkCut(t *testing.T, opt profile.Options, out *profile.Output, least int) {
	t.Helper()
	if len(out.Records) < least || len(out.Records) >= len(opt.Workload.Requests) {
		t.Errorf("%d records of %d requests", len(out.Records), len(opt.Workload.Requests))
	}
	primed := 1 + opt.Config.B // and warmed up
	if ok := value(t, out.Result, harness.MetricRequests, harness.StatOK); int(ok) < least-primed {
		t.Errorf("%v requests succeeded", ok)
	}
	if got := state(t, opt.Folder, opt.Name); got != archive.Partial {
		t.Errorf("the part is %q", got)
	}
	records, partial, err := opt.Folder.ReadRequests(opt.Name)
	if err != nil || partial || len(records) != len(out.Records) {
		t.Errorf("%d records on disk, want %d; %v, partial %v", len(records), len(out.Records), err, partial)
	}
	read, err := opt.Folder.Result(opt.Name)
	if err != nil || !read.Partial || read.Why != out.Result.Why {
		t.Errorf("result on disk: %v, %+v", err, read)
	}
	for _, w := range warnings(out.Result) {
		t.Errorf("warning %q: what is missing explains itself", w)
	}
}

func TestRunWithoutSuccess(t *testing.T) {
	srv := connect(t, serve(t, nil, nil), vllm.Options{})
	opt := options(t, srv, decode(50, 0, 2))
	for i := range opt.Workload.Requests {
		opt.Workload.Requests[i].Prompt[0].Tokens = 2000 // the server's context is 1024
	}
	out, err := profile.Run(t.Context(), opt)
	if err != nil {
		t.Fatal(err)
	}
	if why := out.Result.Why; !out.Result.Partial || !strings.Contains(why, "no request succeeded: ") ||
		!strings.Contains(why, "1024") {
		t.Errorf("partial %v: %q", out.Result.Partial, why)
	}
	if got := state(t, opt.Folder, opt.Name); got != archive.Partial {
		t.Errorf("the part is %q", got)
	}
}

func TestRunErrors(t *testing.T) {
	srv := connect(t, serve(t, nil, nil), vllm.Options{})
	t.Run("a workload that cannot be sent", func(t *testing.T) {
		opt := options(t, srv, decode(50, 2, 2))
		opt.Workload.Requests[1].Index = 7
		if _, err := profile.Run(t.Context(), opt); err == nil {
			t.Error("no error")
		}
		if files, _ := os.ReadDir(opt.Folder.Dir()); len(files) != 1 || len(opt.Folder.Parts()) != 0 {
			t.Errorf("something was written: %v, %v", files, opt.Folder.Parts())
		}
	})
	t.Run("a folder that is gone", func(t *testing.T) {
		opt := options(t, srv, decode(50, 2, 2))
		if err := os.RemoveAll(opt.Folder.Dir()); err != nil {
			t.Fatal(err)
		}
		if _, err := profile.Run(t.Context(), opt); err == nil || !strings.Contains(err.Error(), opt.Folder.Dir()) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("a folder that goes", func(t *testing.T) {
		opt := options(t, srv, decode(50, 2, 2))
		opt.OnProgress = func(profile.Progress) { os.RemoveAll(opt.Folder.Dir()) }
		out, err := profile.Run(t.Context(), opt)
		if err == nil || out == nil || len(out.Records) != len(opt.Workload.Requests) {
			t.Errorf("error %v, output %v: what was measured should be there beside the error", err, out)
		}
	})
}

// Every whole record is readable while the run goes on, as it is after a kill.
func TestRunStreamsRecords(t *testing.T) {
	srv := connect(t, serve(t, nil, nil), vllm.Options{})
	opt := options(t, srv, decode(50, 2, 4))
	opt.OnProgress = func(p profile.Progress) {
		data, err := os.ReadFile(filepath.Join(opt.Folder.Dir(), opt.Name+archive.RequestsSuffix+archive.PartialSuffix))
		if err != nil {
			t.Error(err)
			return
		}
		records, _, err := archive.ReadRequests(bytes.NewReader(data))
		if err != nil || len(records) < p.Ended {
			t.Errorf("%d records of %d, %v", len(records), p.Ended, err)
		}
	}
	if _, err := profile.Run(t.Context(), opt); err != nil {
		t.Fatal(err)
	}
}

func TestHistogramsLaws(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	var records []workload.Record
	var counts [4]int64 // TTFT, ITL, TPOT, E2E
	var end time.Duration
	for i := range 500 {
		r := workload.Record{Index: i, Sent: time.Duration(rng.IntN(1e9))}
		if rng.IntN(2) == 0 {
			due := r.Sent - time.Duration(rng.IntN(1e6))
			r.Due = &due
		}
		at := time.Duration(0)
		for range rng.IntN(6) {
			at += time.Duration(1e6 + rng.IntN(1e8))
			r.Tokens = append(r.Tokens, workload.TokenEvent{At: at, Tokens: 1})
			r.OutputTokens++
		}
		switch rng.IntN(6) {
		case 0:
			r.Error = "lost"
		case 1:
			r.Phase = workload.Warmup
		case 2:
			r.Phase = workload.Prime
		}
		records = append(records, r)
		if !r.OK() || r.Phase != workload.Measured {
			continue
		}
		end = max(end, r.End())
		counts[0]++
		counts[1] += int64(len(r.Tokens) - 1)
		if r.OutputTokens > 1 {
			counts[2]++
		}
		counts[3]++
	}
	logs := profile.Histograms(records)
	for i, tag := range []hist.Tag{hist.TTFT, hist.ITL, hist.TPOT, hist.E2E} {
		l := logs[i]
		if l.Tag != tag || l.Hist.Count() != counts[i] || l.Hist.Overflow() != 0 || l.Start != 0 || l.Length != end {
			t.Errorf("%s: tag %s, %d values, want %d; from %v for %v, want %v", tag, l.Tag, l.Hist.Count(), counts[i], l.Start,
				l.Length, end)
		}
	}
	// What is 3 digits exact for the log is so for the metrics: the median agrees with Measure's.
	ms := harness.Measure(records)
	for i, name := range []string{harness.MetricTTFT, harness.MetricITL, harness.MetricTPOT, harness.MetricE2EL} {
		want, ok := ms.Value(name, harness.StatMean)
		if got := logs[i].Hist.Mean().Seconds(); !ok || got < want*0.998 || got > want*1.002 {
			t.Errorf("%s: mean %v in the histogram, %v in the metrics", name, got, want)
		}
	}
	if logs := profile.Histograms(nil); len(logs) != 4 || logs[0].Hist.Count() != 0 || logs[0].Length != 0 {
		t.Errorf("of nothing: %+v", logs)
	}
}
