package workflow_test

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"kvtune/harness"
	"kvtune/harness/archive"
	"kvtune/harness/workflow"
)

// bytesOf are the requests files of parts, as they are on disk.
func bytesOf(t *testing.T, dir string, names ...string) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, n := range names {
		data, err := os.ReadFile(filepath.Join(dir, n+archive.RequestsSuffix))
		if err != nil {
			t.Fatal(err)
		}
		all[n] = string(data)
	}
	return all
}

// resumed runs a workflow again that was cut short in its second configuration, and checks that only what was missing
// is measured.
func resumed(t *testing.T, dir string, opt workflow.Options) {
	t.Helper()
	before := bytesOf(t, dir, "probes", "first")
	var told stages
	opt.Resume, opt.OnStage = true, told.add
	out, err := workflow.Run(t.Context(), opt)
	if err != nil {
		t.Fatal(err)
	}
	checkComplete(t, dir, opt, out)
	for name, data := range bytesOf(t, dir, "probes", "first") {
		if data != before[name] {
			t.Errorf("%s was measured twice", name)
		}
	}
	if !told.has("first: taken over") || told.has("first: starting") || told.has("probing") ||
		!told.has("second: profiling") {
		t.Errorf("stages %q", told.told)
	}
}

// checkComplete checks the outcome of a workflow of two configurations that ended well, and its files.
func checkComplete(t *testing.T, dir string, opt workflow.Options, out *workflow.Outcome) {
	t.Helper()
	if out.Partial || out.Why != "" || out.NotVerified != "" || out.Cost == nil || out.ChosenPlan() == nil {
		t.Fatalf("outcome: partial %v (%s), not verified %q, chosen %d", out.Partial, out.Why, out.NotVerified, out.Chosen)
	}
	if len(out.Runs) != 3 || len(out.Plans) != 2 || out.Runs[0].Result.Name != "first" ||
		out.Runs[1].Result.Name != "second" {
		t.Fatalf("%d runs, %d plans", len(out.Runs), len(out.Plans))
	}
	verified := opt.Configs[out.Chosen].Name + "_verify"
	if got := out.Runs[2].Result.Name; got != verified || len(out.ChosenPlan().Compared) == 0 {
		t.Errorf("verified %s, want %s; %d figures compared", got, verified, len(out.ChosenPlan().Compared))
	}
	for i := range out.Runs {
		if out.Runs[i].Analysis == nil || out.Runs[i].Result.Partial {
			t.Errorf("%s: partial or not analysed", out.Runs[i].Result.Name)
		}
	}
	f, err := archive.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"probes", "first", "second", verified} {
		if part, ok := f.Part(name); !ok || part.State != archive.Done {
			t.Errorf("part %s is %+v", name, part)
		}
		if _, err := workflow.ReadRun(f, name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range []string{workflow.CostFile, workflow.AnalysisFile, workflow.PlansFile, "first_plans.json",
		"second_analysis.json"} {
		if _, err := os.Stat(f.Path(name)); err != nil {
			t.Error(err)
		}
	}
	left, err := filepath.Glob(filepath.Join(dir, "*"+archive.PartialSuffix))
	if err != nil || len(left) > 0 {
		t.Errorf("left over: %v, %v", left, err)
	}
}

func TestResumeAfterInterruption(t *testing.T) {
	dir := t.TempDir()
	opt := options(t, dir)
	ctx, cancel := context.WithCancel(t.Context())
	told := stages{on: func(text string) {
		if text == "second: profiling" {
			cancel()
		}
	}}
	opt.OnStage = told.add
	out, err := workflow.Run(ctx, opt)
	if err != nil {
		t.Fatal(err)
	}
	if !out.Partial || out.Why != "interrupted" || out.NotVerified == "" || len(out.Runs) != 2 ||
		!out.Runs[1].Result.Partial {
		t.Errorf("outcome: partial %v (%s), not verified %q, %d runs", out.Partial, out.Why, out.NotVerified, len(out.Runs))
	}
	if part, _ := opt.Folder.Part("second"); part.State != archive.Partial {
		t.Errorf("second is %s", part.State)
	}
	resumed(t, dir, options(t, dir))

	// Once more: everything is there.
	opt = options(t, dir)
	told = stages{}
	opt.Resume, opt.OnStage = true, told.add
	if out, err = workflow.Run(t.Context(), opt); err != nil {
		t.Fatal(err)
	}
	checkComplete(t, dir, opt, out)
	if told.has("starting") || told.has("profiling") || told.has("verifying") {
		t.Errorf("measured again: %q", told.told)
	}
}

// A process that is killed leaves what it had: whole records in a file that is still growing, parts that are done.
func TestResumeAfterKill(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), playWorkflow+"="+dir)
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "second"+archive.RequestsSuffix+archive.PartialSuffix)
	const enough = 2
	for tries := 0; ; tries++ {
		if data, err := os.ReadFile(path); err == nil {
			if records, _, err := archive.ReadRequests(bytes.NewReader(data)); err == nil && len(records) >= enough {
				break
			}
		}
		if tries == 3000 {
			t.Errorf("%s never had %d records", path, enough)
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil || t.Failed() {
		t.Fatalf("the workflow was not killed in the middle: %v\n%s", err, &output)
	}

	f, err := archive.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if part, _ := f.Part("second"); part.State != archive.Running {
		t.Errorf("second is %q", part.State)
	}
	if part, _ := f.Part("first"); part.State != archive.Done {
		t.Errorf("first is %q", part.State)
	}
	if records, partial, err := f.ReadRequests("second"); err != nil || !partial || len(records) < enough {
		t.Errorf("%d records left, partial %v, %v", len(records), partial, err)
	}
	if runs, err := workflow.ReadFit([]string{path}, nil, gpt2(t), gpu(t, "L4")); err != nil || len(runs) != 1 ||
		len(runs[0].Records) < enough {
		t.Errorf("what is left, to fit from: %v, %+v", err, runs)
	}
	if _, err := workflow.ReadRuns(dir); err != nil {
		t.Errorf("the folder: %v", err)
	}

	opt := options(t, dir)
	opt.Configs[1] = long(opt.Configs[1])
	resumed(t, dir, opt)
}

// long is a configuration that takes seconds.
func long(cfg harness.Config) harness.Config {
	cfg.NumMeasurements, cfg.OutputLen = 8, "64"
	return cfg
}

// killedWorkflow is what the killed process does.
func killedWorkflow(dir string) error {
	opt, err := optionsIn(dir)
	if err != nil {
		return err
	}
	opt.Configs[1] = long(opt.Configs[1])
	_, err = workflow.Run(context.Background(), opt)
	return err
}

// What is resumed must be what is asked for.
func TestResumeMeasuresWhatIsAskedFor(t *testing.T) {
	dir := t.TempDir()
	opt := options(t, dir)
	opt.Configs = opt.Configs[:1]
	if _, err := workflow.Run(t.Context(), opt); err != nil {
		t.Fatal(err)
	}
	again := func(change func(*workflow.Options)) *stages {
		t.Helper()
		var told stages
		opt := options(t, dir)
		opt.Configs = opt.Configs[:1]
		opt.Resume, opt.OnStage = true, told.add
		change(&opt)
		// Nothing but what it would begin with is of interest.
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		told.on = func(text string) {
			if strings.Contains(text, "starting") || strings.Contains(text, "taken over") {
				cancel()
			}
		}
		if _, err := workflow.Run(ctx, opt); err != nil && ctx.Err() == nil {
			t.Fatal(err)
		}
		return &told
	}
	if told := again(func(*workflow.Options) {}); !told.has("first: taken over") || told.has("starting") {
		t.Errorf("the same: %q", told.told)
	}
	for name, change := range map[string]func(*workflow.Options){
		"not resumed":     func(o *workflow.Options) { o.Resume = false },
		"another prompt":  func(o *workflow.Options) { o.Configs[0].C++ },
		"another setting": func(o *workflow.Options) { o.Configs[0].MaxNumSeqs = 3 },
		"another device":  func(o *workflow.Options) { o.GPU = gpu(t, "H200") },
	} {
		// A copy, so that every change meets the same folder.
		copied := filepath.Join(t.TempDir(), "copy")
		if err := os.CopyFS(copied, os.DirFS(dir)); err != nil {
			t.Fatal(err)
		}
		told := again(func(o *workflow.Options) {
			var err error
			if o.Folder, err = archive.Create(copied); err != nil {
				t.Fatal(err)
			}
			change(o)
		})
		if told.has("taken over") || !told.has("first: starting") {
			t.Errorf("%s: %q", name, told.told)
		}
	}
	// Only the probes have another design.
	var told stages
	other := options(t, dir)
	other.Configs, other.Resume, other.OnStage = []harness.Config{small("other", 32)}, true, told.add
	other.Quick = false
	ctx, cancel := context.WithCancel(t.Context())
	told.on = func(text string) {
		if strings.Contains(text, "probing") {
			cancel()
		}
	}
	if _, err := workflow.Run(ctx, other); err != nil {
		t.Fatal(err)
	}
	if !told.has("probing") {
		t.Errorf("all probes were asked for, the quick ones taken over: %q", told.told)
	}
}
