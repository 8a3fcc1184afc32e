package workload

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
)

// dataFile opens a file of public data that is not part of the project.
func dataFile(t *testing.T, path string) io.Reader {
	t.Helper()
	dir := os.Getenv("KVTUNE_DATA")
	if dir == "" {
		dir = filepath.Join("..", "..", "..", "shared", "data")
	}
	data, err := os.ReadFile(filepath.Join(dir, path))
	if err != nil {
		t.Skip("skipped: no data")
	}
	return bytes.NewReader(data)
}

func pointer[T any](v T) *T { return &v }

var full = Record{
	Index: 7, Probe: "mixed32", Phase: Warmup, Due: pointer(1500 * time.Millisecond), Sent: 1500000001, PromptTokens: 100,
	CachedTokens: pointer(0), SharedPrefixTokens: 96, AskedTokens: 4, OutputTokens: 3,
	Tokens: []TokenEvent{{0, 1}, {20 * time.Millisecond, 2}}, EndsOnly: true, FinishReason: "length",
	Error:   "a \"<quoted>\" error\n",
	Session: "user-1", Turn: 2, Think: 250 * time.Millisecond, PrefixHashes: []uint64{1, 1 << 63, 3}, HashBlock: 32,
	Class: "gold", Priority: -1, LoRA: "adapter", Retries: 2,
}

func TestRecordForm(t *testing.T) {
	for _, c := range []struct {
		r    Record
		want string
	}{
		{Record{PromptTokens: 1},
			`{"index":0,"due_s":null,"sent_s":0,"prompt_tokens":1,"cached_tokens":null,"output_tokens":0,` +
				`"token_times_s":[],"finish_reason":null,"error":null}`},
		{full, `{"index":7,"probe":"mixed32","phase":"warmup","due_s":1.5,"sent_s":1.500000001,"prompt_tokens":100,` +
			`"cached_tokens":0,"shared_prefix_tokens":96,"asked_tokens":4,"output_tokens":3,"token_times_s":[[0,1],[0.02,2]],` +
			`"ends_only":true,"finish_reason":"length","error":"a \"\u003cquoted\u003e\" error\n","retries":2,` +
			`"session":"user-1","turn":2,"think_s":0.25,` +
			`"prefix_hashes":[1,9223372036854775808,3],"hash_block":32,"class":"gold","priority":-1,"lora":"adapter"}`},
	} {
		got, err := json.Marshal(&c.r)
		if err != nil || string(got) != c.want {
			t.Errorf("error %v\n got %s\nwant %s", err, got, c.want)
		}
		var back Record
		if err := json.Unmarshal(got, &back); err != nil {
			t.Fatal(err)
		}
		if len(back.Tokens) == 0 {
			back.Tokens = nil
		}
		if !reflect.DeepEqual(back, c.r) {
			t.Errorf("read back %+v, want %+v", back, c.r)
		}
	}
}

// Every field of a Record must survive: a new one that the codec forgets fails here.
func TestFullRecordHasEveryField(t *testing.T) {
	v := reflect.ValueOf(full)
	for i := range v.NumField() {
		if v.Field(i).IsZero() {
			t.Errorf("field %s is not set in the test's record", v.Type().Field(i).Name)
		}
	}
}

func TestRecordReadsWhatIsMissing(t *testing.T) {
	var r Record
	if err := json.Unmarshal([]byte(`{"due_s":2,"prompt_tokens":5,"token_times_s":[ [ 0.5 , 2 ] ,[1e0,3]],"other":{}}`),
		&r); err != nil {
		t.Fatal(err)
	}
	if r.Sent != 2*time.Second || *r.Due != r.Sent || r.OutputTokens != 5 || r.CachedTokens != nil ||
		r.End() != 3*time.Second {
		t.Errorf("got %+v", r)
	}
}

func TestRecordRefuses(t *testing.T) {
	for line, want := range map[string]string{
		`{}`:                                                             "no prompt_tokens",
		`{"prompt_tokens":1}`:                                            "neither due_s nor sent_s",
		`{"prompt_tokens":-1,"sent_s":0}`:                                "prompt_tokens is -1",
		`{"prompt_tokens":1,"sent_s":"x"}`:                               "not a time",
		`{"prompt_tokens":1,"sent_s":1e300}`:                             "not a time",
		`{"prompt_tokens":1,"sent_s":99999999999}`:                       "not a time",
		`{"prompt_tokens":1,"sent_s":0,"cached_tokens":-1}`:              "cached_tokens is -1",
		`{"prompt_tokens":1,"sent_s":0,"token_times_s":[[1,0]]}`:         "has 0 tokens",
		`{"prompt_tokens":1,"sent_s":0,"token_times_s":[[1,1],[0.5,1]]}`: "earlier than the one before",
		`{"prompt_tokens":1,"sent_s":0,"token_times_s":[[1,1,1]]}`:       "expected a list",
		`{"prompt_tokens":1,"sent_s":0,"token_times_s":[1,1]}`:           "expected a list",
		`{"prompt_tokens":1,"sent_s":0,"token_times_s":{}}`:              "expected a list",
		`{"prompt_tokens":1,"sent_s":0,"token_times_s":[[1,1.5]]}`:       "expected a list",
	} {
		var r Record
		if err := json.Unmarshal([]byte(line), &r); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want %q", line, err, want)
		}
	}
}

func TestSecondsAreExact(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"0": 0, "-0.5": -500 * time.Millisecond, "0.000000001": 1, "1.0000000004": time.Second,
		"1.0000000006": time.Second + 1, "8999999999.999999999": 8999999999999999999, "1.5e-3": 1500 * time.Microsecond,
		"00.10": 100 * time.Millisecond, "123456789.123456789": 123456789123456789,
	} {
		got, ok := parseSeconds([]byte(text))
		if !ok || got != want {
			t.Errorf("%s: %d, %v, want %d", text, got, ok, want)
		}
		if back, ok := parseSeconds(appendSeconds(nil, want)); !ok || back != want {
			t.Errorf("%d is written as %s and read as %d", want, appendSeconds(nil, want), back)
		}
	}
	for _, text := range []string{"", "-", ".", "1.2.3", "9000000001", "x", "1e400", "NaN", "999999999999999999999"} {
		if got, ok := parseSeconds([]byte(text)); ok {
			t.Errorf("%q was read as %d", text, got)
		}
	}
}

// The files of a real server's runs, written by another program, are read line by line and lose nothing.
func TestRecordReadsRealFiles(t *testing.T) {
	for name, want := range map[string]struct{ records, tokens int }{
		"default_conc64": {256, 75030}, "default_rate10": {200, 0}, "default_rate20": {400, 0}, "probes_default": {2186, 0},
	} {
		z, err := zstd.NewReader(dataFile(t, "vllm_h200/"+name+"_requests.jsonl.zst"))
		if err != nil {
			t.Fatal(err)
		}
		dec, n, tokens := json.NewDecoder(z), 0, 0
		for dec.More() {
			var raw json.RawMessage
			var r, back Record
			if err := dec.Decode(&raw); err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal(raw, &r); err != nil {
				t.Fatalf("%s, record %d: %v", name, n, err)
			}
			sum := 0
			for _, e := range r.Tokens {
				sum += e.Tokens
			}
			line, err := json.Marshal(r)
			if err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal(line, &back); err != nil || !reflect.DeepEqual(r, back) || !r.OK() ||
				sum != r.OutputTokens {
				t.Fatalf("%s, record %d: error %v, %d tokens in events, %+v", name, n, err, sum, r)
			}
			n, tokens = n+1, tokens+sum
		}
		if z.Close(); n != want.records || want.tokens > 0 && tokens != want.tokens {
			t.Errorf("%s: %d records with %d tokens, want %d with %d", name, n, tokens, want.records, want.tokens)
		}
	}
}

func FuzzRecord(f *testing.F) {
	for _, r := range []Record{{PromptTokens: 1}, full} {
		line, err := json.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(line)
	}
	f.Add([]byte(`{"prompt_tokens":3,"due_s":-0.1,"token_times_s":[[0,1],[1e-9,2]]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var r, back Record
		if json.Unmarshal(data, &r) != nil {
			return
		}
		line, err := json.Marshal(&r)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(line, &back); err != nil {
			t.Fatalf("%v in %s", err, line)
		}
		again, err := json.Marshal(&back)
		if err != nil || !bytes.Equal(line, again) {
			t.Fatalf("error %v\n%s\n%s", err, line, again)
		}
	})
}
