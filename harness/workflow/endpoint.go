package workflow

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"

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
	// Restartable reports whether Start can give servers with different settings.
	Restartable() bool
}

// Endpoint is a server under test that answers.
type Endpoint struct {
	*vllm.Server
	// Argv is the command that started it, nil unless it was launched.
	Argv []string
	// Notes say which settings are not in force as asked, one sentence each.
	Notes []string
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

// Start resolves the settings as vLLM would on this GPU and serves them.
func (e Embedded) Start(ctx context.Context, args harness.EngineArgs) (*Endpoint, error) {
	args = e.Base.Merge(args)
	if args.MaxModelLen == 0 {
		args.MaxModelLen = e.Model.MaxPosition
	}
	legal, notes, err := Legal(args, EngineVersion, e.GPU)
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
		eng.Close()
		return nil, err
	}
	return &Endpoint{Server: srv, Notes: notes, Close: eng.Close}, nil
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
	URL  string
	Opts vllm.Options
}

// Restartable: a running server has the one configuration that it has.
func (r Running) Restartable() bool { return false }

// Start connects. Settings asked for that the server visibly does not have are noted.
func (r Running) Start(ctx context.Context, args harness.EngineArgs) (*Endpoint, error) {
	srv, err := vllm.Connect(ctx, r.URL, r.Opts)
	if err != nil {
		return nil, err
	}
	e := &Endpoint{Server: srv, Close: func() error { return nil }}
	info := srv.Info()
	if args.BlockSize > 0 && info.BlockSize > 0 && args.BlockSize != info.BlockSize {
		e.Notes = append(e.Notes, fmt.Sprintf("block_size %d was asked for; the running server has %d and keeps it (only --launch "+
			"can change it)", args.BlockSize, info.BlockSize))
	}
	other := args
	other.BlockSize, other.MaxModelLen = 0, 0
	if other != (harness.EngineArgs{}) {
		e.Notes = append(e.Notes, "server settings that were asked for cannot be set on a running server; it was measured as it is "+
			"(use --launch to start one with them)")
	}
	return e, nil
}

// Launched starts a server process per configuration.
type Launched struct {
	// Argv is the command before the model: {"vllm", "serve"} unless wrapped.
	Argv []string
	// Model is the served model as the command line names it.
	Model string
	// Extra are the user's own flags, passed on unchanged.
	Extra []string
	// Version is the vLLM version that the flags are for; "" is the newest known.
	Version string
	// Device is what the defaults and legal values depend on.
	Device vllmflags.Device
	// LogDir keeps one log per start.
	LogDir     string
	Opts       vllm.Options
	OnProgress func(string)

	starts int
}

// Restartable: a process is started for each configuration.
func (l *Launched) Restartable() bool { return true }

// Start launches the server with the settings that this vLLM accepts and waits until it is healthy.
func (l *Launched) Start(ctx context.Context, args harness.EngineArgs) (*Endpoint, error) {
	flags, reps, err := vllmflags.Argv(args, l.Version, l.Device)
	if err != nil {
		return nil, err
	}
	l.starts++
	proc, err := vllm.Launch(ctx, vllm.LaunchOptions{
		Argv: l.Argv, Model: l.Model, Args: flags, Extra: l.Extra,
		LogPath:    filepath.Join(l.LogDir, "server_"+strconv.Itoa(l.starts)+".log"),
		OnProgress: l.OnProgress,
	})
	if err != nil {
		return nil, err
	}
	opts := l.Opts
	opts.Args = args
	srv, err := vllm.Connect(ctx, proc.URL(), opts)
	if err != nil {
		return nil, errors.Join(err, proc.Stop())
	}
	return &Endpoint{Server: srv, Argv: proc.Argv(), Notes: replacementNotes(reps), Close: proc.Stop}, nil
}
