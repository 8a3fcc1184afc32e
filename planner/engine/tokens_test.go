package engine

import (
	"bytes"
	"encoding/json"
	"math"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"
)

const testVocab = 32000

func TestGeneratedTextIsTheGeneratedTokens(t *testing.T) {
	var text []byte
	var want []int32
	for i := range 500 {
		text = appendPiece(text, 42, i)
		want = append(want, outputID(42, i, testVocab))
	}
	if got := tokenize(nil, string(text), testVocab); !slices.Equal(got, want) {
		t.Error("tokenizing the generated text does not give the generated ids")
	}
	distinct := slices.Compact(slices.Sorted(slices.Values(want)))
	if len(distinct) < 300 {
		t.Errorf("only %d different tokens in 500", len(distinct))
	}
}

func TestTokenize(t *testing.T) {
	for text, want := range map[string]int{
		"": 0, "a": 1, "abcd": 1, "abcde": 2, "caffè": 2, strings.Repeat("x", 4001): 1001,
	} {
		got := tokenize(nil, text, testVocab)
		if len(got) != want {
			t.Errorf("%.10q: %d tokens, expected %d", text, len(got), want)
		}
		for _, id := range got {
			if id < reserved || id >= testVocab {
				t.Errorf("%.10q: id %d is out of range", text, id)
			}
		}
	}
	if a, b := tokenize(nil, "ab", testVocab), tokenize(nil, "ab\x00", testVocab); a[0] == b[0] {
		t.Error("pieces of different length have the same id")
	}
}

func TestBlockHashesChain(t *testing.T) {
	prompt := make([]int32, 100)
	for i := range prompt {
		prompt[i] = int32(i)
	}
	seed := promptSeed(prompt)
	base := blockHashes(prompt, 28, 16, testVocab, seed, "")
	if len(base) != 8 {
		t.Fatalf("%d hashes of 128 tokens in blocks of 16", len(base))
	}
	if n := len(slices.Compact(slices.Sorted(slices.Values(base)))); n != 8 {
		t.Errorf("%d different hashes of 8", n)
	}
	// A change at one position changes its block and all behind it, and none before.
	for _, at := range []int{0, 15, 16, 50, 95} {
		other := slices.Clone(prompt)
		other[at]++
		got := blockHashes(other, 28, 16, testVocab, seed, "")
		for i := range base {
			if same := got[i] == base[i]; same != (i < at/16) {
				t.Errorf("token %d changed: block %d same %v", at, i, same)
			}
		}
	}
	for i, h := range blockHashes(prompt, 28, 16, testVocab, seed, "salt") {
		if h == base[i] {
			t.Errorf("a salt leaves block %d as it was", i)
		}
	}
	// The next turn's prompt holds this one's prompt and output: the same blocks.
	for i := range 28 {
		prompt = append(prompt, outputID(seed, i, testVocab))
	}
	if next := blockHashes(prompt, 40, 16, testVocab, promptSeed(prompt), ""); !slices.Equal(next[:8], base) {
		t.Error("the next turn does not begin with the same blocks")
	}
}

func FuzzParseIDs(f *testing.F) {
	for _, s := range []string{"[]", "[1]", "[1, 2,\n3]", "[1,]", "[,1]", "[-1]", "[1.5]", "[2147483648]", "[[1]]",
		"[1 2]", "[0012]", "[1,2", " [ 7 ] ", "[99999999999999999999]", "[1]]", "{}"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		if !json.Valid(raw) {
			return // a body is checked before its fields are read
		}
		got, ok := parseIDs(raw)
		var want []float64
		err := json.Unmarshal(raw, &want)
		trimmed := bytes.TrimSpace(raw)
		if ok && (err != nil || trimmed[0] != '[') {
			t.Fatalf("%q was read as %v", raw, got)
		}
		if !ok {
			for _, v := range want {
				if v != math.Trunc(v) || v < 0 || v > math.MaxInt32 {
					return
				}
			}
			if err == nil && trimmed[0] == '[' && !bytes.ContainsAny(raw, ".eE-n") {
				t.Fatalf("%q was not read", raw)
			}
			return
		}
		if len(got) != len(want) {
			t.Fatalf("%q: %d ids, expected %d", raw, len(got), len(want))
		}
		for i, v := range want {
			if float64(got[i]) != v {
				t.Fatalf("%q: id %d is %d, expected %g", raw, i, got[i], v)
			}
		}
	})
}

// FuzzBody: whatever a client sends, the answer is an error in vLLM's form or a request that may be scheduled.
func FuzzBody(f *testing.F) {
	for _, s := range []string{`{"prompt":[1]}`, `{"prompt":"x","max_tokens":"1e3"}`,
		`{"messages":[{"role":1,"content":[{}]}]}`,
		`{"prompt":[[1],2]}`, `{"prompt":[1],"stream":true,"stream_options":[]}`, `{"prompt":[20],"n":1e99}`, `[`, `0`,
		`{"prompt":[null]}`, `{"prompt":[20],"temperature":"hot","model":null}`} {
		f.Add(s, false)
		f.Add(s, true)
	}
	opt := given(f)
	e, err := New(opt)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { e.Close() })
	f.Fuzz(func(t *testing.T, text string, chat bool) {
		r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(text))
		r.Header.Set("Content-Type", "application/json")
		b, fail := readBody(httptest.NewRecorder(), r)
		if fail == nil {
			var a *ask
			if a, fail = e.parse(b, r.Header, chat); fail == nil {
				if len(a.prompt) == 0 || a.maxTokens < 1 || len(a.prompt)+a.maxTokens > 4096 || a.interval < 1 || a.id == "" {
					t.Fatalf("accepted: %+v", a)
				}
				return
			}
		}
		if fail.status < 400 || fail.status > 499 || fail.kind == "" {
			t.Fatalf("%+v", fail)
		}
	})
}

func TestAlarm(t *testing.T) {
	native, err := newAlarm()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range []alarm{native, newRuntimeAlarm()} {
		for _, d := range []time.Duration{-time.Second, 0, time.Microsecond, 3 * time.Millisecond} {
			at := time.Now().Add(d)
			if err := a.wait(at); err != nil {
				t.Fatal(err)
			}
			if early := time.Until(at); early > 0 {
				t.Errorf("%T woke %v early", a, early)
			}
		}
		done := make(chan error)
		go func() { done <- a.wait(time.Now().Add(time.Hour)) }() // the test would time out
		if err := a.ring(); err != nil {
			t.Error(err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := a.wait(time.Now().Add(time.Hour)); err != nil {
			t.Error(err)
		}
		if err := a.close(); err != nil {
			t.Error(err)
		}
	}
}
