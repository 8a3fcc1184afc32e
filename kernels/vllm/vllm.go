// Package vllm runs attention and cache writes with the kernels of a user's vLLM (FlashAttention,
// reshape_and_cache_flash) in a Python process that imports it, on the same data and between the same events as the
// other backends. So a block size is judged by the kernels that serve.
//
// helper.py says how the two processes speak and what it does between two events.
package vllm

import (
	"bufio"
	"bytes"
	_ "embed"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"

	"kvtune/harness/timing"
	"kvtune/kernels"
	"kvtune/kernels/layout"
)

// protocol is the version of what the two processes say to each other; helper.py has it too.
const protocol = 1

//go:embed helper.py
var program string

// Backend is a running helper. It is used by one goroutine at a time.
type Backend struct {
	// VLLM and Torch are the versions of the packages, Device the GPU, Attention what decode and prefill are.
	VLLM, Torch, Device, Attention string

	python   string
	warm     bool
	process  *exec.Cmd
	requests io.WriteCloser
	replies  *bufio.Reader
	errors   *tail
	next     int // number of the next kernel
	broken   error
}

// Open starts python, which must import vllm, and waits until it has found a GPU. warm lets every launch work on the
// same memory; otherwise launches take copies of the data in turn that are together at least four times the L2 cache.
func Open(python string, warm bool) (*Backend, error) {
	b := &Backend{python: python, warm: warm}
	if err := b.start(); err != nil {
		return nil, err
	}
	return b, nil
}

func (b *Backend) start() error {
	b.process, b.errors, b.broken = exec.Command(b.python, "-c", program), &tail{}, nil
	b.process.Stderr = b.errors
	b.process.WaitDelay = time.Second // for what it started and left, which may have its stderr
	ownGroup(b.process)               // an interrupt from the terminal is this process's to answer
	requests, err := b.process.StdinPipe()
	if err != nil {
		return err
	}
	replies, err := b.process.StdoutPipe()
	if err != nil {
		return err
	}
	b.requests, b.replies = requests, bufio.NewReaderSize(replies, 1<<20)
	if err := b.process.Start(); err != nil {
		return fmt.Errorf("start %s for vLLM's kernels: %w: --python names a Python that imports vllm", b.python, err)
	}
	r, _, err := b.ask(request{Do: "open", Protocol: protocol, Warm: b.warm}, nil)
	if err == nil && r.Protocol != protocol {
		err = fmt.Errorf("the helper speaks protocol %d, expected %d", r.Protocol, protocol)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("vLLM's kernels: %w: %s must import torch and vllm and find a GPU; --python "+
			"names another Python", err, b.python), b.Close())
	}
	b.VLLM, b.Torch, b.Device, b.Attention = r.VLLM, r.Torch, r.Device, r.Attention
	return nil
}

// request is what this process asks for; its bytes follow.
type request struct {
	Do       string  `json:"do"`
	Protocol int     `json:"protocol,omitempty"`
	Warm     bool    `json:"warm"`
	Kernel   int     `json:"kernel,omitempty"`
	Case     *shape  `json:"case,omitempty"`
	Bytes    int64   `json:"bytes,omitempty"`
	Context  []int   `json:"context,omitempty"` // tokens per sequence
	New      []int   `json:"new,omitempty"`
	Launches int     `json:"launches,omitempty"`
	Samples  int     `json:"samples,omitempty"`
	Arrays   []array `json:"arrays,omitempty"`
}

// shape is what the helper must know of a case.
type shape struct {
	Op        string `json:"op"`
	Layout    string `json:"layout"`
	DType     string `json:"dtype"`
	BlockSize int    `json:"block_size"`
	Blocks    int    `json:"blocks"`
	Heads     int    `json:"heads"`
	KVHeads   int    `json:"kv_heads"`
	HeadSize  int    `json:"head_size"`
}

// reply is the helper's answer; its bytes follow.
type reply struct {
	Error       string    `json:"error"`
	Unsupported bool      `json:"unsupported"`
	Protocol    int       `json:"protocol"`
	VLLM        string    `json:"vllm"`
	Torch       string    `json:"torch"`
	Device      string    `json:"device"`
	Attention   string    `json:"attention"`
	Turn        int       `json:"turn"`
	Seconds     []float64 `json:"seconds"`
	Arrays      []array   `json:"arrays"`
}

// array is the name of an array and its bytes: ["key", 4096].
type array struct {
	Name  string
	Bytes int64
}

func (a array) MarshalJSON() ([]byte, error) { return json.Marshal([]any{a.Name, a.Bytes}) }

func (a *array) UnmarshalJSON(text []byte) error {
	return json.Unmarshal(text, &[]any{&a.Name, &a.Bytes})
}

// most is how many bytes an array of a reply may have: what a damaged reply asks for is not allocated.
const most = 1 << 36

// ask sends a request with its data and reads the answer to it. An error of a kernel leaves the helper running; after
// one of the conversation every further request fails alike.
func (b *Backend) ask(r request, data map[string][]byte) (*reply, map[string][]byte, error) {
	if b.broken != nil {
		return nil, nil, b.broken
	}
	answer, sent, err := b.exchange(r, data)
	if err != nil {
		b.end(time.Second) // what it wrote last may still be on its way
		b.broken = fmt.Errorf("%s: the helper does not answer: %w%s", r.Do, err, b.errors.last())
		return nil, nil, b.broken
	}
	switch {
	case answer.Unsupported:
		return nil, nil, fmt.Errorf("%w: %s", kernels.ErrUnsupported, answer.Error)
	case answer.Error != "":
		return nil, nil, fmt.Errorf("%s: %s", r.Do, answer.Error)
	}
	return answer, sent, nil
}

func (b *Backend) exchange(r request, data map[string][]byte) (*reply, map[string][]byte, error) {
	names := slices.Sorted(maps.Keys(data))
	for _, name := range names {
		r.Arrays = append(r.Arrays, array{name, int64(len(data[name]))})
	}
	line, err := json.Marshal(r)
	if err != nil {
		return nil, nil, err
	}
	if _, err := b.requests.Write(append(line, '\n')); err != nil {
		return nil, nil, err
	}
	for _, name := range names {
		if _, err := b.requests.Write(data[name]); err != nil {
			return nil, nil, err
		}
	}
	return readReply(b.replies)
}

// readReply reads a reply and the arrays behind it.
func readReply(from *bufio.Reader) (*reply, map[string][]byte, error) {
	line, err := from.ReadBytes('\n')
	if err != nil {
		return nil, nil, err
	}
	answer := &reply{}
	if err := json.Unmarshal(line, answer); err != nil {
		return nil, nil, fmt.Errorf("%.80q is not a reply: %w", line, err)
	}
	sent := map[string][]byte{}
	for _, a := range answer.Arrays {
		if a.Bytes < 0 || a.Bytes > most {
			return nil, nil, fmt.Errorf("array %q has %d bytes", a.Name, a.Bytes)
		}
		var data bytes.Buffer
		if _, err := io.CopyN(&data, from, a.Bytes); err != nil {
			return nil, nil, fmt.Errorf("array %q: %w", a.Name, err)
		}
		sent[a.Name] = data.Bytes()
	}
	return answer, sent, nil
}

// Name is "vllm".
func (*Backend) Name() string { return "vllm" }

// Peak has none: the device's own limits are another backend's to measure.
func (*Backend) Peak(kernels.Peak) (kernels.Kernel, float64, error) { return nil, 0, nil }

// Close ends the helper, if need be by force.
func (b *Backend) Close() error {
	err := b.end(10 * time.Second)
	var exit *exec.ExitError
	if b.broken != nil || errors.As(err, &exit) {
		return nil // how it ended has been said, or does not matter any more
	}
	return err
}

// end waits until the helper has ended and all that it wrote is read, after patience by force.
func (b *Backend) end(patience time.Duration) error {
	if b.process.ProcessState != nil {
		return nil // it has been waited for
	}
	b.requests.Close() // it ends with its input
	stop := time.AfterFunc(patience, func() { b.process.Process.Kill() })
	defer stop.Stop()
	return b.process.Wait()
}

// Load hands the inputs to the helper. The error wraps [kernels.ErrUnsupported] where vLLM's kernels do not take the
// case: operations beside decode, prefill and append, x-packed, fp8, block sizes that the kernel refuses, copies that
// the device's memory does not hold; and where they end the process, as FlashAttention does when its library has no
// image for a dtype. Then kernels that were loaded before are lost, and a new helper is there for the next case.
//
// FlashAttention multiplies what lies in unused slots of a block by a probability of 0, which leaves NaN where it finds
// NaN; the helper puts 0 there, since a server's cache holds numbers.
func (b *Backend) Load(in *kernels.Inputs) (kernels.Kernel, error) {
	if err := in.Case.Validate(); err != nil {
		return nil, err
	}
	c := in.Case
	b.next++
	r := request{Do: "load", Kernel: b.next, Bytes: c.Bytes(), Case: &shape{Op: string(c.Op), Layout: c.Layout.String(),
		DType: c.DType.String(), BlockSize: c.BlockSize, Blocks: in.Shape.Blocks, Heads: c.Heads, KVHeads: c.KVHeads,
		HeadSize: c.HeadSize}}
	for _, s := range in.Sequences {
		r.Context, r.New = append(r.Context, s.Context), append(r.New, s.New)
	}
	// What the helper refuses by its axes alone is not worth the data.
	data := map[string][]byte{}
	if taken(c) {
		data = map[string][]byte{"key": in.Key, "value": in.Value}
		if c.Op == kernels.OpAppend {
			data["new_key"], data["new_value"], data["slots"] = in.NewKey, in.NewValue, littleEndian(in.Slots)
		} else {
			data["query"], data["table"] = in.Query, littleEndian(square(in.Table))
		}
	}
	started := b.broken == nil
	answer, _, err := b.ask(r, data)
	if err != nil && started && b.broken != nil {
		err = fmt.Errorf("%w: %w", kernels.ErrUnsupported, err)
		b.Close()
		if again := b.start(); again != nil {
			b.broken = again
			return nil, fmt.Errorf("case %s: %w", c.Name(), again)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("case %s: %w", c.Name(), err)
	}
	return &Kernel{backend: b, number: r.Kernel, c: c, turn: answer.Turn}, nil
}

// taken says whether the helper looks at more than the axes of a case.
func taken(c kernels.Case) bool {
	op := c.Op == kernels.OpDecode || c.Op == kernels.OpPrefill || c.Op == kernels.OpAppend
	return op && c.Layout != layout.XPacked && c.DType != layout.FP8
}

// square is the block table as vLLM has it: as many blocks for every sequence as the longest has, 0 where there is
// none.
func square(table layout.BlockTable) []int32 {
	longest := 0
	for _, row := range table {
		longest = max(longest, len(row))
	}
	flat := make([]int32, longest*len(table))
	for i, row := range table {
		copy(flat[i*longest:], row)
	}
	return flat
}

func littleEndian(numbers any) []byte {
	b, err := binary.Append(nil, binary.LittleEndian, numbers)
	if err != nil {
		panic(err) // slices of numbers of a fixed size
	}
	return b
}

// Kernel is a case in the helper.
type Kernel struct {
	backend *Backend
	number  int
	turn    int
	c       kernels.Case
}

// Turn is how many copies of the inputs launches take in turn.
func (k *Kernel) Turn() int { return k.turn }

// Run launches the kernel n times, beginning with the first copy of the inputs.
func (k *Kernel) Run(n int) error {
	_, _, err := k.backend.ask(request{Do: "run", Kernel: k.number, Launches: n}, nil)
	return err
}

// Output copies out what the last run left.
func (k *Kernel) Output() (kernels.Output, error) {
	_, sent, err := k.backend.ask(request{Do: "output", Kernel: k.number}, nil)
	if err != nil {
		return kernels.Output{}, err
	}
	out := kernels.Output{Key: sent["key"], Value: sent["value"]}
	if data := sent["attention"]; data != nil {
		out.Attention = make([]float32, len(data)/2)
		for i := range out.Attention {
			out.Attention[i] = k.c.QueryDType().Get(data, i)
		}
	}
	return out, nil
}

// Series takes samples of launches each, a sample being one CUDA graph between two events.
func (k *Kernel) Series(samples, launches int) ([]timing.Reading, error) {
	seconds, err := k.seconds(request{Do: "series", Kernel: k.number, Samples: samples, Launches: launches})
	readings := make([]timing.Reading, len(seconds))
	for i, s := range seconds {
		readings[i].Seconds = s
	}
	return readings, err
}

// Empty takes samples of nothing: the seconds between two events.
func (k *Kernel) Empty(samples int) ([]float64, error) {
	return k.seconds(request{Do: "empty", Kernel: k.number, Samples: samples})
}

func (k *Kernel) seconds(r request) ([]float64, error) {
	answer, _, err := k.backend.ask(r, nil)
	if err != nil {
		return nil, err
	}
	for _, s := range answer.Seconds {
		if math.IsNaN(s) || s < 0 {
			return nil, fmt.Errorf("%s: the helper timed %v s", r.Do, s)
		}
	}
	return answer.Seconds, nil
}

// Close gives the memory back.
func (k *Kernel) Close() error {
	if k.backend.broken != nil {
		return nil
	}
	_, _, err := k.backend.ask(request{Do: "close", Kernel: k.number}, nil)
	return err
}

// tail keeps the end of what the helper writes to its error output.
type tail struct {
	mu   sync.Mutex
	text []byte
}

func (t *tail) Write(p []byte) (int, error) {
	const most = 4096
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, p...)
	if n := len(t.text) - most; n > 0 {
		t.text = append(t.text[:0], t.text[n:]...)
	}
	return len(p), nil
}

// last is the last line with text, behind a colon.
func (t *tail) last() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	lines := strings.Split(strings.TrimSpace(string(t.text)), "\n")
	if last := lines[len(lines)-1]; last != "" {
		return ": it wrote: " + last
	}
	return ""
}
