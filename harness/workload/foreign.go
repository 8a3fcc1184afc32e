package workload

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"time"
)

// Foreign is one run in the result file of another load generator.
type Foreign struct {
	// Tool is "vllm bench serve", "guidellm" or "aiperf"; Name tells the runs of one file apart, "" for the only one.
	Tool, Name string
	// Records are its requests, as far as the file tells; times count from the first due moment or send.
	Records []Record
	// Notes say what the tool does not tell, one sentence each.
	Notes []string
}

// ErrNotForeign says that a file is no result of a known load generator.
var ErrNotForeign = errors.New("not a result of vllm bench serve, guidellm or aiperf")

// ReadForeign reads what another load generator wrote: the JSON of `vllm bench serve --save-result --save-detailed`
// (0.18 to 0.33; one run, or several of --append-result), guidellm's benchmarks JSON (0.8) with a run per benchmark, or
// aiperf's profile_export.jsonl (0.13, --export-level records). The error is [ErrNotForeign] for any other file, and
// says what is wrong otherwise. name is for errors.
//
// What a tool did not write down stays unknown: the due moment (vllm bench), the moments of tokens between the first
// and the last (guidellm), how many tokens a chunk had (all; a chunk counts 1, and OutputTokens is the tool's own
// count).
func ReadForeign(name string, r io.Reader) ([]Foreign, error) {
	s, err := open(name, r)
	if err != nil {
		return nil, err
	}
	defer s.close()
	if err := s.peek(); err != nil {
		return nil, ErrNotForeign
	}
	read := foreignReader(s.head)
	if read == nil {
		return nil, ErrNotForeign
	}
	return readRuns(s, read)
}

// readRuns reads the runs of a file and checks what their records claim.
func readRuns(s *source, read func(*source) ([]Foreign, error)) ([]Foreign, error) {
	runs, err := read(s)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s.name, err)
	}
	for _, run := range runs {
		for i := range run.Records {
			if err := run.Records[i].checkCounts(); err != nil {
				return nil, fmt.Errorf("%s: request %d: %w", s.name, i, err)
			}
		}
		fromFirst(run.Records)
	}
	return runs, nil
}

// foreignReader tells the tool by the beginning of its file.
func foreignReader(head []byte) func(*source) ([]Foreign, error) {
	has := func(keys ...string) bool {
		for _, k := range keys {
			if !bytes.Contains(head, []byte(`"`+k+`"`)) {
				return false
			}
		}
		return len(head) > 0 && head[0] == '{'
	}
	switch {
	case has("endpoint_type", "tokenizer_id", "num_prompts"):
		return readVLLMBench
	case has("guidellm_version"):
		return readGuideLLM
	case has("metadata", "metrics", "request_start_ns"):
		return readAIPerf
	case has("aiperf_version"):
		return func(*source) ([]Foreign, error) {
			return nil, errors.New("this is aiperf's summary, without requests: give the profile_export.jsonl beside it " +
				"(aiperf profile --export-level records)")
		}
	}
	return nil
}

func isForeign(head []byte) bool { return foreignReader(head) != nil }

// readForeignRows replays another tool's run.
func readForeignRows(s *source, each func(row) error) error {
	runs, err := readRuns(s, foreignReader(s.head))
	if err != nil {
		return err
	}
	if len(runs) != 1 {
		return fmt.Errorf("%s holds %d runs, and one can be replayed at a time", s.name, len(runs))
	}
	for i := range runs[0].Records {
		if err := s.give(rowOf(&runs[0].Records[i]), each); err != nil {
			return err
		}
	}
	return nil
}

// fromFirst makes the times of a run count from its first due moment or send, and numbers its requests by their sends.
func fromFirst(records []Record) {
	slices.SortStableFunc(records, func(a, b Record) int { return cmp.Compare(a.Sent, b.Sent) })
	if len(records) == 0 {
		return
	}
	from := records[0].Sent
	for i := range records {
		from = min(from, records[i].Start())
	}
	for i := range records {
		r := &records[i]
		r.Index, r.Sent = i, r.Sent-from
		if r.Due != nil {
			due := *r.Due - from
			r.Due = &due
		}
	}
}

// span is a number of units as a duration, within half of what one holds: a request's send and its length are added.
func span(v float64, unit time.Duration) (time.Duration, error) {
	if d := v * float64(unit); d >= 0 && d <= float64(maxOffset) {
		return time.Duration(math.Round(d)), nil
	}
	return 0, fmt.Errorf("a time of %g x %v: expected one from 0 on", v, unit)
}

// chunks are the arrivals of chunks: the first, and the gaps behind it.
func chunks(first float64, gaps []float64, unit time.Duration) ([]TokenEvent, error) {
	at, err := span(first, unit)
	list := []TokenEvent{{At: at, Tokens: 1}}
	for _, gap := range gaps {
		d, e := span(gap, unit)
		if at += d; e != nil || at > maxOffset {
			return nil, cmp.Or(e, errors.New("the gaps between its chunks add up to more than 140 years"))
		}
		list = append(list, TokenEvent{At: at, Tokens: 1})
	}
	return list, err
}

// readVLLMBench reads vllm/benchmarks/serve.py's result_json. Lists are by request; a failed one has an error.
func readVLLMBench(s *source) ([]Foreign, error) {
	type result struct {
		InputLens  []int       `json:"input_lens"`
		OutputLens []int       `json:"output_lens"`
		TTFTs      []float64   `json:"ttfts"`
		ITLs       [][]float64 `json:"itls"`
		Starts     []float64   `json:"start_times"`
		Errors     []string    `json:"errors"`
	}
	var runs []Foreign
	for d := json.NewDecoder(s.r); ; {
		var q result
		err := d.Decode(&q)
		if err == io.EOF {
			return runs, nil
		}
		if err != nil {
			return nil, err
		}
		n := len(q.TTFTs)
		if n == 0 {
			return nil, errors.New("no requests in it: run vllm bench serve with --save-detailed")
		}
		if len(q.InputLens) != n || len(q.OutputLens) != n || len(q.ITLs) != n {
			return nil, fmt.Errorf("%d ttfts, %d itls, %d input_lens and %d output_lens: expected one each per request", n,
				len(q.ITLs), len(q.InputLens), len(q.OutputLens))
		}
		run := Foreign{Tool: "vllm bench serve", Notes: []string{
			"vllm bench serve does not tell when requests were due: latencies count from the send"}}
		if len(q.Starts) != n { // before 0.13
			q.Starts = make([]float64, n)
			run.Notes = append(run.Notes, "it does not tell when requests were sent either: throughput is unknown")
		}
		for i := range n {
			r := Record{Index: i, PromptTokens: q.InputLens[i], OutputTokens: q.OutputLens[i]}
			if r.Sent, err = span(q.Starts[i], time.Second); err != nil {
				return nil, fmt.Errorf("request %d: %w", i, err)
			}
			if i < len(q.Errors) {
				r.Error = q.Errors[i]
			}
			if r.Error == "" && q.OutputLens[i] > 0 {
				if r.Tokens, err = chunks(q.TTFTs[i], q.ITLs[i], time.Second); err != nil {
					return nil, fmt.Errorf("request %d: %w", i, err)
				}
			}
			run.Records = append(run.Records, r)
		}
		if runs = append(runs, run); len(runs) > 1 { // --append-result
			runs[0].Name, runs[len(runs)-1].Name = "run1", fmt.Sprintf("run%d", len(runs))
		}
	}
}

// readGuideLLM reads GenerativeBenchmarksReport, whose benchmarks hold the requests by how they ended
// (guidellm/schemas/base/request_stats.py and info.py of 0.8).
func readGuideLLM(s *source) ([]Foreign, error) {
	type usage struct {
		Text   *int `json:"text_tokens"`
		Cached *int `json:"cached_tokens"`
	}
	type request struct {
		Info struct {
			Conversation *string `json:"conversation_id"`
			Turn         int     `json:"turn_index"`
			Error        *string `json:"error"`
			Timings      struct {
				Targeted   *float64 `json:"targeted_start"`
				Start      *float64 `json:"request_start"`
				First      *float64 `json:"first_token_iteration"`
				Last       *float64 `json:"last_token_iteration"`
				Iterations int      `json:"token_iterations"`
			} `json:"timings"`
		} `json:"info"`
		Input  usage `json:"input_metrics"`
		Output usage `json:"output_metrics"`
	}
	var doc struct {
		Benchmarks []struct {
			Requests struct {
				Successful, Errored, Incomplete []request
			} `json:"requests"`
		} `json:"benchmarks"`
	}
	if err := json.NewDecoder(s.r).Decode(&doc); err != nil {
		return nil, err
	}
	var runs []Foreign
	for i, b := range doc.Benchmarks {
		run := Foreign{Tool: "guidellm", Notes: []string{"guidellm keeps the moments of the first and the last token only: " +
			"inter-token latencies are not known, TPOT is"}}
		if len(doc.Benchmarks) > 1 {
			run.Name = fmt.Sprintf("benchmark%d", i+1)
		}
		sessions := map[string]string{}
		add := func(q *request, failure string) error {
			t := &q.Info.Timings
			if t.Start == nil {
				return nil // it never went out
			}
			r := Record{Error: failure, CachedTokens: q.Input.Cached, Turn: q.Info.Turn}
			if q.Info.Conversation != nil {
				r.Session = alias(sessions, *q.Info.Conversation)
			}
			if q.Info.Error != nil && failure != "" {
				r.Error = *q.Info.Error
			}
			if q.Input.Text != nil {
				r.PromptTokens = *q.Input.Text
			}
			if q.Output.Text != nil {
				r.OutputTokens = *q.Output.Text
			}
			var err error
			if r.Sent, err = span(*t.Start, time.Second); err != nil {
				return err
			}
			if t.Targeted != nil {
				due, err := span(*t.Targeted, time.Second)
				if err != nil {
					return err
				}
				due = min(due, r.Sent)
				r.Due = &due
			}
			if t.First != nil && t.Last != nil && r.OutputTokens > 0 {
				first, err := span(max(0, *t.First-*t.Start), time.Second)
				last, err2 := span(max(0, *t.Last-*t.Start), time.Second)
				if err = errors.Join(err, err2); err != nil {
					return err
				}
				r.Tokens = []TokenEvent{{At: first, Tokens: 1}}
				if r.OutputTokens > 1 && last > first {
					r.Tokens = append(r.Tokens, TokenEvent{At: last, Tokens: r.OutputTokens - 1})
				} else {
					r.Tokens[0].Tokens = r.OutputTokens
				}
			}
			run.Records = append(run.Records, r)
			return nil
		}
		var err error
		for k := range b.Requests.Successful {
			err = errors.Join(err, add(&b.Requests.Successful[k], ""))
		}
		for k := range b.Requests.Errored {
			err = errors.Join(err, add(&b.Requests.Errored[k], "failed"))
		}
		for k := range b.Requests.Incomplete {
			err = errors.Join(err, add(&b.Requests.Incomplete[k], "cancelled at the end of the run"))
		}
		if err != nil {
			return nil, err
		}
		runs = append(runs, run)
	}
	if len(runs) == 0 {
		return nil, errors.New("it holds no benchmark")
	}
	return runs, nil
}

// readAIPerf reads one MetricRecordInfo per line (aiperf/common/models/export_models.py of 0.13).
func readAIPerf(s *source) ([]Foreign, error) {
	type number struct {
		Value *float64 `json:"value"`
	}
	type line struct {
		Metadata struct {
			Start        *float64 `json:"request_start_ns"`
			Phase        string   `json:"benchmark_phase"`
			Conversation string   `json:"conversation_id"`
			Turn         int      `json:"turn_index"`
			Cancelled    bool     `json:"was_cancelled"`
		} `json:"metadata"`
		Metrics struct {
			TTFT   number `json:"time_to_first_token"`
			E2E    number `json:"request_latency"`
			Chunks struct {
				Value []float64 `json:"value"`
			} `json:"inter_chunk_latency"`
			Input       number `json:"input_sequence_length"`
			Output      number `json:"output_sequence_length"`
			UsageInput  number `json:"usage_prompt_tokens"`
			UsageOutput number `json:"usage_completion_tokens"`
			Cached      number `json:"usage_prompt_cache_read_tokens"`
		} `json:"metrics"`
		Error *struct {
			Message string `json:"message"`
		} `json:"error"`
	}
	run := Foreign{Tool: "aiperf"}
	sessions := map[string]string{}
	count := func(ns ...number) int {
		for _, n := range ns {
			if n.Value != nil && *n.Value >= 0 && *n.Value <= maxCount {
				return int(*n.Value)
			}
		}
		return 0
	}
	for {
		text, whole, err := s.next()
		if err == io.EOF {
			return []Foreign{run}, nil
		}
		if err != nil {
			return nil, err
		}
		var q line
		if err := json.Unmarshal(text, &q); err != nil {
			if !whole && len(run.Records) > 0 {
				run.Notes = append(run.Notes, "the file ends in the middle of a line")
				return []Foreign{run}, nil
			}
			return nil, fmt.Errorf("line %d: %w", s.line, err)
		}
		if q.Metadata.Start == nil {
			return nil, fmt.Errorf("line %d: no metadata.request_start_ns", s.line)
		}
		r := Record{PromptTokens: count(q.Metrics.UsageInput, q.Metrics.Input),
			OutputTokens: count(q.Metrics.UsageOutput, q.Metrics.Output), Turn: q.Metadata.Turn}
		if r.Sent, err = span(*q.Metadata.Start, 1); err != nil {
			return nil, fmt.Errorf("line %d: %w", s.line, err)
		}
		if q.Metadata.Phase == "warmup" {
			r.Phase = Warmup
		}
		if q.Metadata.Conversation != "" {
			r.Session = alias(sessions, q.Metadata.Conversation)
		}
		if q.Metrics.Cached.Value != nil {
			cached := count(q.Metrics.Cached)
			r.CachedTokens = &cached
		}
		switch {
		case q.Error != nil:
			r.Error = cmp.Or(q.Error.Message, "failed")
		case q.Metadata.Cancelled:
			r.Error = "cancelled"
		case q.Metrics.TTFT.Value != nil:
			r.Tokens, err = chunks(*q.Metrics.TTFT.Value, q.Metrics.Chunks.Value, time.Millisecond)
		case q.Metrics.E2E.Value != nil: // not streamed: all tokens at once
			r.Tokens, err = chunks(*q.Metrics.E2E.Value, nil, time.Millisecond)
		}
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", s.line, err)
		}
		run.Records = append(run.Records, r)
	}
}

// alias is a short name for an id that may say more than it should: c1, c2, ... in order of appearance.
func alias(names map[string]string, id string) string {
	name, ok := names[id]
	if !ok {
		name = fmt.Sprintf("c%d", len(names)+1)
		names[id] = name
	}
	return name
}
