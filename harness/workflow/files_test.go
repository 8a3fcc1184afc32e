package workflow_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"kvtune/harness"
	"kvtune/harness/archive"
	"kvtune/harness/profile"
	"kvtune/harness/workflow"
	"kvtune/planner/fit"
)

// measuredFolder has probes and two runs, "a" and "b", of an engine that is so much faster than a real one.
func measuredFolder(t *testing.T, speed float64) string {
	t.Helper()
	dir := t.TempDir()
	setup := workflow.Setup{
		Source: running(t, harness.EngineArgs{MaxNumSeqs: 8}, speed, nil), Folder: folder(t, dir), Model: gpt2(t),
		GPU: gpu(t, "L4"),
	}
	if _, err := setup.ProfileWithProbes(t.Context(), small("b", 64), true); err != nil {
		t.Fatal(err)
	}
	if _, err := setup.Profile(t.Context(), small("a", 32)); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestReadRuns(t *testing.T) {
	dir := measuredFolder(t, 1e3)
	lone := t.TempDir() // a run without probes
	copyFile(t, filepath.Join(dir, "a_results.json"), filepath.Join(lone, "a_results.json"))
	tests := []struct {
		path string
		want []string
	}{
		{dir, []string{"a", "probes"}},
		{filepath.Join(dir, "manifest.json"), []string{"a", "probes"}},
		{filepath.Join(dir, "b_results.json"), []string{"b", "probes"}},
		{filepath.Join(dir, "b_requests.jsonl.zst"), []string{"b", "probes"}},
		{filepath.Join(dir, "probes_results.json"), []string{"probes"}},
		{lone, []string{"a"}},
		{filepath.Join(lone, "a_results.json"), []string{"a"}},
	}
	for _, tt := range tests {
		runs, err := workflow.ReadRuns(tt.path)
		if err != nil {
			t.Errorf("%s: %v", tt.path, err)
			continue
		}
		if got := names(runs); !slices.Equal(got, tt.want) {
			t.Errorf("%s: %q, want %q", tt.path, got, tt.want)
		}
		for _, r := range runs {
			if n := len(r.Records); (n == 0) != strings.HasPrefix(tt.path, lone) || (len(r.Series) == 0) != (n == 0) {
				t.Errorf("%s: %s has %d records, %d samples", tt.path, r.Result.Name, n, len(r.Series))
			}
		}
	}
	full := measuredFolder(t, 1e3) // with the probe that fills the KV cache
	setup := workflow.Setup{Source: running(t, harness.EngineArgs{MaxNumSeqs: 8}, 1e3, nil), Folder: folder(t, full),
		Model: gpt2(t), GPU: gpu(t, "L4")}
	if _, err := setup.Profile(t.Context(), small("capacity", 32)); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string][]string{
		full: {"a", "probes", "capacity"}, filepath.Join(full, "capacity_results.json"): {"capacity", "probes"},
		filepath.Join(full, "probes_results.json"): {"probes", "capacity"},
	} {
		if runs, err := workflow.ReadRuns(path); err != nil || !slices.Equal(names(runs), want) {
			t.Errorf("%s: %q, want %q; %v", path, names(runs), want, err)
		}
	}
	fits, err := workflow.ReadFit([]string{full}, nil, gpt2(t), gpu(t, "L4"))
	if err != nil || len(fits) != 4 {
		t.Fatalf("%d runs to fit from, %v", len(fits), err)
	}
	for _, r := range fits {
		if r.DecodesOnly != (r.Name == "capacity") {
			t.Errorf("of %s only decodes: %v", r.Name, r.DecodesOnly)
		}
	}
	if others := workflow.OtherRuns(full); !slices.Equal(others, []string{"b"}) {
		t.Errorf("beside the first run: %q", others)
	}
	if others := workflow.OtherRuns(dir); !slices.Equal(others, []string{"b"}) {
		t.Errorf("beside the first run: %q", others)
	}
	if others := workflow.OtherRuns(filepath.Join(dir, "b_results.json")); len(others) > 0 {
		t.Errorf("beside the run that was named: %q", others)
	}
	for path, want := range map[string]string{
		filepath.Join(dir, "none"): "does not exist",
		t.TempDir():                "is not a kvtune archive",
	} {
		if _, err := workflow.ReadRuns(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
	empty := t.TempDir()
	folder(t, empty)
	if _, err := workflow.ReadRuns(empty); err == nil || !strings.Contains(err.Error(), "kvtune profile --output-dir") {
		t.Errorf("a folder without a result: %v", err)
	}
}

// A requests file that was cut short gives its whole records, and the run says that it is partial.
func TestReadRunCutShort(t *testing.T) {
	dir := measuredFolder(t, 1e3)
	file := filepath.Join(dir, "a"+archive.RequestsSuffix)
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, info.Size()*3/4); err != nil {
		t.Fatal(err)
	}
	runs, err := workflow.ReadRuns(dir)
	if err != nil {
		t.Fatal(err)
	}
	if r := runs[0]; !r.Result.Partial || r.Result.Why == "" || len(r.Records) == 0 || len(r.Records) >= 5 {
		t.Errorf("partial %v (%s), %d records", r.Result.Partial, r.Result.Why, len(r.Records))
	}
}

func TestReadFit(t *testing.T) {
	dir := measuredFolder(t, 1e3)
	model, device := gpt2(t), gpu(t, "L4")
	bare := filepath.Join(t.TempDir(), "mine"+archive.RequestsSuffix)
	copyFile(t, filepath.Join(dir, "a"+archive.RequestsSuffix), bare)
	left := filepath.Join(t.TempDir(), "killed"+archive.RequestsSuffix+archive.PartialSuffix)
	copyFile(t, bare, left)
	steps := filepath.Join(t.TempDir(), "my_steps.csv")
	err := os.WriteFile(steps,
		[]byte("context_requests,context_tokens,generation_requests,generation_tokens,elapsed_ms,kv_usage_pct\n"+
			"1,512,0,0,12.5,1.0\n0,0,4,4,5.5,\n"), 0o644)
	if err != nil {
		t.Fatal(err)
	}
	file := func(name string) string { return filepath.Join(dir, name) }
	tests := []struct {
		name           string
		results, steps []string
		want           []string
	}{
		{"a folder: all of it", []string{dir}, nil, []string{"a", "b", "probes"}},
		{"a file, with the probes beside it", []string{file("b_results.json")}, nil, []string{"b", "probes"}},
		{"two files: the probes once", []string{file("b_results.json"), file("a_results.json")}, nil,
			[]string{"b", "probes", "a"}},
		{"the same twice", []string{dir, file("a_results.json"), dir}, nil, []string{"a", "b", "probes"}},
		{"a requests file that has its result", []string{file("a_requests.jsonl.zst")}, nil, []string{"a", "probes"}},
		{"one that has none", []string{bare}, nil, []string{filepath.Base(bare)}},
		{"what a killed run left", []string{left}, nil, []string{filepath.Base(left)}},
		{"steps", nil, []string{steps}, []string{"my_steps.csv"}},
		{"both", []string{bare}, []string{steps}, []string{filepath.Base(bare), "my_steps.csv"}},
	}
	for _, tt := range tests {
		runs, err := workflow.ReadFit(tt.results, tt.steps, model, device)
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		var got []string
		for _, r := range runs {
			got = append(got, r.Name)
			if (len(r.Records) == 0) == (len(r.Steps) == 0) || r.NumGPUBlocks == 0 || r.Args.MaxNumSeqs == 0 ||
				r.Args.BlockSize == 0 {
				t.Errorf("%s: %s: %d records, %d steps, %d blocks, %+v", tt.name, r.Name, len(r.Records), len(r.Steps),
					r.NumGPUBlocks, r.Args)
			}
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
	logged := loggedFolder(t, dir)
	runs, err := workflow.ReadFit(nil, []string{logged}, model, device)
	if err != nil || len(runs) != 1 || runs[0].Name != "probes_steps.csv" || len(runs[0].Steps) != 2 ||
		len(runs[0].Records) != 0 || runs[0].Args.MaxNumSeqs != 8 {
		t.Errorf("steps of a folder: %+v, %v", runs, err)
	}
	if async := runs[0].Args.AsyncScheduling; async == nil || !*async { // a fit refuses them for it
		t.Errorf("steps of a folder have not its server's settings: async_scheduling %v", async)
	}
	if _, err := workflow.ReadFit(nil, []string{dir}, model, device); err == nil ||
		!strings.Contains(err.Error(), "no engine steps") {
		t.Errorf("a folder without steps: %v", err)
	}
	runs, err = workflow.ReadFit([]string{dir}, nil, model, device)
	if err != nil {
		t.Fatal(err)
	}
	if i := slices.IndexFunc(runs, func(r fit.Run) bool { return r.Args.MaxNumSeqs != 8 }); i >= 0 {
		t.Errorf("%s was measured with max_num_seqs 8, not %d", runs[i].Name, runs[i].Args.MaxNumSeqs)
	}
	for _, path := range []string{file("none" + archive.RequestsSuffix), file("none" + archive.ResultSuffix)} {
		if _, err := workflow.ReadFit([]string{path}, nil, model, device); err == nil ||
			!strings.Contains(err.Error(), "none") {
			t.Errorf("%s: %v", path, err)
		}
	}
	if _, err := workflow.ReadFit(nil, []string{bare}, model, device); err == nil ||
		!strings.Contains(err.Error(), filepath.Base(bare)) {
		t.Errorf("requests for steps: %v", err)
	}
}

// loggedFolder is a folder whose probes come from a server that logged its steps, as has a run whose decodes share a
// prefix.
func loggedFolder(t *testing.T, measured string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for _, suffix := range []string{archive.ResultSuffix, archive.RequestsSuffix} {
		for _, name := range []string{"probes", "a"} {
			copyFile(t, filepath.Join(measured, name+suffix), filepath.Join(dir, name+suffix))
		}
	}
	folder, err := archive.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range folder.Results() {
		steps := []harness.StepRecord{{T: -1, ContextRequests: 1, ContextTokens: 64, Elapsed: 1e7, KVUsage: 0.01, Running: -1,
			Waiting: -1, Preemptions: -1}, {T: -1, GenerationRequests: 1, GenerationTokens: 1, Elapsed: 5e6, KVUsage: 0.01,
			Running: -1, Waiting: -1, Preemptions: -1}}
		if err := folder.WriteSteps(name, steps); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func names(runs []*profile.Output) []string {
	var all []string
	for _, r := range runs {
		all = append(all, r.Result.Name)
	}
	return all
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, data, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}
