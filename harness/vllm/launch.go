package vllm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// healthBeat is how often a starting server is asked whether it is ready.
	healthBeat = 250 * time.Millisecond
	// defaultGrace is enough for a vLLM without open streams, which ends about 1 s after SIGTERM.
	defaultGrace = 15 * time.Second
	// killTime is how long the system may take to end a killed process on a busy machine.
	killTime = 10 * time.Second
)

// LaunchOptions describe a server process. Its whole argument vector is Argv, Model, Args, host and port, Extra.
type LaunchOptions struct {
	// Argv starts the server; nil is "vllm", "serve". It may wrap it (docker run ..., srun ..., kubectl run ...), as long
	// as it runs until the server ends. "{port}" in it, as in StopCommand, is the port at which the server is awaited:
	// "-p", "{port}:8000" with --port 8000 in Extra, and "--name", "vllm-{port}" for a name that StopCommand knows.
	Argv []string
	// Model is the model's name or folder.
	Model string
	// Args are the planned flags: "--max-num-seqs", "64", ...
	Args []string
	// Extra is passed on unchanged, behind everything else. It must not repeat a flag of Args. With --host or --port in
	// it, these are obeyed; beside a "{port}" in Argv, --port is the server's own behind a mapping.
	Extra []string
	// Env is added to this process's environment ("NAME=value"), all of which the server gets.
	Env []string
	// LogPath is the file that gets the server's output; it is kept. "" is a new file in the folder for temporary files.
	LogPath string
	// Port is where the server is to listen, 0 for a free one (another is tried when somebody takes it meanwhile).
	Port int
	// StopCommand ends the server where a signal to the process does not ("docker", "stop", NAME); nil sends SIGTERM. It
	// also runs when the process has ended by itself: what it wrapped may go on.
	StopCommand []string
	// Grace is how long Stop waits before it kills; 0 is 15 s.
	Grace time.Duration
	// OnProgress, when not nil, gets the log's last line, without its prefix, a few times a second while the server
	// starts; "" while there is none.
	OnProgress func(line string)
}

// ConflictError says that a flag is both planned and passed on unchanged.
type ConflictError struct{ Flag string }

func (e *ConflictError) Error() string {
	return fmt.Sprintf("%s is set by the plan and again among the arguments passed on unchanged: leave it out of those, "+
		"or pin it in the plan", e.Flag)
}

// DiedError says that the server process ended by itself, with what its log says of the reason.
type DiedError struct {
	// State is the process's end: "exit status 1", "signal: killed".
	State string
	// Lines are the log's decisive lines, at most 5, in the log's order; its last lines where none stands out.
	Lines []string
	// Cause is the kind of reason, "" when it is not a known one; Suggestion is what to change then.
	Cause      Cause
	Suggestion string
	// LogPath is the whole log.
	LogPath string
}

func (e *DiedError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "the server process ended (%s)", e.State)
	if e.Suggestion != "" {
		fmt.Fprintf(&b, "; %s", e.Suggestion)
	}
	for _, l := range e.Lines {
		fmt.Fprintf(&b, "\n  %s", l)
	}
	fmt.Fprintf(&b, "\n  whole log: %s", e.LogPath)
	return b.String()
}

// Process is a server that was started here. It leads its own process group, which a guard stops should this process
// die before it has.
type Process struct {
	argv  []string
	log   string
	url   string
	proc  *os.Process
	stop  []string
	grace time.Duration
	ended chan struct{}
	state string // how it ended; valid after ended
	seen  int64  // how much of the log Steps has read

	once sync.Once
	err  error
}

// Launch starts a server and waits until its /health answers 200. When ctx ends first, or the process dies, nothing is
// left running; the log stays. Errors: *ConflictError, *DiedError, ctx's cause, or why the command cannot be run.
func Launch(ctx context.Context, opt LaunchOptions) (*Process, error) {
	_, own := flagValue(opt.Extra, "--port")
	own = own && !mapsPort(opt.Argv)
	for try := 1; ; try++ {
		p, err := launch(ctx, opt)
		var died *DiedError
		if errors.As(err, &died) && died.Cause == CausePort && opt.Port == 0 && !own && try < 3 {
			continue // it was free when it was chosen
		}
		return p, err
	}
}

func launch(ctx context.Context, opt LaunchOptions) (*Process, error) {
	host, port, argv, err := commandLine(opt)
	if err != nil {
		return nil, err
	}
	if opt.Grace == 0 {
		opt.Grace = defaultGrace
	}
	base := "http://" + net.JoinHostPort(host, strconv.Itoa(port))
	client := newHTTPClient(0)
	client.Timeout = 5 * time.Second // a server that accepts but does not answer yet is asked again
	defer client.CloseIdleConnections()
	if healthy(ctx, client, base) { // it would be taken for the new one
		return nil, fmt.Errorf("a server already answers at %s: stop it, or choose another port", base)
	}
	log, err := openLog(opt.LogPath)
	if err != nil {
		return nil, fmt.Errorf("server log: %w; name a folder that can be written", err)
	}
	defer log.Close() // the child has its own descriptor
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), opt.Env...)
	cmd.SysProcAttr = groupAttr()
	if err := cmd.Start(); err != nil {
		return nil, cannotStart(argv[0], err)
	}
	p := &Process{
		argv: argv, log: log.Name(), url: base, proc: cmd.Process,
		stop: withPort(opt.StopCommand, port), grace: opt.Grace, ended: make(chan struct{}),
	}
	dismiss, guardErr := guard(p.PID(), p.stop, p.grace)
	go p.reap(cmd, dismiss)
	if err = guardErr; err == nil {
		err = p.await(ctx, client, opt.OnProgress)
	}
	if err != nil {
		_ = p.Stop() // the first error is the one to show
		return nil, err
	}
	return p, nil
}

func cannotStart(program string, err error) error {
	if !errors.Is(err, exec.ErrNotFound) && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("cannot start %q: %w", program, err)
	}
	if strings.Contains(filepath.Base(program), "vllm") {
		return fmt.Errorf("cannot start %q: %w; install vLLM (pip install vllm), or name the command that starts it",
			program, exec.ErrNotFound)
	}
	return fmt.Errorf("cannot start %q: %w; name the command that starts vLLM as it is on this machine", program,
		exec.ErrNotFound)
}

// reap waits for the end of the process and takes what it left of its group with it.
func (p *Process) reap(cmd *exec.Cmd, dismiss func()) {
	_ = cmd.Wait() // the state says more
	killGroup(p.PID())
	if dismiss != nil {
		dismiss()
	}
	p.state = cmd.ProcessState.String()
	close(p.ended)
}

// await returns when /health answers 200, or says why it never will.
func (p *Process) await(ctx context.Context, client *http.Client, progress func(string)) error {
	begin := time.Now()
	ticker := time.NewTicker(healthBeat)
	defer ticker.Stop()
	for {
		select {
		case <-p.ended:
			return p.died()
		case <-ctx.Done():
			return fmt.Errorf("gave up waiting for the server after %s: %w (log: %s)",
				time.Since(begin).Round(time.Second), context.Cause(ctx), p.log)
		case <-ticker.C:
		}
		if healthy(ctx, client, p.url) {
			select {
			case <-p.ended: // another server answers at this port
				return p.died()
			default:
				return nil
			}
		}
		if progress != nil {
			progress(strings.Join(p.LogTail(1), ""))
		}
	}
}

func healthy(ctx context.Context, client *http.Client, base string) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"/health", nil)
	if err != nil {
		return false
	}
	resp, err := client.Do(req)
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// Argv is the whole argument vector that was run.
func (p *Process) Argv() []string { return slices.Clone(p.argv) }

// LogPath is the server's log.
func (p *Process) LogPath() string { return p.log }

// URL is the server's base address.
func (p *Process) URL() string { return p.url }

// PID is the process's id, which is also its group's.
func (p *Process) PID() int { return p.proc.Pid }

// Ended is closed when the process has ended, for whatever reason. [Process.Err] then says why.
func (p *Process) Ended() <-chan struct{} { return p.ended }

// Err is nil while the process runs, and a *DiedError once it has ended.
func (p *Process) Err() error {
	select {
	case <-p.ended:
		return p.died()
	default:
		return nil
	}
}

// LogTail is the last n lines of the log.
func (p *Process) LogTail(n int) []string { return tail(p.log, n) }

func (p *Process) died() error {
	e := diagnose(p.log)
	e.State, e.LogPath = p.state, p.log
	if e.Cause == "" && strings.Contains(p.state, "killed") {
		e.Cause, e.Suggestion = CauseKilled, "somebody killed it: the system does so when memory runs out"
	}
	if e.Suggestion == "" && p.state == "exit status 0" {
		e.Suggestion = "the command that starts it must run until the server ends (docker run without --detach)"
	}
	return e
}

// Stop ends the server: StopCommand or SIGTERM, and after the grace time SIGKILL, in the end for the whole process
// group, so that no worker is left. Close the streams before: a vLLM with open streams does not end. It is nil when the
// process is gone; calling it again is harmless.
func (p *Process) Stop() error {
	p.once.Do(func() { p.err = p.end() })
	return p.err
}

func (p *Process) end() error {
	var stopErr error
	running := p.Err() == nil
	switch {
	case len(p.stop) > 0:
		ctx, cancel := context.WithTimeout(context.Background(), p.grace)
		defer cancel()
		out, err := exec.CommandContext(ctx, p.stop[0], p.stop[1:]...).CombinedOutput()
		if err != nil && running { // else there may be nothing left to stop
			stopErr = fmt.Errorf("stop command %s: %w: %s", strings.Join(p.stop, " "), err, strings.TrimSpace(string(out)))
		}
	case running:
		_ = p.proc.Signal(syscall.SIGTERM) // one that has just ended is fine
	}
	timer := time.NewTimer(p.grace)
	defer timer.Stop()
	select {
	case <-p.ended:
	case <-timer.C:
	}
	killGroup(p.PID())
	timer.Reset(max(p.grace, killTime))
	select {
	case <-p.ended:
		return stopErr
	case <-timer.C:
		return fmt.Errorf("process %d does not end, not even by SIGKILL; see %s", p.PID(), p.log)
	}
}

// portMark stands for the port in a command.
const portMark = "{port}"

func mapsPort(argv []string) bool {
	return slices.ContainsFunc(argv, func(a string) bool { return strings.Contains(a, portMark) })
}

func withPort(argv []string, port int) []string {
	argv = slices.Clone(argv)
	for i := range argv {
		argv[i] = strings.ReplaceAll(argv[i], portMark, strconv.Itoa(port))
	}
	return argv
}

// commandLine builds the argument vector and says where the server will answer.
func commandLine(opt LaunchOptions) (host string, port int, argv []string, err error) {
	if flag, ok := Conflict(opt.Args, opt.Extra); ok {
		return "", 0, nil, &ConflictError{Flag: flag}
	}
	port = opt.Port
	own, fixed := flagValue(opt.Extra, "--port")
	if fixed {
		n, err := strconv.Atoi(own)
		if err != nil || n < 1 || n > 65535 {
			return "", 0, nil, fmt.Errorf("--port %q: expected 1 to 65535", own)
		}
		if !mapsPort(opt.Argv) {
			port = n
		}
	}
	if port == 0 {
		if port, err = freePort(); err != nil {
			return "", 0, nil, err
		}
	}
	if argv = withPort(opt.Argv, port); len(argv) == 0 {
		argv = []string{"vllm", "serve"}
	}
	if opt.Model != "" {
		argv = append(argv, opt.Model)
	}
	argv = append(argv, opt.Args...)
	host = "127.0.0.1"
	if h, ok := flagValue(opt.Extra, "--host"); !ok {
		argv = append(argv, "--host", host)
	} else if h != "0.0.0.0" && h != "::" && h != "" {
		host = h
	}
	if !fixed {
		argv = append(argv, "--port", strconv.Itoa(port))
	}
	return host, port, append(argv, opt.Extra...), nil
}

// freePort is a port that was free a moment ago.
func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("no free port: %w", err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// Conflict finds the first flag of args that extra sets again: --max-num-seqs, --max_num_seqs=8 and, for switches,
// --no-... are the same flag. Short aliases are not known.
func Conflict(args, extra []string) (flag string, ok bool) {
	planned := map[string]bool{}
	for _, a := range args {
		if name, _, ok := flagName(a); ok {
			planned[strings.TrimPrefix(name, "no-")] = true
		}
	}
	for _, a := range extra {
		if name, _, ok := flagName(a); ok && planned[strings.TrimPrefix(name, "no-")] {
			return "--" + name, true
		}
	}
	return "", false
}

// flagName splits "--Name_x=value" into "name-x" and its value.
func flagName(arg string) (name, value string, ok bool) {
	rest, ok := strings.CutPrefix(arg, "--")
	if !ok || rest == "" {
		return "", "", false
	}
	name, value, _ = strings.Cut(rest, "=")
	return strings.ReplaceAll(name, "_", "-"), value, true
}

// flagValue is the last value of a flag in args.
func flagValue(args []string, flag string) (value string, ok bool) {
	for i, a := range args {
		name, v, is := flagName(a)
		if !is || "--"+name != flag {
			continue
		}
		if !strings.Contains(a, "=") && i+1 < len(args) {
			v = args[i+1]
		}
		value, ok = v, true
	}
	return value, ok
}

func openLog(path string) (*os.File, error) {
	if path == "" {
		return os.CreateTemp("", "kvtune-server-*.log")
	}
	return os.Create(path)
}
