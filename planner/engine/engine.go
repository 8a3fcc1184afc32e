// Package engine is the embedded engine: an HTTP server with vLLM 0.32's paths, stream format, errors and metric names,
// driven by the scheduler of planner/sim in real time. It generates meaningless but repeatable tokens and takes the
// time that a device would take.
//
// How long a step takes comes from a hidden model drawn from a seed, which no other package can read, or from a given
// cost model. So a profiler measures the engine like any server, and a planner's error on it is real.
//
// Read [Options], then [Engine]. The step loop is in loop.go, the HTTP side in server.go.
package engine

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"kvtune/harness"
	"kvtune/planner/cost"
	"kvtune/planner/sim"
	"kvtune/planner/spec"
)

// Version is the answer of /version: the vLLM whose behaviour is reproduced, and that this is not it.
const Version = "0.32.0+kvtune.embedded"

// release is the minor version of Version.
const release = 32

// Options describe an engine.
type Options struct {
	// Model and GPU are what is simulated.
	Model spec.Model
	GPU   spec.GPU
	// Args are the server's settings, resolved (harness/vllmflags.Resolve): max_num_batched_tokens, max_num_seqs,
	// block_size and max_model_len must be set.
	Args harness.EngineArgs
	// NumGPUBlocks is the size of the KV cache in blocks, the null block included; 0 is what cost.Capacity finds.
	// num_gpu_blocks_override wins over both.
	NumGPUBlocks int
	// Seed decides the hidden model and the noise.
	Seed uint64
	// Cost is used exactly, without noise, where it is set; else step times come from the hidden model.
	Cost *cost.Model
	// Speed divides every simulated duration; 0 is 1, real time. What clients and /metrics see is shorter by it too.
	Speed float64
	// ServedModelName is the id in /v1/models; "" is Model.Name.
	ServedModelName string
	// EnablePromptTokensDetails puts a request's cached tokens into its usage, as vLLM's flag of that name does.
	EnablePromptTokensDetails bool
	// MaxNumQueuedReqs is how many requests may live at once, waiting ones included; further ones get status 503. 0 is
	// 8192.
	MaxNumQueuedReqs int
	// ShutdownTimeout is how long Close lets running requests go on; then they end with finish_reason "abort".
	ShutdownTimeout time.Duration
	// AllowRemote lets Listen bind to addresses other than loopback ones. There is no authentication.
	AllowRemote bool
}

// Engine is a running engine. Its methods may be called from any goroutine.
type Engine struct {
	opt     Options
	cfg     sim.Config
	started time.Time
	// Pointers, so that printing an Engine does not show what they hold.
	hidden *hidden        // nil when Options.Cost is set
	front  *cost.FrontEnd // the API server's times
	met    *metrics
	inbox  *inbox
	alarm  alarm
	done   chan struct{} // closed when the step loop has ended
	failed error         // why it ended; read after done

	lastID atomic.Int64
	live   atomic.Int64

	mu      sync.Mutex
	servers []*http.Server
	closing bool

	closed   sync.Once
	closeErr error
}

// New starts an engine; it serves when Handler is mounted or Listen is called, and must be closed. The error says which
// setting is impossible, as vLLM would at its start.
func New(opt Options) (*Engine, error) {
	a, err := newAlarm()
	if err != nil {
		return nil, fmt.Errorf("engine: %w", err)
	}
	e, err := newEngine(opt, a)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("engine: %w", err), a.close())
	}
	return e, nil
}

func newEngine(opt Options, a alarm) (*Engine, error) {
	if opt.Speed == 0 {
		opt.Speed = 1
	}
	if !(opt.Speed > 0 && opt.Speed <= 1e6) {
		return nil, fmt.Errorf("speed is %g: it must be above 0 and at most 1e6", opt.Speed)
	}
	if opt.ServedModelName == "" {
		opt.ServedModelName = opt.Model.Name
	}
	if opt.MaxNumQueuedReqs <= 0 {
		opt.MaxNumQueuedReqs = 8192
	}
	if opt.Model.Vocab <= reserved {
		return nil, fmt.Errorf("model %q has a vocabulary of %d: it must be above %d", opt.Model.Name, opt.Model.Vocab,
			reserved)
	}
	blocks, kvBytes := opt.NumGPUBlocks, int64(0)
	memory, err := cost.Capacity(opt.GPU, opt.Model, opt.Args)
	switch {
	case err == nil:
		kvBytes = memory.KV
		if blocks == 0 {
			blocks = memory.Blocks
		}
	case blocks == 0 && opt.Args.NumGPUBlocksOverride == 0:
		return nil, err
	}
	cfg, err := sim.FromArgs(opt.Args, blocks)
	if err != nil {
		return nil, err
	}
	cfg.Release = release
	if opt.Cost != nil {
		opt.Cost = opt.Cost.For(opt.Args)
	}

	e := &Engine{opt: opt, cfg: cfg, started: time.Now(), inbox: newInbox(), alarm: a, done: make(chan struct{})}
	var timer cost.Timer = opt.Cost
	if opt.Cost != nil {
		e.front = &opt.Cost.FrontEnd
	} else {
		if e.hidden, e.front, err = newHidden(opt.GPU, opt.Model, opt.Args, opt.Seed); err != nil {
			return nil, err
		}
		timer = e.hidden.device(opt.Seed)
	}
	sched, err := sim.New(cfg)
	if err != nil {
		return nil, err
	}
	e.met = newMetrics(opt.ServedModelName, cfg.MaxModelLen, cacheInfo(opt.Args, cfg, kvBytes))
	l := &loop{e: e, sched: sched, timer: timer, depth: 1, jobs: make(map[int]*job)}
	if cfg.AsyncScheduling {
		l.depth = 2
	}
	go l.run()
	return e, nil
}

// submit hands a job to the step loop; false when the engine is shutting down.
func (e *Engine) submit(j *job) bool {
	delay := e.front.Arrival(len(j.prompt))
	j.due = j.arrived.Add(e.real(delay))
	return e.inbox.add(j)
}

// real is how long a simulated duration takes.
func (e *Engine) real(d time.Duration) time.Duration { return time.Duration(float64(d) / e.opt.Speed) }

// Close ends the engine: no new connections, running requests go on for at most ShutdownTimeout and are then aborted,
// every answer is finished. It returns when nothing of the engine runs any more, with the error that had ended the step
// loop before, if any.
func (e *Engine) Close() error {
	e.closed.Do(func() { e.closeErr = e.close() })
	return e.closeErr
}

func (e *Engine) close() error {
	e.mu.Lock()
	e.closing = true
	servers := e.servers
	e.mu.Unlock()

	var errs []error
	stopped := make(chan error, len(servers))
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	for _, s := range servers {
		go func() { stopped <- s.Shutdown(ctx) }()
	}
	e.inbox.stop(e.opt.ShutdownTimeout <= 0)
	if e.opt.ShutdownTimeout > 0 {
		grace := time.NewTimer(e.opt.ShutdownTimeout)
		select {
		case <-e.done:
		case <-grace.C:
		}
		grace.Stop()
		e.inbox.stop(true)
	}
	errs = append(errs, e.alarm.ring())
	<-e.done
	flush := time.AfterFunc(flushTimeout, cancel)
	for range servers {
		if err := <-stopped; err != nil && !errors.Is(err, context.Canceled) {
			errs = append(errs, err)
		}
	}
	flush.Stop()
	for _, s := range servers {
		errs = append(errs, s.Close()) // connections whose client does not read
	}
	errs = append(errs, e.alarm.close(), e.failed)
	return errors.Join(errs...)
}
