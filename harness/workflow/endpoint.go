package workflow

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"kvtune/harness"
	"kvtune/harness/vllm"
	"kvtune/harness/vllmflags"
	"kvtune/planner/cost"
	"kvtune/planner/engine"
	"kvtune/planner/spec"
)

// Source is where a server under test comes from.
type Source interface {
	// Start gives a server with the settings asked for, or as near as the source can: what was replaced or could not be
	// set is in the endpoint's Notes. The caller closes the endpoint.
	Start(ctx context.Context, args harness.EngineArgs) (*Endpoint, error)
	// Check refuses settings that Start would refuse, and starts nothing.
	Check(args harness.EngineArgs) error
	// Restartable reports whether Start can give servers with different settings.
	Restartable() bool
	// StartTime is about how long a start takes, 0 where that is no time to speak of.
	StartTime() time.Duration
}

// Endpoint is a server under test that answers.
type Endpoint struct {
	*vllm.Server
	// Argv is the command that started it, nil unless it was launched.
	Argv []string
	// Notes say which settings are not in force as asked, one sentence each.
	Notes []string
	// Steps gives the engine steps logged since its last call; nil where the server logs none.
	Steps func() ([]harness.StepRecord, error)
	// Close stops what Start started.
	Close func() error
}

// Embedded starts the embedded engine on a loopback port: a simulated server.
type Embedded struct {
	Model spec.Model
	GPU   spec.GPU
	// Base are settings that hold unless a configuration sets them.
	Base harness.EngineArgs
	// Seed draws the engine's hidden step-time model.
	Seed uint64
	// Cost, when given, is used exactly instead of a hidden model.
	Cost *cost.Model
}

// Restartable: every configuration gets an engine of its own, all with the same hidden model.
func (e Embedded) Restartable() bool { return true }

// StartTime: an engine serves at once.
func (e Embedded) StartTime() time.Duration { return 0 }

// Check refuses what vLLM's rules have no legal neighbour for.
func (e Embedded) Check(args harness.EngineArgs) error {
	_, _, err := e.resolve(args)
	return err
}

func (e Embedded) resolve(args harness.EngineArgs) (harness.EngineArgs, []string, error) {
	args = e.Base.Merge(args)
	if args.MaxModelLen == 0 {
		args.MaxModelLen = e.Model.MaxPosition
	}
	return Legal(args, EngineVersion, e.GPU)
}

// Start resolves the settings as vLLM would on this GPU and serves them.
func (e Embedded) Start(ctx context.Context, args harness.EngineArgs) (*Endpoint, error) {
	legal, notes, err := e.resolve(args)
	if err != nil {
		return nil, err
	}
	eng, err := engine.New(engine.Options{Model: e.Model, GPU: e.GPU, Args: legal, Seed: e.Seed, Cost: e.Cost,
		EnablePromptTokensDetails: true})
	if err != nil {
		return nil, err
	}
	url, err := eng.Listen("127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	srv, err := vllm.Connect(ctx, url, vllm.Options{})
	if err != nil {
		return nil, errors.Join(err, eng.Close())
	}
	return &Endpoint{Server: srv, Notes: notes, Close: func() error {
		srv.Close()
		return eng.Close()
	}}, nil
}

// EngineVersion is the vLLM version whose rules and flags the embedded engine follows.
const EngineVersion = "0.32.0"

// Legal turns settings as asked into a full set that vLLM of that version accepts on that GPU: illegal values are
// replaced by the nearest legal ones, unset ones take vLLM's defaults. The notes say what was replaced.
func Legal(args harness.EngineArgs, version string, gpu spec.GPU) (harness.EngineArgs, []string, error) {
	dev := DeviceOf(gpu)
	legal, reps, err := vllmflags.Legalize(args, version, dev)
	if err != nil {
		return harness.EngineArgs{}, nil, err
	}
	return vllmflags.Resolve(legal, version, dev), replacementNotes(reps), nil
}

func replacementNotes(reps []vllmflags.Replacement) []string {
	notes := make([]string, len(reps))
	for i, r := range reps {
		notes[i] = r.String()
	}
	return notes
}

// Running is a server that somebody else started; its settings stay as they are.
type Running struct {
	URL string
	// Opts say how to reach it. Opts.Args are settings that it is known to have, for what it does not state itself.
	Opts vllm.Options
}

// Restartable: a running server has the one configuration that it has.
func (r Running) Restartable() bool { return false }

// StartTime: nothing is started.
func (r Running) StartTime() time.Duration { return 0 }

// Check accepts everything: what the server does not have is noted by Start.
func (r Running) Check(harness.EngineArgs) error { return nil }

// Start connects. Settings asked for that the server has otherwise, or says nothing of, are noted.
func (r Running) Start(ctx context.Context, args harness.EngineArgs) (*Endpoint, error) {
	srv, err := vllm.Connect(ctx, r.URL, r.Opts)
	if err != nil {
		return nil, err
	}
	e := &Endpoint{Server: srv, Close: func() error {
		srv.Close()
		return nil
	}}
	args.MaxModelLen = 0 // a limit of the workload, too
	unlike, unstated := differences(args, srv.Info().Args)
	for _, d := range unlike {
		e.Notes = append(e.Notes, d+": a running server keeps its settings (--launch starts one with others)")
	}
	if len(unstated) > 0 {
		e.Notes = append(e.Notes,
			fmt.Sprintf("the running server does not state its %s: it was measured as it is, whatever was "+
				"asked for (--launch starts one with known settings)", strings.Join(unstated, ", ")))
	}
	return e, nil
}

// differences are the settings asked for that a server has otherwise, one sentence each, and the names of those of
// which it says nothing.
func differences(asked, has harness.EngineArgs) (unlike, unstated []string) {
	for _, f := range vllmflags.Known("", vllmflags.Device{}) {
		want, is := vllmflags.Get(asked, f.Name), vllmflags.Get(has, f.Name)
		switch {
		case want == "" || want == is:
		case is == "":
			unstated = append(unstated, f.Name)
		default:
			unlike = append(unlike, fmt.Sprintf("%s %s was asked for, the server has %s", f.Name, want, is))
		}
	}
	return unlike, unstated
}
