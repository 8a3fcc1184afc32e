package main

import (
	"bufio"
	"bytes"
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

	"kvtune/harness/telemetry"
	"kvtune/harness/workload"
)

// What every stream of the comparison is.
const (
	tokens      = 100
	ttft, itl   = 50 * time.Millisecond, 20 * time.Millisecond
	address     = "127.0.0.1:8765"
	toolTimeout = 4 * time.Minute
)

// scenario is what all tools are asked for: a rate, or a number in flight.
type scenario struct {
	rate, concurrency, requests int
}

// loads have 1,000 streams of 50 tokens/s open on average, the same at a fixed number in flight, and a number that all
// tools keep up with on one processor.
func loads() []*scenario {
	return []*scenario{
		{rate: 500, requests: 3000},
		{concurrency: 1000, requests: 4000},
		{concurrency: 100, requests: 1000},
	}
}

func (l *scenario) String() string {
	if l.rate > 0 {
		return fmt.Sprintf("%d requests, Poisson at %d/s", l.requests, l.rate)
	}
	return fmt.Sprintf("%d requests, %d in flight", l.requests, l.concurrency)
}

// flags are the load of kvtune's client.
func (l *scenario) flags() []string {
	flags := []string{"-requests", itoa(l.requests), "-output", itoa(tokens)}
	if l.rate > 0 {
		return append(flags, "-rate", itoa(l.rate))
	}
	return append(flags, "-concurrency", itoa(l.concurrency))
}

type comparison struct {
	peers     []peer
	tokenizer string
	priority  int
	dir       string // scratch
}

func compare(args []string) error {
	fs := flag.NewFlagSet("compare", flag.ContinueOnError)
	c := &comparison{}
	vllm := fs.String("vllm", "", "the program vllm, for vllm bench serve")
	rust := fs.String("vllm-rs", "", "the program vllm-rs of vLLM's wheel, for vllm-rs bench serve")
	guide := fs.String("guidellm", "", "the program guidellm")
	ai := fs.String("aiperf", "", "the program aiperf")
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
		{"vllm bench serve", *vllm, []string{*vllm, "--version"}, vllmBench, "vllm.json"},
		{"vllm-rs bench serve", *rust, []string{*rust, "--version"}, vllmBench, "vllm.json"},
		{"guidellm", *guide, []string{*guide, "--version"}, guidellm, "guidellm.json"},
		{"aiperf", *ai, []string{*ai, "--version"}, aiperf, "aiperf/profile_export.jsonl"},
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

// against runs a client against a server of its own and returns what the server noted. What the client used is that of
// all its processes.
func (c *comparison) against(serverFlags, argv []string) (stdout []byte, stamps []stamp, r row, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, nil, r, err
	}
	file := filepath.Join(c.dir, "stamps")
	server := c.pinned(0, append([]string{self, "serve", "-listen", address, "-stamps", file}, serverFlags...)...)
	server.Stderr = os.Stderr
	if err := server.Start(); err != nil {
		return nil, nil, r, err
	}
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
		err = fmt.Errorf("%w: %s", err, tail[max(0, len(tail)-500):])
	}
	_ = server.Process.Signal(syscall.SIGTERM)
	if err = errors.Join(err, server.Wait()); err != nil {
		return stdout, nil, r, err
	}
	r.CPU = (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds()
	if u, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
		r.PeakRSS = u.Maxrss << 10
	}
	stamps, err = readStamps(file)
	return stdout, stamps, r, err
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

var streams = []string{"-ttft", ttft.String(), "-itl", itl.String()}

// client runs kvtune's generator. Its row has the errors request by request.
func (c *comparison) client(serverFlags []string, l *scenario, flags ...string) (o outcome, r row, err error) {
	self, err := os.Executable()
	if err != nil {
		return o, r, err
	}
	out, stamps, r, err := c.against(serverFlags, append([]string{self, "client"}, flags...))
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
		noted, ok := at[f.Model]
		if !ok {
			return o, r, fmt.Errorf("the server did not note request %s", f.Model)
		}
		after, errs = append(after, f.After), append(errs, f.After-noted)
	}
	r.OK, r.Rate, r.Lag99 = o.OK, float64(o.OK)/max(o.Duration, 1e-9), &o.Lag99
	r.compare(after, stamps, l.concurrency)
	p99 := quantile(errs[min(l.concurrency, len(errs)):], 0.99)
	r.ByRequest = &p99
	return o, r, nil
}

// compare sets what a client and the server say of first tokens, without the first few of each, in order of time.
func (r *row) compare(after []float64, stamps []stamp, skip int) {
	var noted []float64
	for _, s := range stamps {
		noted = append(noted, s.after.Seconds())
	}
	if len(after) <= skip || len(noted) <= skip {
		r.Note = fmt.Sprintf("%d first tokens at the client, %d at the server", len(after), len(noted))
		return
	}
	after, noted = after[skip:], noted[skip:]
	c50, c99, s50, s99 := quantile(after, 0.5), quantile(after, 0.99), quantile(noted, 0.5), quantile(noted, 0.99)
	e := c99 - s99
	r.TTFT50, r.TTFT99, r.Server50, r.Server99, r.Error99 = &c50, &c99, &s50, &s99, &e
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
		o, _, err := c.client([]string{"-ttft", "1ms", "-itl", "0s", "-batch", "16"}, &scenario{}, "-concurrency", "64",
			"-requests", "256", "-output", "16000")
		if err != nil {
			return f, err
		}
		f.EndToEndRuns = append(f.EndToEndRuns, o.EventRate)
		if o, _, err = c.client(streams, &scenario{}, "-rate", "1000", "-requests", "10000", "-output", "1"); err != nil {
			return f, err
		}
		f.Lag99Runs = append(f.Lag99Runs, o.Lag99)
		_, r, err := c.client(streams, open, open.flags()...)
		if err != nil {
			return f, err
		}
		f.Error99Runs = append(f.Error99Runs, *r.ByRequest)
	}
	f.EndToEnd, f.Lag99 = quantile(f.EndToEndRuns, 0.5), quantile(f.Lag99Runs, 0.5)
	f.Error99 = quantile(f.Error99Runs, 0.5)
	// All are open for some seconds: each takes 14 s, and the last is sent after 5.
	o, _, err := c.client([]string{"-ttft", "5s", "-itl", "1s"}, &scenario{}, "-rate", "fixed:2000", "-requests", "10000",
		"-output", "10")
	f.Streams10kRSS = o.PeakRSS
	return f, err
}

// own is kvtune's row under a load.
func (c *comparison) own(l *scenario) row {
	_, r, err := c.client(streams, l, l.flags()...)
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
	_, stamps, r, err := c.against(streams, append([]string{p.program}, p.argv(l, c.dir, c.tokenizer)...))
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
