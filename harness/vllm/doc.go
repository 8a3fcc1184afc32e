// Package vllm is the endpoint under test: it finds out what a server is, sends it requests and times every streamed
// event, reads its metrics, and starts and stops a server process.
//
//	srv, err := vllm.Connect(ctx, "http://127.0.0.1:8000", vllm.Options{})
//	client := srv.Client(vllm.ClientOptions{Salt: "run-1"})  // a load.Client
//	watch := srv.Watch(ctx, time.Second, start)              // metrics before, during and after
//	run, err := load.Do(ctx, load.Options{Client: client, Workload: w})
//	seen := watch.Stop()
//
// Everything is observed from outside, over HTTP: a real vLLM and kvtune's embedded engine are measured by the same
// code. Paths, bodies and metric names are those of vLLM 0.18 to 0.33.
//
// Read [Connect] and [Client.Prepare] first, then [Server.Watch] and [Launch].
package vllm
