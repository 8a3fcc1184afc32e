package vllm

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"kvtune/harness/timing"
	"kvtune/kernels"
	"kvtune/kernels/layout"
	"kvtune/kernels/ref"
)

// standIn names the environment variable that makes this program a helper without a GPU.
const standIn = "KVTUNE_TEST_HELPER"

func TestMain(m *testing.M) {
	if how := os.Getenv(standIn); how != "" {
		serve(how)
		return
	}
	goleak.VerifyTestMain(m) // no goroutine outlives the tests
}

// serve is a helper that computes in Go, from nothing but what it is sent, NHD only.
func serve(how string) {
	from, kernel := bufio.NewReader(os.Stdin), map[int]map[string][]byte{}
	for {
		line, err := from.ReadBytes('\n')
		if err != nil {
			return
		}
		var r request
		if err := json.Unmarshal(line, &r); err != nil {
			panic(err)
		}
		data := map[string][]byte{}
		for _, a := range r.Arrays {
			data[a.Name] = make([]byte, a.Bytes)
			if _, err := io.ReadFull(from, data[a.Name]); err != nil {
				panic(err)
			}
		}
		answer := map[string]any{}
		sent := map[string][]byte{}
		switch r.Do {
		case "open":
			answer = map[string]any{"protocol": 1, "vllm": "0.0.test", "torch": "2.0", "device": "a stand-in",
				"attention": "FlashAttention 3"}
			if how == "other protocol" {
				answer["protocol"] = 7
			}
		case "load":
			if r.Case.Op == "append" {
				kernel[r.Kernel] = appended(&r, data)
			} else {
				kernel[r.Kernel] = map[string][]byte{"attention": attention(&r, data)}
			}
			answer["turn"] = 3
			if r.Case.DType == "fp16" {
				fmt.Fprint(os.Stderr, "device kernel image is invalid\n")
				os.Exit(1)
			}
			if r.Case.BlockSize < 16 {
				answer = map[string]any{"unsupported": true, "error": "page size must be a multiple of 16"}
			}
		case "run":
			if how == "dies" {
				fmt.Fprint(os.Stderr, "warming up\nillegal memory access\n")
				os.Exit(3)
			}
		case "output":
			sent = kernel[r.Kernel]
		case "series", "empty":
			seconds := make([]float64, r.Samples)
			for i := range seconds {
				seconds[i] = 1e-6 * float64(i+r.Launches)
			}
			if how == "backwards" {
				seconds[0] = -1
			}
			answer["seconds"] = seconds
		case "close":
			if kernel[r.Kernel] == nil {
				answer["error"] = "no such kernel"
			}
			delete(kernel, r.Kernel)
		}
		var arrays []array
		var tail bytes.Buffer
		for name, b := range sent {
			arrays = append(arrays, array{name, int64(len(b))})
			tail.Write(b)
		}
		answer["arrays"] = arrays
		text, err := json.Marshal(answer)
		if err != nil {
			panic(err)
		}
		os.Stdout.Write(append(append(text, '\n'), tail.Bytes()...))
	}
}

func appended(r *request, data map[string][]byte) map[string][]byte {
	row := r.Case.KVHeads * r.Case.HeadSize * 2
	for i := range len(data["slots"]) / 8 {
		slot := int(binary.LittleEndian.Uint64(data["slots"][i*8:]))
		copy(data["key"][slot*row:], data["new_key"][i*row:(i+1)*row])
		copy(data["value"][slot*row:], data["new_value"][i*row:(i+1)*row])
	}
	return map[string][]byte{"key": data["key"], "value": data["value"]}
}

// attention is softmax(q k / sqrt(size)) v over the tokens that a query sees.
func attention(r *request, data map[string][]byte) []byte {
	s := r.Case
	number := func(name string, at int) float64 { return float64(layout.BF16.Get(data[name], at)) }
	query, width := 0, len(data["table"])/4/len(r.Context)
	out := make([]byte, len(data["query"]))
	for sequence, context := range r.Context {
		queries, seen := r.New[sequence], context+1 // of the first query
		if s.Op == "decode" {
			queries, seen = 1, context
		}
		for q := range queries {
			tokens := seen + q
			for head := range s.Heads {
				at := (query*s.Heads + head) * s.HeadSize
				sums, total := make([]float64, s.HeadSize), 0.0
				for t := range tokens {
					block := binary.LittleEndian.Uint32(data["table"][4*(sequence*width+t/s.BlockSize):])
					row := ((int(block)*s.BlockSize+t%s.BlockSize)*s.KVHeads + head/(s.Heads/s.KVHeads)) * s.HeadSize
					score := 0.0
					for i := range s.HeadSize {
						score += number("query", at+i) * number("key", row+i)
					}
					p := math.Exp(score / math.Sqrt(float64(s.HeadSize)))
					total += p
					for i := range s.HeadSize {
						sums[i] += p * number("value", row+i)
					}
				}
				for i, sum := range sums {
					layout.BF16.Put(out, at+i, float32(sum/total))
				}
			}
			query++
		}
	}
	return out
}

// open starts this program as a helper.
func open(t *testing.T, how string) *Backend {
	t.Helper()
	t.Setenv(standIn, how)
	b, err := Open(os.Args[0], false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

func small(op kernels.Op) kernels.Case {
	c := kernels.Case{Op: op, BlockSize: 16, Heads: 4, KVHeads: 2, HeadSize: 64, Batch: 3, Context: 70, Ragged: true,
		Permuted: true, Seed: 1}
	if op != kernels.OpDecode {
		c.New = 9
	}
	return c
}

func inputs(t *testing.T, c kernels.Case) *kernels.Inputs {
	t.Helper()
	in, err := kernels.NewInputs(c)
	if err != nil {
		t.Fatal(err)
	}
	return in
}

// What the helper is sent suffices to compute a case, and what it sends back is the case's output.
func TestCasesAgreeWithTheReference(t *testing.T) {
	b := open(t, "works")
	if b.VLLM != "0.0.test" || b.Torch != "2.0" || b.Device != "a stand-in" || b.Attention != "FlashAttention 3" {
		t.Errorf("the helper is %+v", b)
	}
	for _, op := range []kernels.Op{kernels.OpDecode, kernels.OpPrefill, kernels.OpAppend} {
		in := inputs(t, small(op))
		want, err := ref.Output(in)
		if err != nil {
			t.Fatal(err)
		}
		k, err := b.Load(in)
		if err != nil {
			t.Fatal(err)
		}
		if err := k.Run(2); err != nil {
			t.Fatal(err)
		}
		got, err := k.Output()
		if err != nil {
			t.Fatal(err)
		}
		if err := in.Case.Check(got, want); err != nil {
			t.Error(err)
		}
		if err := k.Close(); err != nil {
			t.Error(err)
		}
		if err := k.Close(); err == nil || !strings.Contains(err.Error(), "close: no such kernel") {
			t.Errorf("a second close says %v", err)
		}
	}
}

func TestTheHelpersClock(t *testing.T) {
	k, err := open(t, "works").Load(inputs(t, small(kernels.OpDecode)))
	if err != nil {
		t.Fatal(err)
	}
	clock, ok := k.(timing.Clock)
	if !ok {
		t.Fatal("a kernel is no clock: the time of two processes would be measured")
	}
	readings, err := clock.Series(3, 10)
	if err != nil || len(readings) != 3 || readings[2].Seconds != 12e-6 || readings[2].SMClock != nil {
		t.Errorf("Series gives %v, %v", readings, err)
	}
	empty, err := clock.Empty(2)
	if err != nil || len(empty) != 2 || empty[1] != 1e-6 {
		t.Errorf("Empty gives %v, %v", empty, err)
	}
	if turn := k.(*Kernel).Turn(); turn != 3 {
		t.Errorf("%d copies, the helper says 3", turn)
	}
}

func TestWhatVLLMDoesNotHave(t *testing.T) {
	b := open(t, "works")
	c := small(kernels.OpDecode)
	c.BlockSize = 8
	if _, err := b.Load(inputs(t, c)); !errors.Is(err, kernels.ErrUnsupported) ||
		!strings.Contains(err.Error(), "block_size=8") || !strings.Contains(err.Error(), "multiple of 16") {
		t.Errorf("the error is %v", err)
	}
	if _, err := b.Load(inputs(t, small(kernels.OpDecode))); err != nil {
		t.Errorf("after a case that it does not take: %v", err)
	}
	c = small(kernels.OpDecode) // one that ends the process
	c.DType = layout.FP16
	if _, err := b.Load(inputs(t, c)); !errors.Is(err, kernels.ErrUnsupported) ||
		!strings.Contains(err.Error(), "it wrote: device kernel image is invalid") {
		t.Errorf("the error is %v", err)
	}
	k, err := b.Load(inputs(t, small(kernels.OpDecode)))
	if err != nil {
		t.Fatalf("after a case that ended the process: %v", err)
	}
	if err := errors.Join(k.Run(1), k.Close()); err != nil {
		t.Error(err)
	}
}

func TestHelperFails(t *testing.T) {
	b := open(t, "dies")
	k, err := b.Load(inputs(t, small(kernels.OpDecode)))
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time without a helper
		if err := k.Run(1); err == nil || !strings.Contains(err.Error(), "does not answer") ||
			!strings.Contains(err.Error(), "it wrote: illegal memory access") {
			t.Errorf("the error is %v", err)
		}
	}
	if err := k.Close(); err != nil {
		t.Error(err)
	}
	b = open(t, "backwards")
	if k, err = b.Load(inputs(t, small(kernels.OpDecode))); err != nil {
		t.Fatal(err)
	}
	if _, err := k.(*Kernel).Series(2, 1); err == nil || !strings.Contains(err.Error(), "timed -1 s") {
		t.Errorf("the error is %v", err)
	}
	t.Setenv(standIn, "other protocol")
	if _, err := Open(os.Args[0], false); err == nil || !strings.Contains(err.Error(), "protocol 7, expected 1") {
		t.Errorf("the error is %v", err)
	}
	if _, err := Open(filepath.Join(t.TempDir(), "python"), false); err == nil ||
		!strings.Contains(err.Error(), "names a Python that imports vllm") {
		t.Errorf("the error is %v", err)
	}
}

// helper.py itself, in a Python whose torch and vllm are what the test writes.
func TestPythonWithoutVLLM(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("no python3")
	}
	const (
		noGPU = "__version__ = '2.9'\nclass cuda:\n    is_available = staticmethod(lambda: False)\n"
		lacks = "raise ModuleNotFoundError('No module named ' + repr(__name__))\n"
	)
	tests := map[string]struct{ torch, vllm, want string }{
		"no torch": {lacks, "", "No module named 'torch'"},
		"no vLLM":  {noGPU, lacks, "No module named 'vllm'"},
		"no GPU":   {noGPU, "print('hello')\n", "torch 2.9 finds no GPU"},
		"crashes":  {"import os, sys\nsys.stderr.write('bad build\\n'); sys.stderr.flush()\nos._exit(1)\n", "", "bad build"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for file, text := range map[string]string{"torch.py": test.torch, "vllm.py": test.vllm} {
				if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			t.Setenv("PYTHONPATH", dir)
			_, err := Open(python, false)
			if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), "--python") {
				t.Errorf("the error is %v, want one with %q", err, test.want)
			}
		})
	}
}

// The table of a ragged batch is as wide as the longest row.
func TestSquare(t *testing.T) {
	got := fmt.Sprint(square(layout.BlockTable{{5}, {3, 4, 1}, {}}))
	if want := "[5 0 0 3 4 1 0 0 0]"; got != want {
		t.Errorf("square is %s, want %s", got, want)
	}
}

func FuzzReply(f *testing.F) {
	f.Add([]byte("{\"arrays\":[[\"key\",3]]}\nabc"))
	f.Add([]byte("{\"arrays\":[[\"key\",99999999999999]]}\n"))
	f.Add([]byte("{\"seconds\":[1e-6],\"arrays\":null}\n"))
	f.Add([]byte("warning: deprecated\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		answer, sent, err := readReply(bufio.NewReader(bytes.NewReader(text)))
		if err != nil {
			return
		}
		for _, a := range answer.Arrays {
			if _, ok := sent[a.Name]; !ok {
				t.Errorf("array %q is listed and not read", a.Name)
			}
		}
	})
}
