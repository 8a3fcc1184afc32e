package workload

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
)

func read(t *testing.T, text string, opt TraceOptions) *Workload {
	t.Helper()
	w, err := ReadTrace("trace", strings.NewReader(text), opt)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// times tells when the requests of a workload are due and how long they are.
func times(w *Workload) string {
	var b strings.Builder
	for i := range w.Requests {
		r := &w.Requests[i]
		fmt.Fprintf(&b, "%v %d>%d ", r.Due, r.PromptTokens(), r.OutputTokens)
	}
	return strings.TrimSpace(b.String())
}

func TestReadTraceFormats(t *testing.T) {
	const want = "0s 374>44 4.314579s 396>109 4.541877s 879>55"
	for name, text := range map[string]string{
		"azure": "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n" +
			"2023-11-16 18:15:50.9951690,396,109\n2023-11-16 18:15:51.2224670,879,55",
		"vidur": "arrived_at,num_prefill_tokens,num_decode_tokens\n0.0,374,44\n4.314579,396,109\n4.541877,879,55\n",
		"mooncake": `{"timestamp": 0, "input_length": 374, "output_length": 44, "hash_ids": [1]}` + "\n" +
			`{"timestamp": 4314.579, "input_length": 396, "output_length": 109, "hash_ids": [2]}` + "\n\n" +
			`{"timestamp": 4541.877, "input_length": 879, "output_length": 55, "hash_ids": [3, 4]}`,
		"requests": `{"sent_s":0,"prompt_tokens":374,"asked_tokens":44,"output_tokens":3,"error":"cut"}` + "\n" +
			`{"due_s":4.314579,"sent_s":4.5,"prompt_tokens":396,"output_tokens":109}` + "\n" +
			`{"due_s":null,"sent_s":4.541877,"prompt_tokens":879,"output_tokens":55}` + "\n",
		"log": "\xef\xbb\xbfStatus;Output " +
			"Tokens;Arrival-Time;prompt_tokens\r\nok;44;1700000000;374\r\nok;55.0;1700000004.541877;879\r\n" +
			"\"o;k\";109;1700000004.314579;396\r\n",
		"unix milliseconds": "ts,in_use,input_tokens,completion_tokens\n1700000000000,x,374,44\n" +
			"1700000004314.579,x,396,109\n" +
			"1700000004541.877,x,879,55\n",
		"named milliseconds": "\n \ntimestamp_ms\tinput_length\toutput_length\n1000\t374\t44\n5314.579\t396\t109\n" +
			"5541.877\t879\t55\n", "dates": "time,promptTokens,generated_tokens\n2026-01-01T00:00:00+02:00,374,44\n" +
			"2025-12-31T22:00:04.314579Z,396,109\n" +
			"2025-12-31T22:00:04.541877Z,879,55\n",
		"nanoseconds": "start_time,input_toks,output_toks\n1700000000000000000,374,44\n1700000004314579000,396,109\n" +
			"1700000004541877000,879,55\n",
	} {
		if got := times(read(t, text, TraceOptions{})); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	if got := len(Formats()); got != 6 || !strings.HasPrefix(Formats()[0], "azure: ") {
		t.Errorf("formats: %q", Formats())
	}
}

func TestReadTraceErrors(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"", "trace is empty: expected a trace"},
		{"\n\n", "trace is empty: expected a trace"},
		{"\nhello world\n", `trace, line 2: not a trace: found "hello world", expected one of`},
		{"a,b,c\n1,2,3\n", "trace, line 1: not a trace"},
		{"{\"x\":1}\n", "trace, line 1: not a trace"},
		{"time,prompt_tokens\n1,2\n", "trace, line 1: no column for output tokens in [\"time\" \"prompt_tokens\"]: " +
			"expected one of outputtokens"},
		{"time,prompt_tokens,output_tokens\n", "trace has no requests"},
		{"\ntime,prompt_tokens,output_tokens\n1,2,3\n1,2\n", "trace, line 4: wrong number of fields, expected 3 columns"},
		{"time,prompt_tokens,output_tokens\n1,2,3\nsoon,2,3\n",
			`trace, line 3: time: "soon" is not a time: expected seconds, a Unix time`},
		{"time,prompt_tokens,output_tokens\n1,2.5,3\n", `trace, line 2: prompt_tokens: "2.5" is not a whole number`},
		{"time,prompt_tokens,output_tokens\n1,-2,3\n", "trace, line 2: -2 input and 3 output tokens, expected from 0"},
		{"time,prompt_tokens,output_tokens\nNaN,2,3\n", `trace, line 2: time: "NaN" is out of range`},
		{`{"timestamp":0,"input_length":1,"output_length":1,"hash_ids":[0]}` + "\n" + `{"timestamp":0,"input_length":1}` +
			"\n", "trace, line 2: expected timestamp, input_length, output_length and hash_ids"},
		{`{"timestamp":-5,"input_length":1,"output_length":1}`, "trace, line 1: timestamp is -5, expected milliseconds"},
		{`{"due_s":1,"prompt_tokens":3}` + "\nrubbish\n", "trace, line 2: invalid character"},
		{`{"due_s":1,"prompt_tokens":3}` + "\n\n" + `{"due_s":1}` + "\n", "trace, line 3: no prompt_tokens"},
	} {
		if _, err := ReadTrace("trace", strings.NewReader(c.text), TraceOptions{}); err == nil ||
			!strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("%q: error %v, want %q", c.text, err, c.want)
		}
	}
	one := `{"due_s":1,"prompt_tokens":3,"output_tokens":1}`
	for want, opt := range map[string]TraceOptions{
		"trace speed -1":           {Speed: -1},
		"trace speed NaN":          {Speed: math.NaN()},
		"trace: all requests":      {Rate: 5},
		"trace: workload has conc": {Concurrency: 1, Clients: 2},
	} {
		if _, err := ReadTrace("trace", strings.NewReader(one), opt); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%+v: error %v, want %q", opt, err, want)
		}
	}
}

func TestTraceOptions(t *testing.T) {
	const text = "time,prompt_tokens,output_tokens\n0,100,10\n2,20,0\n4,5,100\n6,0,1\n"
	for _, c := range []struct {
		opt   TraceOptions
		want  string
		notes string
	}{
		{TraceOptions{NumRequests: 1}, "0s 100>10", ""},
		{TraceOptions{}, "0s 100>10 2s 20>1 4s 5>100 6s 1>1",
			"1 of 4 requests have no output tokens: replayed with 1\n1 of 4 requests have no prompt tokens: replayed with 1"},
		{TraceOptions{NumRequests: 2, Speed: 4}, "0s 100>10 500ms 20>1",
			"1 of 2 requests have no output tokens: replayed with 1"},
		{TraceOptions{NumRequests: 3, Rate: 4}, "0s 100>10 250ms 20>1 500ms 5>100",
			"1 of 3 requests have no output tokens: replayed with 1"},
		{TraceOptions{NumRequests: 3, Concurrency: 2}, "0s 100>10 0s 20>1 0s 5>100",
			"1 of 3 requests have no output tokens: replayed with 1"},
		{TraceOptions{NumRequests: 3, MaxModelLen: 60}, "0s 50>10 2s 20>1 4s 1>59",
			"2 of 3 prompts cut to fit max_model_len 60\n1 of 3 outputs cut to fit max_model_len 60\n" +
				"1 of 3 requests have no output tokens: replayed with 1"},
	} {
		w := read(t, text, c.opt)
		if got := times(w); got != c.want || strings.Join(w.Notes, "\n") != c.notes || w.Concurrency != c.opt.Concurrency {
			t.Errorf("%+v: %s, notes %q; want %s, %q", c.opt, got, w.Notes, c.want, c.notes)
		}
	}
}

func TestMooncakeBlocksAreShared(t *testing.T) {
	w := read(t, `{"timestamp": 0, "input_length": 1300, "output_length": 5, "hash_ids": [0, 1, 2]}
{"timestamp": 1000, "input_length": 1024, "output_length": 5, "hash_ids": [0, 1]}
{"timestamp": 1000, "input_length": 2000, "output_length": 5, "hash_ids": [0, 7, 8]}
{"timestamp": 2000, "input_length": 1300, "output_length": 5, "hash_ids": [9, 1, 2]}
`, TraceOptions{BlockSize: 16})
	if want := "0 1:512 2:512 3:276 > 5\n0 1:512 2:512 > 5\n0 1:512 4:512 5:512 6:464 > 5\n0 7:512 2:512 " +
		"3:276 > 5\n"; shape(w) != want {
		t.Errorf("got\n%swant\n%s", shape(w), want)
	}
	for i, want := range []int{1300, 1024, 512, 0} { // up to the first block that nobody else has
		if got := w.Requests[i].SharedTokens; got != want {
			t.Errorf("request %d shares %d tokens, want %d", i, got, want)
		}
	}
	if w.BlockSize != 16 {
		t.Errorf("block size %d", w.BlockSize)
	}
}

// requestsFile writes what a run of a workload leaves: every request takes long for its first token and 10 ms per
// token. The lines are in order of ending.
func requestsFile(t *testing.T, w *Workload, hashBlock int) []byte {
	t.Helper()
	const first, gap = 200 * time.Millisecond, 10 * time.Millisecond
	due, ended, order := simulate(t, w, func(i int) time.Duration {
		return first + time.Duration(w.Requests[i].OutputTokens-1)*gap
	})
	s, hasher := NewSchedule(w), NewHasher(hashBlock)
	records := make([]Record, len(w.Requests))
	for i := range records {
		r := NewRecord(&w.Requests[i])
		if r.Sent = due[i]; s.Intended(i) {
			r.Due = &due[i]
		}
		for k := range w.Requests[i].OutputTokens {
			r.Tokens = append(r.Tokens, TokenEvent{first + time.Duration(k)*gap, 1})
		}
		r.OutputTokens, r.FinishReason = len(r.Tokens), "length"
		if r.PrefixHashes = hasher.Prefix(&w.Requests[i]); r.PrefixHashes != nil {
			r.HashBlock = hashBlock
		}
		records[i] = r
	}
	slices.SortStableFunc(order, func(a, b int) int { return int(ended[a] - ended[b]) })
	var b bytes.Buffer
	for _, i := range order {
		line, err := json.Marshal(&records[i])
		if err != nil {
			t.Fatal(err)
		}
		b.Write(append(line, '\n'))
	}
	return b.Bytes()
}

// hits counts the prompt tokens that an endless prefix cache saves when requests come one after the other.
func hits(w *Workload, blockSize int) (tokens int) {
	cached := make(map[uint64]bool)
	for i := range w.Requests {
		r := &w.Requests[i]
		hashes := BlockHashes(append(slices.Clip(r.Prompt), Segment{r.OutputID, r.OutputTokens}), blockSize)
		for k := 0; k < (r.PromptTokens()-1)/blockSize && cached[hashes[k]]; k++ {
			tokens += blockSize
		}
		for _, h := range hashes {
			cached[h] = true
		}
	}
	return tokens
}

// A run's requests file replays the run: the same requests at the same moments, with the same shared blocks.
func TestReplayReproducesARun(t *testing.T) {
	eachMode(func(s Spec) {
		w := build(t, s)
		file := requestsFile(t, w, s.BlockSize)
		opt := TraceOptions{BlockSize: s.BlockSize, Concurrency: w.Concurrency, Clients: w.Clients}
		back := read(t, string(file), opt)
		if len(back.Requests) != len(w.Requests) || len(back.Notes) != 0 {
			t.Fatalf("%+v: %d requests of %d, notes %q", s, len(back.Requests), len(w.Requests), back.Notes)
		}
		if got, want := hits(back, s.BlockSize), hits(w, s.BlockSize); got != want {
			t.Fatalf("%+v: the replay hits %d tokens, the run %d", s, got, want)
		}
		took := func(w *Workload) func(int) time.Duration {
			return func(i int) time.Duration {
				return 200*time.Millisecond + time.Duration(w.Requests[i].OutputTokens-1)*10*time.Millisecond
			}
		}
		due, _, _ := simulate(t, w, took(w))
		again, _, _ := simulate(t, back, took(back))
		for i := range w.Requests {
			a, b := &w.Requests[i], &back.Requests[i]
			if a.PromptTokens() != b.PromptTokens() || a.OutputTokens != b.OutputTokens || a.Phase != b.Phase ||
				a.Turn != b.Turn || a.SharedTokens/s.BlockSize != b.SharedTokens/s.BlockSize || due[i] != again[i] {
				t.Fatalf("%+v: request %d\n%+v due %v\n%+v due %v", s, i, *a, due[i], *b, again[i])
			}
		}
		if w.Concurrency > 0 { // without a closed loop, by the moments of sending
			opt.Concurrency, opt.Clients = 0, 0
			open := read(t, string(file), opt)
			if got, want := hits(open, s.BlockSize), hits(w, s.BlockSize); got != want || len(open.Requests) != len(w.Requests) {
				t.Fatalf("%+v: replayed by time it hits %d tokens, the run %d", s, got, want)
			}
		}
	})
}

// Records are replayed as their file is.
func TestReplayOfRecords(t *testing.T) {
	records := []Record{
		{Index: 0, Phase: Measured, Due: new(time.Second), Sent: time.Second, PromptTokens: 40, OutputTokens: 3,
			Session: "a"},
		{Index: 1, Phase: Measured, Due: new(2 * time.Second), Sent: 3 * time.Second, PromptTokens: 90, OutputTokens: 2,
			AskedTokens: 7, Error: "reset"},
	}
	var file bytes.Buffer
	for _, r := range records {
		if err := json.NewEncoder(&file).Encode(r); err != nil {
			t.Fatal(err)
		}
	}
	opt := TraceOptions{MaxModelLen: 80, BlockSize: 16, Seed: 3}
	got, err := Replay(records, opt)
	if err != nil {
		t.Fatal(err)
	}
	if want := read(t, file.String(), opt); !reflect.DeepEqual(got, want) {
		t.Errorf("%+v\nwant what its file gives: %+v", got, want)
	}
	if got.Requests[1].OutputTokens != 7 || len(got.Notes) == 0 {
		t.Errorf("a request that failed is not asked for again in full, or its cut prompt is not noted: %+v", got)
	}
	if _, err := Replay(nil, opt); err == nil {
		t.Error("a replay of nothing")
	}
}

func TestReplayConversations(t *testing.T) {
	const text = `{"index":0,"due_s":1,"prompt_tokens":10,"output_tokens":4,"session":"a","token_times_s":[[1,4]]}
{"index":1,"due_s":1.5,"prompt_tokens":30,"output_tokens":4,"session":"b"}
{"index":2,"due_s":5,"prompt_tokens":20,"output_tokens":3,"session":"a","turn":1}
{"index":3,"due_s":6,"prompt_tokens":50,"output_tokens":3,"session":"b","turn":1}
{"index":4,"due_s":9,"prompt_tokens":12,"output_tokens":3,"session":"a","turn":2}
{"index":5,"due_s":9,"prompt_tokens":53,"output_tokens":3,"session":"b","turn":2,"think_s":0.5}
`
	w := read(t, text, TraceOptions{})
	// Turn 1 of a comes 3 s after the end of turn 0; that of b at its time, no end being known; turn 2 of a is shorter
	// than the conversation before it; turn 2 of b adds nothing of its own.
	want := "0 1:10 > 4\n0 2:30 > 4\n0 1:10 3:4 4:6 > 3 after 0+3s\n0 2:30 5:4 6:16 > 3\n0 7:12 > 3\n0 2:30 5:4 6:16 " +
		"8:3 > 3 after 3+500ms\n"
	if got := shape(w); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	if got := times(w); got != "1s 10>4 1.5s 30>4 0s 20>3 6s 50>3 9s 12>3 0s 53>3" {
		t.Error(got)
	}
	if w.Requests[5].SharedTokens != 53 || w.Requests[2].SharedTokens != 14 ||
		len(w.Notes) != 1 || !strings.HasPrefix(w.Notes[0], "1 of 6 turns have a shorter prompt") {
		t.Errorf("shared %d and %d, notes %q", w.Requests[5].SharedTokens, w.Requests[2].SharedTokens, w.Notes)
	}
	// In a closed loop every turn waits for the one before. A conversation that is cut to the context stays one.
	w = read(t, text, TraceOptions{Concurrency: 2, MaxModelLen: 33})
	want = "0 1:10 > 4\n0 2:29 > 4\n0 1:10 3:4 4:6 > 3 after 0+3s\n0 2:29 5:1 > 3 after 1+0s\n0 6:12 > 3 after 2+0s\n0 " +
		"2:29 5:1 > 3 after 3+500ms\n"
	if got := shape(w); got != want {
		t.Errorf("closed loop:\n%swant\n%s", got, want)
	}
	log := read(t, "time,session_id,prompt_tokens,output_tokens\n0,x,10,5\n1,,10,5\n2,x,20,5\n", TraceOptions{})
	if want := "0 1:10 > 5\n0 2:10 > 5\n0 1:10 3:5 4:5 > 5\n"; shape(log) != want {
		t.Errorf("log:\n%swant\n%s", shape(log), want)
	}
}

func TestReplayProbes(t *testing.T) {
	w, err := ReadTrace("probes", dataFile(t, "vllm_h200/probes_default_requests.jsonl.zst"), TraceOptions{BlockSize: 16})
	if err != nil {
		t.Fatal(err)
	}
	waves, shared := make(map[string]int), 0
	for i := range w.Requests {
		r := &w.Requests[i]
		if wave, ok := waves[r.Probe]; ok && wave != r.Wave {
			t.Fatalf("probe %s is in waves %d and %d", r.Probe, wave, r.Wave)
		}
		waves[r.Probe] = r.Wave
		if strings.HasPrefix(r.Probe, "prefix_M") {
			shared++
			if want := 16 * atoi(r.Probe[len("prefix_M"):]); r.SharedTokens != want || r.Prompt[0].Tokens != want {
				t.Errorf("%s: shares %d tokens, want %d", r.Probe, r.SharedTokens, want)
			}
		}
	}
	// 16 + 64 + 256 + 512 blocks, found by five requests each.
	if got := hits(w, 16); len(waves) != 56 || shared != 24 || got != 5*16*(16+64+256+512) {
		t.Errorf("%d probes, %d requests that share, %d tokens found", len(waves), shared, got)
	}
}

func atoi(s string) (n int) {
	_, _ = fmt.Sscan(s, &n)
	return n
}

func TestRealTraces(t *testing.T) {
	for _, c := range []struct {
		name           string
		requests       int
		prompt, output int // sums
		last           time.Duration
	}{
		{"traces/AzureLLMInferenceTrace_code.csv", 8819, 18_059_974, 245_896, 3435948056 * time.Microsecond},
		{"traces/AzureLLMInferenceTrace_conv.csv", 19366, 22_361_870, 4_088_665, 3501721937 * time.Microsecond},
		{"traces/vidur_splitwise_conv.csv", 19366, 22_361_870, 4_088_665, 3501721937 * time.Microsecond},
		{"traces/mooncake_synthetic_trace.jsonl", 3993, 61_194_628, 595_432, 1022025 * time.Millisecond},
	} {
		w, err := ReadTrace(c.name, dataFile(t, c.name), TraceOptions{})
		if err != nil {
			t.Fatal(err)
		}
		prompt, output := 0, 0
		for i := range w.Requests {
			prompt, output = prompt+w.Requests[i].PromptTokens(), output+w.Requests[i].OutputTokens
		}
		if last := w.Requests[len(w.Requests)-1].Due; len(w.Requests) != c.requests || prompt != c.prompt ||
			output != c.output || last != c.last {
			t.Errorf("%s: %d requests, %d and %d tokens, the last at %v; want %+v", c.name, len(w.Requests), prompt, output,
				last, c)
		}
	}
}

// A file that ends in the middle gives every whole line, and says so.
func TestCutTraces(t *testing.T) {
	var lines strings.Builder
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range 20_000 {
		fmt.Fprintf(&lines, `{"index":%d,"due_s":%d,"prompt_tokens":%d,"output_tokens":%d}`+"\n", i, i, 1+rng.IntN(1<<20),
			1+rng.IntN(1<<20))
	}
	whole := lines.String()
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	packed := z.EncodeAll([]byte(whole), nil)
	if w := read(t, string(packed), TraceOptions{}); len(w.Requests) != 20_000 || w.Notes != nil {
		t.Errorf("whole: %d requests, notes %q", len(w.Requests), w.Notes)
	}
	for name, text := range map[string]string{"plain": whole[:len(whole)-10], "packed": string(packed[:len(packed)*3/4])} {
		w := read(t, text, TraceOptions{})
		n := len(w.Requests)
		want := fmt.Sprintf("trace ends in the middle of a line: its %d whole ones are replayed", n)
		if n < 5_000 || n >= 20_000 || name == "plain" && n != 19_999 || len(w.Notes) != 1 || w.Notes[0] != want {
			t.Errorf("%s: %d requests, notes %q", name, n, w.Notes)
		}
	}
}

func TestSameTraceSameWorkload(t *testing.T) {
	file := string(requestsFile(t, build(t, Spec{C: 9, M: 2, BlockSize: 16, Users: 4, Turns: 3, NumMeasurements: 2}), 16))
	a, b := read(t, file, TraceOptions{Seed: 1}), read(t, file, TraceOptions{Seed: 1})
	if !reflect.DeepEqual(a, b) {
		t.Error("two readings differ")
	}
	if c := read(t, file, TraceOptions{Seed: 2}); c.Requests[0].Prompt[0].ID == a.Requests[0].Prompt[0].ID {
		t.Error("another seed has the same tokens")
	}
}

func FuzzReadTrace(f *testing.F) {
	for _, text := range []string{
		"TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n",
		"arrived_at,num_prefill_tokens,num_decode_tokens\n0.0,374,44\n4.3,0,0\n",
		`{"timestamp": 0, "input_length": 1374, "output_length": 44, "hash_ids": [1,2,1]}`,
		`{"due_s":0,"prompt_tokens":3,"output_tokens":9,"session":"a","prefix_hashes":[1],"hash_block":2,"phase":"prime"}` +
			"\n" +
			`{"sent_s":-1,"prompt_tokens":30,"shared_prefix_tokens":5,"session":"a","turn":1,"think_s":-2,"probe":"x"}`,
		"time;in_tokens;output_tokens;session\n1;2;3;a\n1700000000000;2;3;a\n",
	} {
		f.Add([]byte(text), uint16(100), uint8(0))
		f.Add([]byte(text), uint16(0), uint8(3))
	}
	f.Fuzz(func(t *testing.T, data []byte, limit uint16, concurrency uint8) {
		w, err := ReadTrace("fuzz", bytes.NewReader(data),
			TraceOptions{MaxModelLen: int(limit), Concurrency: int(concurrency), BlockSize: 16})
		if err != nil {
			if !strings.HasPrefix(err.Error(), "fuzz") {
				t.Fatalf("the error does not name the file: %v", err)
			}
			return
		}
		if err := w.Validate(); err != nil {
			t.Fatal(err)
		}
		for i := range w.Requests {
			if r := &w.Requests[i]; limit > 1 && r.PromptTokens()+r.OutputTokens > int(limit) {
				t.Fatalf("request %d has %d + %d tokens", i, r.PromptTokens(), r.OutputTokens)
			}
		}
	})
}
