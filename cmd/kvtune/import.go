package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/urfave/cli/v2"

	"kvtune/harness/archive"
	"kvtune/harness/workload"
)

func importCommand() *cli.Command {
	return &cli.Command{
		Name:      "import",
		Usage:     "make a trace of an access log (CSV or JSON lines), without prompt text",
		ArgsUsage: "FILE",
		Description: "Examples:\n" +
			"   kvtune import --map time=ts,in=prompt_tokens,out=completion_tokens,session=conv_id access.csv\n" +
			"   kvtune import --map in=usage.prompt_tokens,out=usage.completion_tokens gateway.jsonl\n" +
			"   kvtune profile --endpoint http://127.0.0.1:8000 --trace trace_requests.jsonl.zst --rate 8",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "map", Category: catInput, Usage: "where the log has what: `time=COLUMN,...`, and in=, " +
				"out=, session=, class=, priority=, lora= (dots lead into JSON objects; common names are found)"},
			&cli.PathFlag{Name: "output-dir", Usage: "`folder` for the trace", Value: "trace", Category: catOutput},
			&cli.StringFlag{Name: "name", Usage: "the trace is NAME" + archive.RequestsSuffix, Value: "trace",
				Category: catOutput},
		},
		Action: importAction,
	}
}

func importAction(c *cli.Context) error {
	args := c.Args().Slice()
	if err := flagsBehind(c, "the file"); err != nil {
		return err
	}
	if len(args) != 1 {
		return usagef("%d files to import: expected one, kvtune import --map time=COLUMN,in=COLUMN,out=COLUMN FILE",
			len(args))
	}
	columns, err := workload.ParseColumns(c.String("map"))
	if err != nil {
		return usageError{fmt.Errorf("--map: %w", err)}
	}
	name := c.String("name")
	if name == "" || strings.ContainsAny(name, `/\`) {
		return usagef("--name %q: expected a name without a folder (see --output-dir)", name)
	}
	path := args[0]
	f, err := os.Open(path)
	if err != nil {
		return usageError{err}
	}
	defer f.Close()
	log, err := workload.Import(path, f, columns)
	if err != nil {
		return usageError{err}
	}
	folder, err := archive.Create(c.Path("output-dir"))
	if err != nil {
		return usageError{fmt.Errorf("--output-dir: %w", err)}
	}
	if err := folder.WriteRequests(name, log.Records); err != nil {
		return err
	}
	trace := traceOf(log)
	out := output{Verdict: trace.verdict(), Warnings: log.Notes, Trace: &trace,
		Files: []string{folder.Path(name + archive.RequestsSuffix)}}
	return show(c, out, func(w io.Writer) error {
		fmt.Fprintln(w, out.Verdict)
		if err := printNotes(w, log.Notes); err != nil {
			return err
		}
		_, err := fmt.Fprintf(w, "\nfiles\n  %s\n", out.Files[0])
		return err
	})
}

// traceOf says what the trace is like.
func traceOf(log *workload.Imported) traceOutput {
	n := len(log.Records)
	t, sessions := traceOutput{Requests: n, Duration: log.Records[n-1].Sent.Seconds()}, map[string]bool{}
	prompt, output := 0, 0
	for i := range log.Records {
		r := &log.Records[i]
		prompt, output = prompt+r.PromptTokens, output+r.AskedTokens
		if r.Session != "" {
			sessions[r.Session] = true
		}
	}
	t.PromptTokens, t.OutputTokens = float64(prompt)/float64(n), float64(output)/float64(n)
	t.Conversations = len(sessions)
	return t
}

func (t *traceOutput) verdict() string {
	text := fmt.Sprintf("%d requests in %.1f s", t.Requests, t.Duration)
	if t.Duration > 0 && t.Requests > 1 {
		text += fmt.Sprintf(" (%.3g/s)", float64(t.Requests-1)/t.Duration)
	}
	text += fmt.Sprintf(", on average %.0f prompt and %.0f output tokens", t.PromptTokens, t.OutputTokens)
	if t.Conversations > 0 {
		text += fmt.Sprintf(", %d conversations", t.Conversations)
	}
	return text
}
