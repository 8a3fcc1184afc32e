package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"syscall"
	"time"

	"kvtune/harness"
	"kvtune/harness/stats"
	"kvtune/harness/telemetry"
	"kvtune/harness/vllm"
	"kvtune/harness/workload"
)

// What every stream of the comparison is.
const (
	tokens      = 100
	ttft, itl   = 50 * time.Millisecond, 20 * time.Millisecond
	address     = "127.0.0.1:8765"
	engineModel = "meta-llama/Llama-3.1-8B"
	toolTimeout = 4 * time.Minute
)

// scenario is what all tools are asked for: a rate, or a number in flight.
type scenario struct {
	rate, concurrency, requests int
	// engine has kvtune's embedded engine answer in place of the static server.
	engine bool
}

// loads have 1,000 streams of 50 tokens/s open on average, the same at a fixed number in flight, and a number that all
// tools keep up with on one processor; and few enough for the embedded engine to keep to its times.
func loads() []*scenario {
	return []*scenario{
		{rate: 500, requests: 3000},
		{concurrency: 1000, requests: 4000},
		{concurrency: 100, requests: 1000},
		{concurrency: 16, requests: 400, engine: true},
	}
}

func (l *scenario) String() string {
	if l.rate > 0 {
		return fmt.Sprintf("%d requests, Poisson at %d/s", l.requests, l.rate)
	}
	s := fmt.Sprintf("%d requests, %d in flight", l.requests, l.concurrency)
	if l.engine {
		s += ", from the embedded engine (" + engineModel + " on an H200)"
	}
	return s
}

// model is what the server serves.
func (l *scenario) model() string {
	if l.engine {
		return engineModel
	}
	return "static"
}

// server is the command that serves the load.
func (c *comparison) server(l *scenario) []string {
	if l.engine {
		return []string{c.engine, "serve", "--quiet", "--listen", address, "--model", engineModel}
	}
	return c.static("-ttft", ttft.String(), "-itl", itl.String())
}

// static is the static server.
func (c *comparison) static(flags ...string) []string {
	return append([]string{c.self, "serve", "-listen", address, "-stamps", filepath.Join(c.dir, "stamps")}, flags...)
}

// flags are the load of kvtune's client.
func (l *scenario) flags() []string {
	flags := []string{"-requests", itoa(l.requests), "-output", itoa(tokens)}
	if !l.engine {
		flags = append(flags, "-named")
	}
	if l.rate > 0 {
		return append(flags, "-rate", itoa(l.rate))
	}
	return append(flags, "-concurrency", itoa(l.concurrency))
}

type comparison struct {
	self      string // this program
	engine    string // the program kvtune
	peers     []peer
	tokenizer string
	priority  int
	dir       string // scratch
}

func compare(args []string) error {
	fs := flag.NewFlagSet("compare", flag.ContinueOnError)
	c := &comparison{}
	python := fs.String("vllm", "", "the program vllm, for vllm bench serve")
	rust := fs.String("vllm-rs", "", "the program vllm-rs of vLLM's wheel, for vllm-rs bench serve")
	guide := fs.String("guidellm", "", "the program guidellm")
	ai := fs.String("aiperf", "", "the program aiperf")
	fs.StringVar(&c.engine, "kvtune", "bin/kvtune", "the program kvtune, for its embedded engine")
	fs.StringVar(&c.tokenizer, "tokenizer", "", "a folder with a tokenizer for the others (tokenizer.py makes one)")
	fs.IntVar(&c.priority, "realtime", 0, "real-time priority of server and clients, all the same (chrt -r); 0 is none")
	out := fs.String("out", "bench/results/load", "")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if runtime.NumCPU() < 2 {
		return fmt.Errorf("%d processor: one for the server and one for the client are needed", runtime.NumCPU())
	}
	c.peers = []peer{
		{"vllm bench serve", *python, []string{*python, "--version"}, vllmBench, "vllm.json"},
		{"vllm-rs bench serve", *rust, []string{*rust, "--version"}, vllmBench, "vllm.json"},
		{"guidellm", *guide, []string{*guide, "--version"}, guidellm, "guidellm.json"},
		{"aiperf", *ai, []string{*ai, "--version"}, aiperf, "aiperf/profile_export.jsonl"},
	}
	var err error
	if c.self, err = os.Executable(); err != nil {
		return err
	}
	if c.engine, err = filepath.Abs(c.engine); err != nil {
		return err
	}
	if c.dir, err = os.MkdirTemp("", "load"); err != nil {
		return err
	}
	defer os.RemoveAll(c.dir)
	host, err := telemetry.Host()
	if err != nil {
		return err
	}
	t := table{
		Schema: "kvtune.load/2", Date: time.Now().UTC().Format(time.DateOnly), Host: host,
		Pinned:  "server to processor 0, client (with all its processes) to processor 1",
		Streams: fmt.Sprintf("%d tokens, the first after %v and the next every %v", tokens, ttft, itl),
	}
	if c.priority > 0 {
		t.Pinned += fmt.Sprintf("; both at real-time priority %d", c.priority)
	}
	if t.Kvtune, err = c.kvtune(); err != nil {
		return err
	}
	for _, l := range loads() {
		s := side{Load: l.String(), Tools: []row{c.own(l)}}
		for i := range c.peers {
			s.Tools = append(s.Tools, c.other(&c.peers[i], l))
			fmt.Fprint(os.Stderr, s.Load, " ", s.Tools[i+1].markdown())
		}
		t.Loads = append(t.Loads, s)
	}
	return t.write(*out)
}

// pinned is a command on one processor.
func (c *comparison) pinned(cpu int, argv ...string) *exec.Cmd {
	argv = append([]string{"-c", strconv.Itoa(cpu)}, argv...)
	if c.priority > 0 {
		argv = slices.Insert(argv, 2, "chrt", "-r", strconv.Itoa(c.priority))
	}
	return exec.Command("taskset", argv...)
}

// against runs a client against a server of its own. The row has what the server says of first tokens and what both
// used: the client with all its processes. stamps is nil where the server is the embedded engine.
func (c *comparison) against(server, client []string) (stdout []byte, stamps []stamp, r row, err error) {
	file := filepath.Join(c.dir, "stamps")
	_ = os.Remove(file) // of the server before
	srv := c.pinned(0, server...)
	srv.Stderr = os.Stderr
	if err := srv.Start(); err != nil {
		return nil, nil, r, err
	}
	begin := time.Now()
	stdout, used, mean, err := c.run(client)
	took := time.Since(begin)
	_ = srv.Process.Signal(syscall.SIGTERM)
	if err = errors.Join(err, srv.Wait()); err != nil {
		return stdout, nil, r, err
	}
	r.CPU = (used.UserTime() + used.SystemTime()).Seconds()
	if u, ok := used.SysUsage().(*syscall.Rusage); ok {
		r.PeakRSS = u.Maxrss << 10
	}
	r.ServerBusy = (srv.ProcessState.UserTime() + srv.ProcessState.SystemTime()).Seconds() / took.Seconds()
	if stamps, err = readStamps(file); errors.Is(err, os.ErrNotExist) {
		r.ServerMean = mean
		return stdout, nil, r, nil
	}
	return stdout, stamps, r, err
}

// run runs a client once the server answers; mean is the server's own mean TTFT after it, nil where it has none.
func (c *comparison) run(argv []string) (stdout []byte, used *os.ProcessState, mean *float64, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), toolTimeout)
	defer cancel()
	srv, err := connect(ctx)
	if err != nil {
		return nil, nil, nil, err
	}
	defer srv.Close()
	cmd := c.pinned(1, argv...)
	cmd.Dir = c.dir
	var errs bytes.Buffer
	cmd.Stderr = &errs
	timer := time.AfterFunc(toolTimeout, func() { _ = cmd.Process.Signal(syscall.SIGTERM) })
	stdout, err = cmd.Output()
	timer.Stop()
	if err != nil {
		tail := errs.String()
		return stdout, cmd.ProcessState, nil, fmt.Errorf("%w: %s", err, tail[max(0, len(tail)-500):])
	}
	counters, err := srv.Scrape(context.Background())
	if n := counters[harness.HistogramTTFT+"_count"]; n > 0 {
		m := counters[harness.HistogramTTFT+"_sum"] / n
		mean = &m
	}
	return stdout, cmd.ProcessState, mean, err
}

// connect waits for the server to answer.
func connect(ctx context.Context) (*vllm.Server, error) {
	for {
		s, err := vllm.Connect(ctx, "http://"+address, vllm.Options{})
		if err == nil || ctx.Err() != nil {
			return s, err
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// readStamps reads what [server.save] wrote.
func readStamps(file string) (stamps []stamp, err error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	in := bufio.NewScanner(f)
	for in.Scan() {
		var s stamp
		var after float64
		if _, err := fmt.Sscan(in.Text(), &s.model, &after); err != nil {
			return nil, fmt.Errorf("%s: %q: %w", file, in.Text(), err)
		}
		s.after = time.Duration(after * float64(time.Second))
		stamps = append(stamps, s)
	}
	return stamps, in.Err()
}

// client runs kvtune's generator. With the static server the row has the errors request by request.
func (c *comparison) client(server []string, skip int, flags ...string) (o outcome, r row, err error) {
	out, stamps, r, err := c.against(server, append([]string{c.self, "client", "-url", "http://" + address}, flags...))
	if err != nil {
		return o, r, err
	}
	if err := json.Unmarshal(out, &o); err != nil {
		return o, r, err
	}
	at := map[string]float64{}
	for _, s := range stamps {
		at[s.model] = s.after.Seconds()
	}
	var after, errs []float64
	for _, f := range o.TTFT {
		after = append(after, f.After)
		if noted, ok := at[f.Model]; ok {
			errs = append(errs, f.After-noted)
		}
	}
	r.OK, r.Rate, r.Lag99 = o.OK, float64(o.OK)/max(o.Duration, 1e-9), &o.Lag99
	r.compare(after, stamps, skip)
	switch {
	case stamps == nil:
	case len(errs) < len(after) || len(errs) <= skip:
		return o, r, fmt.Errorf("the server noted %d of %d requests", len(errs), len(after))
	default:
		p99 := stats.New(errs[skip:]).Percentile(99)
		r.ByRequest = &p99
	}
	return o, r, nil
}

// compare sets what a client and the server say of first tokens, without the first few of each, in order of time. The
// embedded engine has no stamps: its mean is that of all requests, and so is the client's then.
func (r *row) compare(after []float64, stamps []stamp, skip int) {
	if stamps == nil {
		skip = 0
	}
	if len(after) <= skip || stamps != nil && len(stamps) <= skip {
		r.Note = fmt.Sprintf("%d first tokens at the client, %d at the server", len(after), len(stamps))
		return
	}
	client := stats.New(after[skip:])
	c50, c99, mean := client.Median(), client.Percentile(99), client.Mean()
	r.TTFT50, r.TTFT99, r.TTFTMean = &c50, &c99, &mean
	if stamps != nil {
		var noted []float64
		for _, s := range stamps[skip:] {
			noted = append(noted, s.after.Seconds())
		}
		server := stats.New(noted)
		s50, s99, own := server.Median(), server.Percentile(99), server.Mean()
		e := c99 - s99
		r.Server50, r.Server99, r.ServerMean, r.Error99 = &s50, &s99, &own, &e
	}
	if r.ServerMean != nil {
		e := mean - *r.ServerMean
		r.ErrorMean = &e
	}
}

// kvtune measures what is said of kvtune alone.
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
	open := loads()[0]
	for range 3 {
		o, _, err := c.client(c.static("-ttft", "1ms", "-itl", "0s", "-batch", "16"), 0, "-named", "-concurrency", "64",
			"-requests", "256", "-output", "16000")
		if err != nil {
			return f, err
		}
		f.EndToEndRuns = append(f.EndToEndRuns, o.EventRate)
		o, _, err = c.client(c.server(open), 0, "-named", "-rate", "1000", "-requests", "10000", "-output", "1")
		if err != nil {
			return f, err
		}
		f.Lag99Runs = append(f.Lag99Runs, o.Lag99)
		_, r, err := c.client(c.server(open), 0, open.flags()...)
		if err != nil {
			return f, err
		}
		f.Error99Runs = append(f.Error99Runs, *r.ByRequest)
	}
	f.EndToEnd, f.Lag99 = stats.New(f.EndToEndRuns).Median(), stats.New(f.Lag99Runs).Median()
	f.Error99 = stats.New(f.Error99Runs).Median()
	// All are open for some seconds: each takes 14 s, and the last is sent after 5.
	o, _, err := c.client(c.static("-ttft", "5s", "-itl", "1s"), 0, "-named", "-rate", "fixed:2000", "-requests", "10000",
		"-output", "10")
	f.Streams10kRSS = o.PeakRSS
	return f, err
}

// own is kvtune's row under a load.
func (c *comparison) own(l *scenario) row {
	_, r, err := c.client(c.server(l), l.concurrency, l.flags()...)
	if err != nil {
		r.Note = err.Error()
	}
	r.Tool, r.Version = "kvtune", "this tree"
	return r
}

// other is a peer's row under a load, from the requests in its own result file.
func (c *comparison) other(p *peer, l *scenario) row {
	r := row{Tool: p.tool, Note: "not installed"}
	if p.program == "" {
		return r
	}
	path := filepath.Join(c.dir, p.result)
	_ = os.Remove(path) // of the load before
	_, stamps, r, err := c.against(c.server(l), append([]string{p.program}, p.argv(l, c.dir, c.tokenizer)...))
	r.Tool, r.Version = p.tool, versionOf(p.version)
	var records []workload.Record
	if err == nil {
		records, err = readRecords(path)
	}
	if err != nil {
		r.Note = err.Error()
		return r
	}
	slices.SortStableFunc(records, func(a, b workload.Record) int { return int(a.Sent - b.Sent) })
	var after []float64
	var end time.Duration
	for i := range records {
		if records[i].OK() {
			after = append(after, records[i].Tokens[0].At.Seconds())
			end = max(end, records[i].End())
		}
	}
	if r.OK = len(after); r.OK > 0 {
		r.Rate = float64(r.OK) / (end - records[0].Sent).Seconds()
	}
	r.compare(after, stamps, l.concurrency)
	return r
}

// readRecords reads the requests of a peer's run.
func readRecords(path string) ([]workload.Record, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	runs, err := workload.ReadForeign(path, f)
	if err != nil {
		return nil, err
	}
	return runs[0].Records, nil
}
