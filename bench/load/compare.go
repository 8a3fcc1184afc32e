package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"kvtune/harness/telemetry"
)

// The scenario in which the tools are compared: 1,000 streams of 50 tokens/s on average.
const (
	rate, requests, tokens = 500, 3000, 100
	ttft, itl              = 50 * time.Millisecond, 20 * time.Millisecond
	address                = "127.0.0.1:8765"
	toolTimeout            = 4 * time.Minute
)

// table is the committed file.
type table struct {
	Schema string `json:"schema"`
	Date   string `json:"date"`
	Host   string `json:"host"`
	Pinned string `json:"pinned"`
	// Streams is the scenario of Tools; the server's own times are in each row.
	Streams string `json:"streams"`
	Tools   []row  `json:"tools"`
	// Kvtune are the figures of kvtune alone.
	Kvtune figures `json:"kvtune"`
}

// row is one tool in the scenario; times are in seconds. What a tool does not say is null.
type row struct {
	Tool    string `json:"tool"`
	Version string `json:"version,omitempty"`
	// Note says why there are no figures.
	Note      string   `json:"note,omitempty"`
	OK        int      `json:"ok"`
	Rate      float64  `json:"requests_per_s"` // reached, of 500
	TTFT50    *float64 `json:"ttft_p50_s"`
	TTFT99    *float64 `json:"ttft_p99_s"`
	Server50  *float64 `json:"server_ttft_p50_s"`
	Server99  *float64 `json:"server_ttft_p99_s"`
	Error99   *float64 `json:"ttft_error_p99_s"` // TTFT99 - Server99
	ByRequest *float64 `json:"ttft_error_p99_by_request_s,omitempty"`
	Lag99     *float64 `json:"send_lag_p99_s,omitempty"`
	CPU       float64  `json:"cpu_s"`
	PeakRSS   int64    `json:"peak_rss_bytes"` // of its largest process
}

// figures are medians of three runs, each of which is listed.
type figures struct {
	ParseEvents   float64   `json:"parse_events_per_s"`
	ParseAllocs   float64   `json:"parse_allocs_per_stream_of_1002_events"`
	EndToEnd      float64   `json:"end_to_end_events_per_s"`
	EndToEndRuns  []float64 `json:"end_to_end_runs"`
	Lag99         float64   `json:"send_lag_p99_at_1000_per_s_s"`
	Lag99Runs     []float64 `json:"send_lag_p99_runs"`
	Error99       float64   `json:"ttft_error_p99_at_1000_streams_s"`
	Error99Runs   []float64 `json:"ttft_error_p99_runs"`
	Streams10kRSS int       `json:"peak_rss_at_10000_streams_bytes"`
}

type comparison struct {
	vllm, guidellm, aiperf, tokenizer string
	priority                          int
	dir                               string // scratch
}

func compare(args []string) error {
	fs := flag.NewFlagSet("compare", flag.ContinueOnError)
	c := &comparison{}
	fs.StringVar(&c.vllm, "vllm", "", "the program vllm, for vllm bench serve")
	fs.StringVar(&c.guidellm, "guidellm", "", "the program guidellm")
	fs.StringVar(&c.aiperf, "aiperf", "", "the program aiperf")
	fs.StringVar(&c.tokenizer, "tokenizer", "", "a folder with a tokenizer, which the others want (tokenizer.py makes one)")
	fs.IntVar(&c.priority, "realtime", 0, "real-time priority of server and clients, all the same (chrt -r); 0 is none")
	out := fs.String("out", "bench/results/load", "")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if runtime.NumCPU() < 2 {
		return fmt.Errorf("%d processor: one for the server and one for the client are needed", runtime.NumCPU())
	}
	var err error
	if c.dir, err = os.MkdirTemp("", "load"); err != nil {
		return err
	}
	defer os.RemoveAll(c.dir)
	host, err := telemetry.Host()
	if err != nil {
		return err
	}
	t := table{
		Schema: "kvtune.load/1", Date: time.Now().UTC().Format(time.DateOnly), Host: host,
		Pinned:  "server to processor 0, client (with all its processes) to processor 1",
		Streams: fmt.Sprintf("%d requests, Poisson at %d/s, %d tokens each, first token %v and the next every %v", requests, rate, tokens, ttft, itl),
	}
	if c.priority > 0 {
		t.Pinned += fmt.Sprintf("; both at real-time priority %d", c.priority)
	}
	if t.Kvtune, err = c.kvtune(); err != nil {
		return err
	}
	for _, run := range []func() row{c.ours, c.vllmBench, c.guide, c.ai} {
		r := run()
		fmt.Fprintf(os.Stderr, "%+v\n", r)
		t.Tools = append(t.Tools, r)
	}
	text, err := json.MarshalIndent(t, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(*out, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(*out, "load.json"), append(text, '\n'), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(*out, "README.md"), []byte(t.markdown()), 0o644)
}

// pinned is a command on one processor.
func (c *comparison) pinned(cpu int, argv ...string) *exec.Cmd {
	argv = append([]string{"-c", strconv.Itoa(cpu)}, argv...)
	if c.priority > 0 {
		argv = slices.Insert(argv, 2, "chrt", "-r", strconv.Itoa(c.priority))
	}
	return exec.Command("taskset", argv...)
}

// against runs a client against a server of its own. What the client used is that of all its processes.
func (c *comparison) against(serverFlags, argv []string) (stdout []byte, r row, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, r, err
	}
	stamps := filepath.Join(c.dir, "stamps")
	server := c.pinned(0, append([]string{self, "serve", "-listen", address, "-stamps", stamps}, serverFlags...)...)
	server.Stderr = os.Stderr
	if err := server.Start(); err != nil {
		return nil, r, err
	}
	defer func() {
		_ = server.Process.Signal(syscall.SIGTERM)
		_ = server.Wait()
	}()
	time.Sleep(500 * time.Millisecond)
	cmd := c.pinned(1, argv...)
	cmd.Dir = c.dir
	var errs bytes.Buffer
	cmd.Stderr = &errs
	timer := time.AfterFunc(toolTimeout, func() { _ = cmd.Process.Signal(syscall.SIGTERM) })
	stdout, err = cmd.Output()
	timer.Stop()
	if err != nil {
		tail := errs.String()
		return stdout, r, fmt.Errorf("%w: %s", err, tail[max(0, len(tail)-500):])
	}
	r.CPU = (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds()
	if u, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
		r.PeakRSS = u.Maxrss << 10
	}
	f, err := os.Open(stamps)
	if err != nil {
		return stdout, r, err
	}
	defer f.Close()
	var took []float64
	for in := bufio.NewScanner(f); in.Scan(); {
		if _, text, ok := strings.Cut(in.Text(), " "); ok {
			if v, err := strconv.ParseFloat(text, 64); err == nil {
				took = append(took, v)
			}
		}
	}
	p50, p99 := quantile(took, 0.5), quantile(took, 0.99)
	r.Server50, r.Server99 = &p50, &p99
	return stdout, r, nil
}

var streams = []string{"-ttft", ttft.String(), "-itl", itl.String()}

// own runs kvtune's generator.
func (c *comparison) own(serverFlags []string, flags ...string) (o outcome, r row, err error) {
	self, err := os.Executable()
	if err != nil {
		return o, r, err
	}
	out, r, err := c.against(serverFlags, append([]string{self, "client", "-stamps", filepath.Join(c.dir, "stamps")}, flags...))
	if err != nil {
		return o, r, err
	}
	return o, r, json.Unmarshal(out, &o)
}

func itoa(n int) string { return strconv.Itoa(n) }

func (c *comparison) kvtune() (f figures, err error) {
	out, err := c.pinned(1, "go", "test", "-run", "^$", "-bench", "^BenchmarkStream$", "./harness/vllm").Output()
	if err != nil {
		return f, fmt.Errorf("go test -bench: %w", err)
	}
	m := regexp.MustCompile(`([\d.e+]+) events/s.*?(\d+) allocs/op`).FindSubmatch(out)
	if m == nil {
		return f, fmt.Errorf("go test -bench printed no events/s:\n%s", out)
	}
	f.ParseEvents, _ = strconv.ParseFloat(string(m[1]), 64)
	f.ParseAllocs, _ = strconv.ParseFloat(string(m[2]), 64)
	for range 3 {
		o, _, err := c.own([]string{"-ttft", "1ms", "-itl", "0s", "-batch", "16"}, "-concurrency", "64", "-requests", "256", "-output", "16000")
		if err != nil {
			return f, err
		}
		f.EndToEndRuns = append(f.EndToEndRuns, o.EventRate)
		if o, _, err = c.own(streams, "-rate", "1000", "-requests", "10000", "-output", "1"); err != nil {
			return f, err
		}
		f.Lag99Runs = append(f.Lag99Runs, o.Lag99)
		if o, _, err = c.own(streams, "-rate", itoa(rate), "-requests", itoa(requests), "-output", itoa(tokens)); err != nil {
			return f, err
		}
		f.Error99Runs = append(f.Error99Runs, *o.Error99)
	}
	f.EndToEnd, f.Lag99, f.Error99 = quantile(f.EndToEndRuns, 0.5), quantile(f.Lag99Runs, 0.5), quantile(f.Error99Runs, 0.5)
	// All are open for some seconds: each takes 14 s, and the last is sent after 5.
	o, _, err := c.own([]string{"-ttft", "5s", "-itl", "1s"}, "-rate", "fixed:2000", "-requests", "10000", "-output", "10")
	f.Streams10kRSS = o.PeakRSS
	return f, err
}

func (c *comparison) ours() row {
	o, r, err := c.own(streams, "-rate", itoa(rate), "-requests", itoa(requests), "-output", itoa(tokens))
	r.Tool, r.Version, r.OK, r.Rate = "kvtune", "this tree", o.OK, float64(o.OK)/max(o.Duration, 1e-9)
	r.ByRequest, r.Lag99 = o.Error99, &o.Lag99
	r.finish(err, o.TTFT50, o.TTFT99)
	return r
}

// finish sets what a client says.
func (r *row) finish(err error, p50, p99 float64) {
	if err != nil {
		r.Note = err.Error()
		return
	}
	e := p99 - *r.Server99
	r.TTFT50, r.TTFT99, r.Error99 = &p50, &p99, &e
}

// read decodes a tool's result file.
func (c *comparison) read(pattern string, into any) error {
	files, _ := filepath.Glob(filepath.Join(c.dir, pattern))
	if len(files) == 0 {
		return fmt.Errorf("no file %s", pattern)
	}
	data, err := os.ReadFile(files[0])
	if err != nil {
		return err
	}
	return json.Unmarshal(data, into)
}

// versionOf is the first version number that a program prints.
func versionOf(argv ...string) string {
	out, _ := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	return string(regexp.MustCompile(`\d+\.\d+\.\d+`).Find(out))
}

const notInstalled = "not installed"

func (c *comparison) vllmBench() row {
	r := row{Tool: "vllm bench serve", Note: notInstalled}
	if c.vllm == "" {
		return r
	}
	_, r, err := c.against(streams, []string{c.vllm, "bench", "serve", "--backend", "openai", "--base-url", "http://" + address,
		"--model", "static", "--tokenizer", c.tokenizer, "--dataset-name", "random", "--random-input-len", "16",
		"--random-output-len", itoa(tokens), "--num-prompts", itoa(requests), "--request-rate", itoa(rate), "--ignore-eos",
		"--percentile-metrics", "ttft", "--metric-percentiles", "50,99", "--save-result", "--result-filename", "vllm.json", "--disable-tqdm"})
	var doc struct {
		Completed int     `json:"completed"`
		Duration  float64 `json:"duration"`
		P50       float64 `json:"p50_ttft_ms"`
		P99       float64 `json:"p99_ttft_ms"`
	}
	if err == nil {
		err = c.read("vllm.json", &doc)
	}
	r.Tool, r.Version = "vllm bench serve", versionOf(c.vllm, "--version")
	r.OK, r.Rate = doc.Completed, float64(doc.Completed)/max(doc.Duration, 1e-9)
	r.finish(err, doc.P50/1e3, doc.P99/1e3)
	return r
}

func (c *comparison) guide() row {
	r := row{Tool: "guidellm", Note: notInstalled}
	if c.guidellm == "" {
		return r
	}
	_, r, err := c.against(streams, []string{c.guidellm, "run", "--backend", "kind=openai_http,target=http://" + address + ",model=static",
		"--profile", fmt.Sprintf("kind=poisson,rate=%d", rate), "--constraint", fmt.Sprintf("kind=max_requests,count=%d", requests),
		"--tokenizer", "kind=hf_auto,model=" + c.tokenizer, "--data", fmt.Sprintf("kind=synthetic_text,prompt_tokens=16,output_tokens=%d", tokens),
		"--output", "kind=json,path=guidellm.json", "--disable-console"})
	type percentiles struct {
		Successful struct {
			Percentiles struct {
				P50, P99 float64
			} `json:"percentiles"`
		} `json:"successful"`
	}
	var doc struct {
		Benchmarks []struct {
			Metrics struct {
				Totals struct {
					Successful int `json:"successful"`
				} `json:"request_totals"`
				TTFT percentiles `json:"time_to_first_token_ms"`
				Rate struct {
					Successful struct {
						Mean float64 `json:"mean"`
					} `json:"successful"`
				} `json:"requests_per_second"`
			} `json:"metrics"`
		} `json:"benchmarks"`
	}
	if err == nil {
		if err = c.read("guidellm.json", &doc); err == nil && len(doc.Benchmarks) == 0 {
			err = fmt.Errorf("guidellm.json has no benchmark")
		}
	}
	r.Tool, r.Version = "guidellm", versionOf(c.guidellm, "--version")
	if err != nil {
		r.finish(err, 0, 0)
		return r
	}
	m := doc.Benchmarks[0].Metrics
	r.OK, r.Rate = m.Totals.Successful, m.Rate.Successful.Mean
	r.finish(nil, m.TTFT.Successful.Percentiles.P50/1e3, m.TTFT.Successful.Percentiles.P99/1e3)
	return r
}

func (c *comparison) ai() row {
	r := row{Tool: "aiperf", Note: notInstalled}
	if c.aiperf == "" {
		return r
	}
	_, r, err := c.against(streams, []string{c.aiperf, "profile", "-m", "static", "--url", "http://" + address, "--endpoint-type", "completions",
		"--streaming", "--tokenizer", c.tokenizer, "--request-rate", itoa(rate), "--request-count", itoa(requests), "--isl", "16",
		"--osl", itoa(tokens), "--extra-inputs", "ignore_eos:true", "--artifact-dir", filepath.Join(c.dir, "aiperf"), "--ui", "none"})
	var doc struct {
		Version string `json:"aiperf_version"`
		Count   struct {
			Avg float64 `json:"avg"`
		} `json:"request_count"`
		Rate struct {
			Avg float64 `json:"avg"`
		} `json:"request_throughput"`
		TTFT struct {
			P50 float64 `json:"p50"`
			P99 float64 `json:"p99"`
		} `json:"time_to_first_token"`
	}
	if err == nil {
		err = c.read("aiperf/profile_export_aiperf.json", &doc)
	}
	r.Tool, r.Version, r.OK, r.Rate = "aiperf", doc.Version, int(doc.Count.Avg), doc.Rate.Avg
	r.finish(err, doc.TTFT.P50/1e3, doc.TTFT.P99/1e3)
	return r
}

// markdown is the table for people.
func (t *table) markdown() string {
	ms := func(v *float64) string {
		if v == nil {
			return "-"
		}
		return strconv.FormatFloat(*v*1e3, 'f', 1, 64)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "# Load generators on one processor\n\nMeasured %s by `make bench-load` on: %s. Pinned: %s.\n\n", t.Date, t.Host, t.Pinned)
	fmt.Fprintf(&b, "%s, from a static server that notes when it writes each first token. The error is the client's p99 minus the server's own.\n\n", t.Streams)
	b.WriteString("| client | version | requests/s over the run | TTFT p50 / p99, ms | server's own p50 / p99, ms | error p99, ms | CPU, s | peak memory of the largest process, MiB |\n" +
		"| --- | --- | --- | --- | --- | --- | --- | --- |\n")
	for _, r := range t.Tools {
		if r.Note != "" {
			fmt.Fprintf(&b, "| %s | %s | %.200s | | | | | |\n", r.Tool, r.Version, strings.Join(strings.Fields(r.Note), " "))
			continue
		}
		fmt.Fprintf(&b, "| %s | %s | %.0f | %s / %s | %s / %s | %s | %.1f | %d |\n", r.Tool, r.Version, r.Rate, ms(r.TTFT50), ms(r.TTFT99),
			ms(r.Server50), ms(r.Server99), ms(r.Error99), r.CPU, r.PeakRSS>>20)
	}
	k := t.Kvtune
	fmt.Fprintf(&b, "\nkvtune alone, medians of three runs:\n\n| figure | value | runs |\n| --- | --- | --- |\n")
	list := func(scale float64, format string, runs []float64) string {
		var s []string
		for _, v := range runs {
			s = append(s, fmt.Sprintf(format, v*scale))
		}
		return strings.Join(s, ", ")
	}
	fmt.Fprintf(&b, "| events parsed from memory on one core, per second | %.2f million (%.0f allocations a stream of 1,002 events) | |\n",
		k.ParseEvents/1e6, k.ParseAllocs)
	fmt.Fprintf(&b, "| events end to end over loopback (16 a write), per second | %.0f thousand | %s |\n", k.EndToEnd/1e3,
		list(1e-3, "%.0f", k.EndToEndRuns))
	fmt.Fprintf(&b, "| send lag p99 at 1,000 requests/s, ms | %.2f | %s |\n", k.Lag99*1e3, list(1e3, "%.2f", k.Lag99Runs))
	fmt.Fprintf(&b, "| TTFT error p99, request by request, at 1,000 streams of 50 tokens/s, ms | %.2f | %s |\n", k.Error99*1e3,
		list(1e3, "%.2f", k.Error99Runs))
	fmt.Fprintf(&b, "| peak memory with 10,000 open streams, MiB | %d | |\n", k.Streams10kRSS>>20)
	return b.String()
}
