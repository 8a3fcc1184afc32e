package workflow_test

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"kvtune/harness"
	"kvtune/harness/archive"
	"kvtune/harness/workflow"
	"kvtune/planner/cost"
)

// A report analyses the runs that were not: with a model of their own server, fitted from all of its runs, or, where
// the archive does not tell the server and nobody says it, from the gauges alone.
func TestReadReportAnalyses(t *testing.T) {
	dir := measuredFolder(t, 1)
	anonymous(t, folder(t, dir), "a", "b", "probes")
	tests := []struct {
		name   string
		server workflow.Server
		beside *cost.Model // in the archive
		fitted bool
		note   string
	}{
		{"no GPU", workflow.Server{}, nil, false, "--gpu"},
		{"a GPU that nobody knows", workflow.Server{GPU: "Z9"}, nil, false, "Z9"},
		{"a model that nobody knows", workflow.Server{Model: "unknown/model", GPU: "L4"}, nil, false, "--model"},
		{"both", workflow.Server{Model: "gpt2", GPU: "L4"}, nil, true, ""},
		{"the GPU of the cost model beside", workflow.Server{}, cost.Prior(gpu(t, "L4"), gpt2(t), harness.EngineArgs{}),
			false, ""},
		{"a cost model of another GPU beside", workflow.Server{GPU: "L4"},
			cost.Prior(gpu(t, "H200"), gpt2(t), harness.EngineArgs{}), true, ""},
	}
	for _, tt := range tests {
		if tt.beside != nil {
			if err := archive.WriteJSON(filepath.Join(dir, workflow.CostFile), tt.beside); err != nil {
				t.Fatal(err)
			}
		}
		in, err := workflow.ReadReport(t.Context(), dir, tt.server)
		if err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		if len(in.Runs) != 2 {
			t.Fatalf("%s: %d runs, the probes are none", tt.name, len(in.Runs))
		}
		for _, run := range in.Runs {
			if run.Analysis == nil {
				t.Fatalf("%s: %s is not analysed", tt.name, run.Result.Name)
			}
			notes := strings.Join(run.Analysis.Notes, "\n")
			if !strings.Contains(notes, tt.note) || strings.Contains(notes, "there is no cost model") != (tt.note != "") {
				t.Errorf("%s: notes %q, want %q", tt.name, notes, tt.note)
			}
			if known := run.Analysis.Roofline != nil; known != (tt.note == "") {
				t.Errorf("%s: a roofline: %v", tt.name, known)
			}
		}
		if fitted := in.Cost != nil && slices.Contains(in.Cost.FittedOn, "probes"); tt.beside == nil && fitted != tt.fitted {
			t.Errorf("%s: fitted from the probes, too: %v", tt.name, fitted)
		}
	}
}

// anonymous makes runs those of an endpoint that does not say its GPU, which none does.
func anonymous(t *testing.T, folder *archive.Folder, names ...string) {
	t.Helper()
	for _, name := range names {
		res, err := folder.Result(name)
		if err != nil {
			t.Fatal(err)
		}
		res.Conditions.Server.GPU = ""
		if err := folder.WriteResult(res); err != nil {
			t.Fatal(err)
		}
	}
}

// A recommendation is verified on a server like the one that was measured: what the command line of the run said of it
// is said again.
func TestVerifyCommandNamesTheServer(t *testing.T) {
	tests := []struct{ command, want string }{
		{"kvtune profile --launch --launch-arg srun --launch-arg=vllm --model ./m --rate 4 --output-dir o --gpu H100 " +
			"--budget 45m -- --load-format dummy",
			"--launch --launch-arg srun --launch-arg=vllm --model ./m --gpu H100 --budget 45m -- --load-format dummy"},
		{"kvtune profile --endpoint http://HOST:8000 --shared-server --C 64 --slo x",
			"--endpoint http://HOST:8000 --shared-server --gpu L4"},
		{"kvtune profile --launch --gpu L4 -- --max-num-seqs 1 --load-format dummy --skip-tokenizer-init --enforce-eager",
			"--launch --gpu L4 -- --load-format dummy --skip-tokenizer-init"},
		{"kvtune profile --launch --gpu L4 -- --max-num-seqs=1", "--launch --gpu L4"},
		{"", "--gpu L4"},
	}
	for _, tt := range tests {
		b, err := workflow.OnPaper(harness.Config{C: 32, B: 2, NumMeasurements: 1,
			EngineArgs: harness.EngineArgs{MaxNumSeqs: 1}},
			gpt2(t), gpu(t, "L4"), nil)
		if err != nil {
			t.Fatal(err)
		}
		b.Config.ProfilingType, b.Config.B, b.Config.NumMeasurements = harness.Mixed, 8, 2
		run, err := b.Simulate(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		run.Result.Conditions.Command = strings.Fields(tt.command)
		a := b.Analyze(t.Context(), run)
		if len(a.Recommendations) == 0 {
			t.Fatal("nothing is recommended where one request runs at a time")
		}
		want := strings.TrimSpace("kvtune verify --analysis-file performance_analysis.json --recommendation 1 " + tt.want)
		if got := strings.Join(a.Recommendations[0].Verify, " "); got != want {
			t.Errorf("%s\nwant %s", got, want)
		}
	}
}
