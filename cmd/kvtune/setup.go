package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"kvtune/harness"
	"kvtune/harness/archive"
	"kvtune/harness/profile"
	"kvtune/harness/vllm"
	"kvtune/harness/workflow"
	"kvtune/planner"
	"kvtune/planner/cost"
	fitting "kvtune/planner/fit"
	"kvtune/planner/spec"
)

// defaultModel and defaultMaxModelLen are what a run is about when --model is not given.
const (
	defaultModel       = "meta-llama/Llama-3.1-8B"
	defaultMaxModelLen = 16384
)

// setup is a command's view of the world, made from its flags before anything is started or written.
type setup struct {
	workflow.Setup
	screen *screen
}

// setupOf reads model, GPU and endpoint flags. A running endpoint is connected to, so that a wrong address fails before
// anything is written.
func setupOf(c *cli.Context, model string) (*setup, error) {
	s := &setup{screen: newScreen(c.App.ErrWriter)}
	s.Command, s.Tool = words(c, "command"), "kvtune "+version()
	s.OnStage, s.OnProgress = s.screen.stage, s.screen.progress
	gpu, err := spec.FindGPU(c.String("gpu"))
	if err != nil {
		return nil, usageError{fmt.Errorf("--gpu: %w", err)}
	}
	s.GPU = gpu
	if s.Client, s.Limits, err = clientOf(c); err != nil {
		return nil, err
	}
	s.Budget, s.SharedServer = c.Duration("budget"), c.Bool("shared-server")
	var base harness.EngineArgs
	if model == "" {
		model, base.MaxModelLen = defaultModel, defaultMaxModelLen
	}
	endpoint, launch := c.String("endpoint"), c.Bool("launch")
	if endpoint != "" && launch {
		return nil, usagef("--endpoint and --launch exclude each other: measure a running server, or start one")
	}
	if !launch && (len(c.StringSlice("launch-arg")) > 0 || len(c.StringSlice("stop-arg")) > 0 ||
		len(words(c, "extra")) > 0) {
		return nil, usagef("--launch-arg, --stop-arg and flags after -- are for servers that kvtune starts: add --launch")
	}
	if c.IsSet("budget") && c.Duration("budget") <= 0 {
		return nil, usagef("--budget %v: expected a time above 0, such as 30m", c.Duration("budget"))
	}
	if s.Model, err = spec.FindModel(model); err != nil {
		return nil, usageError{fmt.Errorf("--model: %w", err)}
	}
	key, err := apiKey()
	if err != nil {
		return nil, err
	}
	opts := vllm.Options{APIKey: key, ConnectTimeout: c.Duration("connect-timeout")}
	switch {
	case endpoint != "":
		ctx, cancel := context.WithTimeout(c.Context, 10*time.Second)
		defer cancel()
		srv, err := vllm.Connect(ctx, endpoint, opts)
		if err != nil {
			return nil, usageError{err}
		}
		s.Source = workflow.Running{URL: endpoint, Opts: opts}
		if !c.IsSet("model") {
			if m, err := spec.FindModel(srv.Info().Root); err == nil {
				s.Model = m
			}
		}
		if !c.IsSet("gpu") && srv.Info().GPU != "" {
			if s.GPU, err = spec.FindGPU(srv.Info().GPU); err != nil {
				return nil, usageError{err}
			}
		}
	case launch:
		argv := c.StringSlice("launch-arg")
		if len(argv) == 0 {
			argv = []string{"vllm", "serve"}
		}
		if !c.IsSet("model") {
			return nil, usagef("--launch needs --model: the model to serve, a name or a folder with its config.json")
		}
		s.Source = &workflow.Launched{
			Argv: argv, Model: c.String("model"), Extra: words(c, "extra"), StopCommand: c.StringSlice("stop-arg"),
			Opts: opts, OnProgress: s.screen.detail, OnRetry: s.screen.stage, Device: workflow.DeviceOf(gpu),
		}
	default:
		s.Source = workflow.Embedded{Model: s.Model, GPU: s.GPU, Base: base, Seed: c.Uint64("seed")}
	}
	return s, nil
}

// clientOf reads how requests are sent.
func clientOf(c *cli.Context) (vllm.ClientOptions, profile.Limits, error) {
	client := vllm.ClientOptions{Vocab: c.Int("vocab"), API: vllm.API(c.String("api")), Text: c.Bool("text")}
	limits := profile.Limits{
		FirstToken: c.Duration("first-token-timeout"), BetweenTokens: c.Duration("token-timeout"),
		Request: c.Duration("request-timeout"), Retries: c.Int("retries"),
	}
	if limits.Retries < 0 {
		return client, limits, usagef("--retries %d: expected 0 or more", limits.Retries)
	}
	for _, name := range []string{"connect-timeout", "first-token-timeout", "token-timeout", "request-timeout"} {
		if c.IsSet(name) && c.Duration(name) <= 0 {
			return client, limits, usagef("--%s %v: expected a time above 0, such as 30s", name, c.Duration(name))
		}
	}
	return client, limits, nil
}

// open makes the output folder. It is the first thing that a command writes.
func (s *setup) open(dir string) error {
	folder, err := archive.Create(dir)
	if err != nil {
		return usageError{fmt.Errorf("--output-dir: %w", err)}
	}
	s.use(folder)
	return nil
}

// words are the command line ("command"), or what stands behind "--" in it ("extra").
func words(c *cli.Context, which string) []string {
	list, _ := c.App.Metadata[which].([]string)
	return list
}

// apiKey comes from the environment, or from a file that the environment names, never from the command line, where
// every process of the machine could read it.
func apiKey() (string, error) {
	if key := os.Getenv("VLLM_API_KEY"); key != "" {
		return key, nil
	}
	file := os.Getenv("VLLM_API_KEY_FILE")
	if file == "" {
		return "", nil
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return "", usageError{fmt.Errorf("VLLM_API_KEY_FILE: %w", err)}
	}
	return strings.TrimSpace(string(data)), nil
}

// files lists what a command wrote.
func (s *setup) files() []string {
	if s.Folder == nil {
		return nil
	}
	files := s.Folder.Files()
	for i, f := range files {
		files[i] = filepath.Join(s.Folder.Dir(), f)
	}
	return files
}

// isInputError reports errors that are the caller's to mend although they surface late: a workload that the server's
// context cannot hold, flags that are set twice, a budget that is too small.
func isInputError(err error) bool {
	var field *harness.FieldError
	var conflict *vllm.ConflictError
	var budget *workflow.BudgetError
	var covered *planner.NotCoveredError
	var settings *planner.SettingsError
	var other *archive.OtherWorkError
	var damaged *archive.DamagedError
	var log *fitting.AsyncLogError
	return errors.As(err, &other) || errors.As(err, &field) || errors.As(err, &conflict) || errors.As(err, &budget) ||
		errors.As(err, &covered) || errors.As(err, &settings) || errors.As(err, &damaged) || errors.As(err, &log)
}

// shapes reads --model and --gpu.
func shapes(c *cli.Context) (spec.Model, spec.GPU, error) {
	name := c.String("model")
	if name == "" {
		name = defaultModel
	}
	model, err := spec.FindModel(name)
	if err != nil {
		return spec.Model{}, spec.GPU{}, usageError{fmt.Errorf("--model: %w", err)}
	}
	gpu, err := spec.FindGPU(c.String("gpu"))
	if err != nil {
		return spec.Model{}, spec.GPU{}, usageError{fmt.Errorf("--gpu: %w", err)}
	}
	return model, gpu, nil
}

// readConfigs reads --configs: a field that a configuration leaves out has the value of the flags.
func readConfigs(file string, base harness.Config) ([]harness.Config, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, usageError{fmt.Errorf("--configs: %w", err)}
	}
	defer f.Close()
	configs, err := harness.ReadConfigs(f, base)
	if err != nil {
		return nil, usageError{fmt.Errorf("--configs %s: %w", file, err)}
	}
	return configs, nil
}

func readCost(file string) (*cost.Model, error) {
	m := new(cost.Model)
	if err := archive.ReadJSON(file, cost.Schema, m); err != nil {
		return nil, err
	}
	return m, nil
}
