// Kvtune measures what a GPU's KV cache and a vLLM server do, says which limit binds, and plans the schedule.
//
// This package holds flags, files and exit statuses, one file per command; what a command does is in the libraries.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"

	"github.com/pkg/profile"
	"github.com/urfave/cli/v2"

	"kvtune/planner/report"
)

// Exit statuses.
const (
	exitDone        = 0
	exitError       = 1
	exitUsage       = 2   // the command line or an input file is wrong; nothing was done
	exitNegative    = 3   // the work was done and its verdict is no: SLO missed, no feasible plan
	exitInterrupted = 130 // ^C: what was measured is saved
)

func main() {
	os.Exit(run(os.Args, os.Stdout, os.Stderr))
}

// run is main without the process: it returns the exit status.
func run(args []string, stdout, stderr io.Writer) int {
	ctx, stop := interruptible(stderr)
	defer stop()
	own, extra := splitExtra(args)
	app := newApp(stdout, stderr)
	app.Metadata = map[string]any{"command": args, "extra": extra}
	err := app.RunContext(ctx, helpAsked(own))
	if err == nil {
		return exitDone
	}
	status := exitStatus(ctx, err)
	if msg := err.Error(); msg != "" {
		fmt.Fprintf(stderr, "kvtune: %s\n", msg)
	}
	return status
}

// interruptible returns a context that the first ^C (or SIGTERM) cancels, so that what was measured is saved; the
// second one exits at once.
func interruptible(stderr io.Writer) (context.Context, func()) {
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		if _, ok := <-signals; !ok {
			return
		}
		fmt.Fprintln(stderr, "kvtune: interrupted: finishing and saving (again to quit at once)")
		cancel()
		if _, ok := <-signals; ok {
			os.Exit(exitInterrupted)
		}
	}()
	return ctx, func() {
		signal.Stop(signals)
		close(signals)
		cancel()
	}
}

// splitExtra cuts the command line at the first "--": what follows is the user's own server flags, passed on unchanged.
func splitExtra(args []string) (own, extra []string) {
	if i := slices.Index(args, "--"); i >= 0 {
		return args[:i:i], args[i+1:]
	}
	return args, nil
}

// helpAsked takes "kvtune help plan" for "kvtune plan --help".
func helpAsked(args []string) []string {
	if len(args) < 2 || args[1] != "help" {
		return args
	}
	return append(append(args[:1:1], args[2:]...), "--help")
}

// usageError is a mistake in the command line or in an input file.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error {
	return usageError{fmt.Errorf(format, args...)}
}

// errNegative marks a verdict that is no; the verdict itself has been printed.
var errNegative = errors.New("")

func exitStatus(ctx context.Context, err error) int {
	var usage usageError
	switch {
	case errors.As(err, &usage):
		return exitUsage
	case isInputError(err):
		return exitUsage
	case errors.Is(err, errNegative):
		return exitNegative
	case ctx.Err() != nil:
		return exitInterrupted
	}
	return exitError
}

// version is the module's version, or the commit that was built.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			return "commit " + s.Value[:min(12, len(s.Value))]
		}
	}
	return "development build"
}

func newApp(stdout, stderr io.Writer) *cli.App {
	app := &cli.App{
		Name:                      "kvtune",
		Usage:                     "profile a vLLM server and its KV cache, say what binds, and plan its settings",
		Version:                   version(),
		HideHelpCommand:           true,
		DisableSliceFlagSeparator: true,
		Writer:                    stdout,
		ErrWriter:                 stderr,
		Commands: []*cli.Command{
			workflowCommand(), profileCommand(), analyzeCommand(), fitCommand(), simulateCommand(), planCommand(),
			verifyCommand(), serveCommand(), benchCommand(), mergeCommand(), compareCommand(),
			reportCommand(), importCommand(), envCommand(),
		},
		ExitErrHandler: func(*cli.Context, error) {}, // run decides the status
		CommandNotFound: func(c *cli.Context, name string) {
			fmt.Fprintf(stderr, "kvtune: unknown command %q; `kvtune --help` lists the commands\n", name)
		},
		OnUsageError: onUsageError,
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return usagef("unknown command %q; `kvtune --help` lists the commands", c.Args().First())
			}
			return cli.ShowAppHelp(c)
		},
	}
	for _, cmd := range app.Commands {
		if !slices.ContainsFunc(cmd.Flags, func(f cli.Flag) bool { return f.Names()[0] == "format" }) {
			cmd.Flags = append(cmd.Flags, formatFlag())
		}
	}
	// What these print has a form of its own.
	app.Commands = append(app.Commands, schemaCommand(), completionCommand(), manCommand(), completeCommand())
	for _, cmd := range app.Commands {
		finish(cmd)
	}
	app.CustomAppHelpTemplate = helpTemplate(overview(app))
	return app
}

// finish adds what every command has: --quiet, --profile, strict arguments, values that are checked against
// the flag's list, and errors that name the command.
func finish(cmd *cli.Command) {
	cmd.Flags = append(cmd.Flags, in(catProgram,
		&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "no progress and no messages: results and errors only"},
		oneOf(slices.Sorted(maps.Keys(selfProfiles)), &cli.StringFlag{Name: "profile",
			Usage: "write a `profile` of kvtune itself"}),
	)...)
	cmd.OnUsageError = onUsageError
	cmd.HideHelpCommand = true
	p := pageOf(cmd)
	cmd.CustomHelpTemplate = helpTemplate(p.help())
	action := cmd.Action
	cmd.Action = func(c *cli.Context) error {
		if c.Args().Present() && cmd.ArgsUsage == "" {
			return strayArgument(c)
		}
		if err := checkChoices(c, cmd.Flags); err != nil {
			return fmt.Errorf("%s: %w", cmd.Name, err)
		}
		if c.Bool("quiet") {
			c.App.ErrWriter = io.Discard
		}
		if kind := selfProfiles[c.String("profile")]; kind != nil {
			defer profile.Start(kind, profile.ProfilePath("."), profile.NoShutdownHook, profile.Quiet).Stop()
		}
		if err := action(c); err != nil {
			if err.Error() == "" {
				return err
			}
			return fmt.Errorf("%s: %w", cmd.Name, err)
		}
		return nil
	}
}

func onUsageError(c *cli.Context, err error, _ bool) error {
	name := "kvtune"
	if c.Command != nil && c.Command.Name != "" && c.Command.Name != "kvtune" {
		name += " " + c.Command.Name
	}
	return usagef("%s; `%s --help` lists the flags", strings.TrimSpace(err.Error()), name)
}

// strayArgument explains an argument that is no flag. Flags behind it were not read, so nothing is done.
func strayArgument(c *cli.Context) error {
	var flags, words []string
	rest := c.Args().Slice()
	for i, a := range rest {
		if strings.HasPrefix(a, "-") || (i > 0 && strings.HasPrefix(rest[i-1], "-")) {
			flags = append(flags, a)
		} else {
			words = append(words, a)
		}
	}
	if len(flags) > 0 {
		return usagef("%s: unexpected argument %q; the flags behind it were not read. Remove it: kvtune %s ... %s",
			c.Command.Name, words[0], c.Command.Name, strings.Join(flags, " "))
	}
	return usagef("%s: unexpected argument %q; this command takes flags only (`kvtune %s --help`)", c.Command.Name,
		words[0], c.Command.Name)
}

// flagsBehind refuses flags behind what a command works on, where they were not read, and says the command to type.
func flagsBehind(c *cli.Context, what string) error {
	args := c.Args().Slice()
	for i, arg := range args {
		if i > 0 && strings.HasPrefix(arg, "-") {
			return usagef("flag %q stands behind %s and was not read: kvtune %s %s", arg, what, c.Command.Name,
				report.ShellLine(slices.Concat(args[i:], args[:i])))
		}
	}
	return nil
}

var selfProfiles = map[string]func(*profile.Profile){
	"cpu": profile.CPUProfile, "mem": profile.MemProfile, "trace": profile.TraceProfile,
}
