package workflow

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"kvtune/harness"
	"kvtune/harness/vllm"
	"kvtune/harness/vllmflags"
	"kvtune/planner/report"
)

// Launched starts a server process per configuration.
type Launched struct {
	// Argv is the command before the model: {"vllm", "serve"} unless wrapped.
	Argv []string
	// Model is the served model as the command line names it.
	Model string
	// Extra are the user's own flags, passed on unchanged. Those that kvtune knows hold in every configuration and plan.
	Extra []string
	// StopCommand ends a server that a signal to the process does not end (a container); nil sends SIGTERM.
	StopCommand []string
	// Version is the vLLM version that the flags are for; "" asks the command before the first start, and is the newest
	// known where it cannot tell.
	Version string
	// Device is what the defaults and legal values depend on.
	Device vllmflags.Device
	// LogDir keeps one log per start.
	LogDir     string
	Opts       vllm.Options
	OnProgress func(string)
	// OnRetry is told of every start that is tried again, and with what; nil is silent.
	OnRetry func(string)

	starts int
	asked  bool
	notes  []string // what is true of every server that is started
}

// startTime is about what a vLLM takes from its start to its first answer: 75 to 95 s for a small model on 2 cores,
// more for large weights on a cold disk.
const startTime = 90 * time.Second

// Restartable: a process is started for each configuration.
func (l *Launched) Restartable() bool { return true }

// StartTime is 90 s.
func (l *Launched) StartTime() time.Duration { return startTime }

// Check refuses settings without a legal value, and with a [*vllm.ConflictError] those that Extra sets to another
// value.
func (l *Launched) Check(args harness.EngineArgs) error {
	_, _, _, err := l.flags(args)
	return err
}

// Pinned are the settings that Extra fixes.
func (l *Launched) Pinned() (harness.EngineArgs, error) {
	if len(l.Extra) == 0 {
		return harness.EngineArgs{}, nil
	}
	_, pinned, _, err := vllmflags.ParseServeCommand("vllm serve model " + report.ShellLine(l.Extra))
	if err != nil {
		return pinned, fmt.Errorf("arguments passed on unchanged: %w", err)
	}
	return pinned, nil
}

// flags are the command line's flags for the settings, and what will be in force.
func (l *Launched) flags(args harness.EngineArgs) (
	argv []string, force harness.EngineArgs, reps []vllmflags.Replacement, err error) {
	pinned, err := l.Pinned()
	if err != nil {
		return nil, force, nil, err
	}
	if force, reps, err = vllmflags.Legalize(args, l.Version, l.Device); err != nil {
		return nil, force, nil, err
	}
	// What Extra says already is not said twice.
	var planned harness.EngineArgs
	for _, f := range vllmflags.Known(l.Version, l.Device) {
		if v := vllmflags.Get(force, f.Name); v != "" && v != vllmflags.Get(pinned, f.Name) {
			if err := vllmflags.Set(&planned, f.Name, v); err != nil {
				return nil, force, nil, err
			}
		}
	}
	if argv, _, err = vllmflags.Argv(planned, l.Version, l.Device); err != nil {
		return nil, force, nil, err
	}
	if flag, ok := vllm.Conflict(argv, l.Extra); ok {
		return nil, force, nil, &vllm.ConflictError{Flag: flag}
	}
	return argv, pinned.Merge(force), reps, nil
}

// maxTries bounds the starts of one configuration on a device whose memory does not suffice.
const maxTries = 5

// Start launches the server with the settings that this vLLM accepts and waits until it is healthy. Where its memory
// does not suffice it is started again with the setting lowered that its log names, which the Notes say; flags that
// Extra pins stay.
func (l *Launched) Start(ctx context.Context, args harness.EngineArgs) (*Endpoint, error) {
	if err := l.askVersion(ctx); err != nil {
		return nil, err
	}
	notes := slices.Clone(l.notes)
	for try := 1; ; try++ {
		flags, force, reps, err := l.flags(args)
		if err != nil {
			return nil, err
		}
		proc, err := l.launch(ctx, flags)
		var died *vllm.DiedError
		if errors.As(err, &died) && try < maxTries {
			set, what, ok := died.Lower(vllmflags.Resolve(force, l.Version, l.Device))
			if lower := args.Merge(set); ok && l.Check(lower) == nil {
				why := "its KV cache had no room"
				if died.Cause == vllm.CauseMemory {
					why = "it ran out of memory"
				}
				notes = append(notes, fmt.Sprintf("the server did not start as asked, %s (%s): %s", why,
					filepath.Base(died.LogPath), what))
				if l.OnRetry != nil {
					l.OnRetry(notes[len(notes)-1])
				}
				args = lower
				continue
			}
		}
		if err != nil {
			return nil, err
		}
		opts := l.Opts
		opts.Args = force
		opts.Args.SchedulingPolicy = cmp.Or(force.SchedulingPolicy, "fcfs") // no vLLM states it
		srv, err := vllm.Connect(ctx, proc.URL(), opts)
		if err != nil {
			return nil, errors.Join(err, proc.Stop())
		}
		if l.Version == "" { // the next one gets its flags
			l.Version = srv.Info().Version
		}
		return &Endpoint{Server: srv, Argv: proc.Argv(), Notes: append(notes, replacementNotes(reps)...), Steps: proc.Steps,
			Close: func() error {
				srv.Close()
				return proc.Stop()
			}}, nil
	}
}

func (l *Launched) launch(ctx context.Context, flags []string) (*vllm.Process, error) {
	l.starts++
	for _, flag := range []string{vllm.StepsFlag, vllm.CachedFlag} {
		if _, said := vllm.Conflict([]string{flag}, l.Extra); !said {
			flags = append(flags, flag)
		}
	}
	return vllm.Launch(ctx, vllm.LaunchOptions{
		Argv: l.Argv, Model: l.Model, Args: flags, Extra: l.Extra, StopCommand: l.StopCommand,
		LogPath:    filepath.Join(l.LogDir, "server_"+strconv.Itoa(l.starts)+".log"),
		OnProgress: l.OnProgress,
	})
}

// askVersion asks once. A command that exists and does not tell is no reason not to start it.
func (l *Launched) askVersion(ctx context.Context) error {
	if l.asked || l.Version != "" {
		return nil
	}
	l.asked = true
	if l.OnProgress != nil {
		l.OnProgress("which version is it?")
	}
	version, err := vllm.Version(ctx, l.Argv)
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, exec.ErrNotFound):
		return err
	case err != nil:
		l.notes = append(l.notes, fmt.Sprintf("the vLLM version was not known before the start, the flags are the newest "+
			"known's: %v", err))
	}
	l.Version = version
	if _, warning := vllmflags.Release(version); warning != "" {
		l.notes = append(l.notes, warning)
	}
	return nil
}
