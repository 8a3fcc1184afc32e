package main

import (
	"strings"
	"testing"
	"time"

	"kvtune/harness/load"
	"kvtune/harness/profile"
	"kvtune/harness/vllm"
)

func TestVitals(t *testing.T) {
	p := profile.Progress{Progress: load.Progress{Total: 400, Sent: 152, Ended: 120}, Rate: 12.5}
	if client, server := vitals(p); client != "12.5/s, 32 in flight" || server != "" {
		t.Errorf("at first: %q, %q", client, server)
	}
	p.Failed = 2
	p.TTFT = profile.Spread{P50: 120 * time.Millisecond, P99: 6850 * time.Millisecond}
	p.ITL = profile.Spread{P50: 8 * time.Millisecond, P99: 12500 * time.Microsecond}
	p.Lag.P99 = 100 * time.Microsecond
	p.Server = &vllm.Now{Running: 29, Waiting: 3, KVUsage: 0.45, OutputRate: 1800}
	const wantClient = "12.5/s, 32 in flight, 2 FAILED, TTFT 120/6850 ms, ITL 8/12.5 ms (p50/p99), lag 0.1 ms"
	const wantServer = "1800 token/s, KV 45 %, 3 waiting"
	if client, server := vitals(p); client != wantClient || server != wantServer {
		t.Errorf("%q, %q; want %q, %q", client, server, wantClient, wantServer)
	}
}

// What a server says as it starts, before any stage, has a title and the time since then.
func TestDetailFirst(t *testing.T) {
	var b strings.Builder
	s := newScreen(&b)
	s.detail("which version is it?")
	s.began = s.began.Add(-31 * time.Second)
	s.detail("loading weights")
	s.detail("warming up")
	s.close()
	if want := "kvtune: starting the server\nkvtune: starting the server, 31s: loading weights\n"; b.String() != want {
		t.Errorf("%q, want %q", b.String(), want)
	}
}

// Without a terminal there is a line per stage and one every ten seconds.
func TestPlainScreen(t *testing.T) {
	var b strings.Builder
	s := newScreen(&b)
	s.stage("profiling")
	for ms := 0; ms <= 25_000; ms += 100 {
		s.progress(profile.Progress{Progress: load.Progress{Total: 9, Sent: 2, Ended: 1,
			Elapsed: time.Duration(ms) * time.Millisecond}})
	}
	s.stage("planning")
	s.close()
	want := "kvtune: profiling\n" +
		"kvtune: profiling: 1/9 requests after 10s: 0/s, 1 in flight\n" +
		"kvtune: profiling: 1/9 requests after 20s: 0/s, 1 in flight\n" +
		"kvtune: planning\n"
	if b.String() != want {
		t.Errorf("%q, want %q", b.String(), want)
	}
}
