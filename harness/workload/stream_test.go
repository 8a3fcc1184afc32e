package workload

import (
	"io"
	"math/rand/v2"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"
)

// drained are a Stream's requests.
func drained(t *testing.T, s *Stream) (requests []Request) {
	t.Helper()
	for r, err := range s.Requests {
		if err != nil {
			t.Fatal(err)
		}
		requests = append(requests, r)
	}
	return requests
}

// same holds a stream against the workload in memory, twice, since it can be ranged over again.
func same(t *testing.T, s *Stream, w *Workload) {
	t.Helper()
	for range 2 {
		got := drained(t, s)
		if len(got) != len(w.Requests) || len(s.Notes()) != len(w.Notes) {
			t.Fatalf("%d requests and notes %q, want %d and %q", len(got), s.Notes(), len(w.Requests), w.Notes)
		}
		for i := range got {
			if !reflect.DeepEqual(got[i], w.Requests[i]) {
				t.Fatalf("request %d: %+v, want %+v", i, got[i], w.Requests[i])
			}
		}
	}
}

func TestStreamIsBuild(t *testing.T) {
	classes := []Class{{Name: "chat", Share: 2}, {Name: "batch", Share: 1, Priority: 3, LoRA: "sql"}}
	for _, s := range []Spec{
		{C: 100, B: 4, NumRequests: 50, Rate: "8"},
		{C: 100, M: 3, BlockSize: 16, B: 4, NumWarmup: 2, NumRequests: 50, Rate: "fixed:8", Prefix: "groups=5"},
		{C: 100, B: 4, Rate: "2..20", Duration: 5 * time.Second, Burstiness: 0.5},
		{C: 100, M: 1, BlockSize: 16, B: 4, Rate: "8", NumRequests: 20, OutputLen: "exp:100", MaxModelLen: 256},
	} {
		s.Seed = 5
		w := build(t, s)
		stream, err := s.Stream()
		if err != nil || stream == nil {
			t.Fatalf("%+v: %v, %v", s, stream, err)
		}
		if s.NumRequests > 0 && stream.Expected != len(w.Requests) {
			t.Errorf("expected %d, there are %d", stream.Expected, len(w.Requests))
		}
		same(t, stream, w)
		stream, _ = s.Stream()
		stream.Classify(classes, 9)
		w.Classify(classes, 9)
		same(t, stream, w)
		if !stream.Priorities {
			t.Error("a class has priority 3")
		}
		for range stream.Requests {
			break // without an end
		}
	}
	for _, s := range []Spec{{C: 1, B: 1, NumMeasurements: 1}, {C: 1, B: 1, NumMeasurements: 1, Concurrency: 3},
		{C: 1, B: 1, NumMeasurements: 1, Users: 2, Turns: 2, Rate: "3"}} {
		if stream, err := s.Stream(); stream != nil || err != nil {
			t.Errorf("%+v: %v, %v; expected none", s, stream, err)
		}
	}
}

func TestStreamTraceIsReadTrace(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	azure := "TIMESTAMP,ContextTokens,GeneratedTokens\n"
	at := time.Date(2023, 11, 16, 18, 17, 3, 0, time.UTC)
	for range 300 {
		at = at.Add(time.Duration(rng.ExpFloat64() * 1e9))
		azure += at.Format("2006-01-02 15:04:05.999999999") + "," + strconv.Itoa(1+rng.IntN(3000)) + "," +
			strconv.Itoa(rng.IntN(500)) + "\n"
	}
	requests := `{"due_s":1,"prompt_tokens":7,"asked_tokens":3,"priority":2}` + "\n" +
		`{"due_s":2,"prompt_tokens":9,"asked_tokens":3}` + "\n"
	for name, c := range map[string]struct {
		text     string
		opt      TraceOptions
		duration time.Duration
		plain    bool
	}{
		"azure":           {azure, TraceOptions{MaxModelLen: 2048, Seed: 3}, 0, true},
		"at a rate":       {azure, TraceOptions{Rate: 20, NumRequests: 100}, 0, true},
		"faster":          {azure, TraceOptions{Speed: 3}, 0, true},
		"requests":        {requests, TraceOptions{}, 0, true},
		"for a time":      {azure, TraceOptions{}, 100 * time.Second, true},
		"a closed loop":   {azure, TraceOptions{Concurrency: 4}, 0, false},
		"out of order":    {requests + requests, TraceOptions{}, 0, false},
		"conversations":   {"time,prompt_tokens,output_tokens,session\n1,5,5,a\n2,20,5,a\n", TraceOptions{}, 0, false},
		"shared prefixes": {`{"timestamp":0,"input_length":9,"output_length":1,"hash_ids":[1]}`, TraceOptions{}, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			w, err := ReadTrace(name, strings.NewReader(c.text), c.opt)
			if err != nil {
				t.Fatal(err)
			}
			if c.duration > 0 {
				for i, r := range w.Requests {
					if r.Due >= c.duration {
						w.Requests = w.Requests[:i]
						break
					}
				}
				w.Notes = w.Notes[:0]
			}
			s, err := StreamTrace(name, func(do func(io.Reader) error) error { return do(strings.NewReader(c.text)) },
				c.opt, c.duration)
			if err != nil || (s != nil) != c.plain {
				t.Fatalf("%v, %v; expected a stream: %v", s, err, c.plain)
			}
			if s == nil {
				return
			}
			if c.duration > 0 { // notes count the requests that there are
				drained(t, s)
				w.Notes = s.Notes()
			}
			same(t, s, w)
		})
	}
	bad := func(do func(io.Reader) error) error { return do(strings.NewReader(azure + "x,y,z\n")) }
	if _, err := StreamTrace("bad", bad, TraceOptions{}, 0); err == nil ||
		!strings.Contains(err.Error(), "bad, line 302") {
		t.Errorf("error %v", err)
	}
}
