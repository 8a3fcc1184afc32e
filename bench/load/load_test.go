package main

import (
	"net"
	"path/filepath"
	"testing"
	"time"

	"kvtune/harness/load"
	"kvtune/harness/vllm"
	"kvtune/harness/workload"
)

// The static server is one that kvtune measures, and sends what it is asked for: exact counts, in completions and
// chats, with one event a write and with several.
func TestServerSendsWhatItIsAskedFor(t *testing.T) {
	for _, batch := range []int{1, 4} {
		for _, api := range []vllm.API{vllm.Completions, vllm.Chat} {
			s := &server{ttft: time.Millisecond, batch: batch}
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			go s.accept(l)
			srv, err := vllm.Connect(t.Context(), "http://"+l.Addr().String(), vllm.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer srv.Close()
			w, err := workload.Spec{
				C: 3, B: 1, Type: "decode", Concurrency: 4, NumRequests: 20, OutputLen: "1:10", Seed: 1,
			}.Build()
			if err != nil {
				t.Fatal(err)
			}
			run, err := load.Do(t.Context(), load.Options{Client: srv.Client(vllm.ClientOptions{API: api}), Workload: w})
			if err != nil || run.OK != 20 {
				t.Fatalf("%d ok of %d, %v: %s", run.OK, run.Sent, err, run.Records[0].Error)
			}
			for i := range run.Records {
				if r := &run.Records[i]; r.OutputTokens != r.AskedTokens || len(r.Tokens) != r.AskedTokens {
					t.Errorf("batch %d, %s: asked for %d tokens, usage says %d, %d events", batch, api, r.AskedTokens,
						r.OutputTokens, len(r.Tokens))
				}
			}
			path := filepath.Join(t.TempDir(), "stamps")
			if err := s.save(path); err != nil {
				t.Fatal(err)
			}
			stamps, err := readStamps(path)
			if err != nil || len(stamps) != 20 || stamps[0].model != "static" || stamps[0].after < time.Millisecond {
				t.Errorf("%v, stamps %v", err, stamps)
			}
		}
	}
}
