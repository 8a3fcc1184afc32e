package vllm

import (
	"io"
	"os"
	"regexp"
	"strings"
)

const (
	maxLogTail = 1 << 20 // the end of a log that is looked at
	maxLine    = 500     // what is shown of one line, in bytes
	maxLines   = 5
)

// Cause is the kind of reason for which a server ended.
type Cause string

const (
	CauseFlag    Cause = "flag"     // this version does not take a flag or its value
	CausePort    Cause = "port"     // somebody else listens there
	CauseBlock   Cause = "block"    // the attention backend refuses the block size
	CauseKVCache Cause = "kv cache" // what is left of the memory does not hold the KV cache that is needed
	CauseMemory  Cause = "memory"   // the device's or the machine's memory ran out
	CauseConfig  Cause = "config"   // values that do not go together, or that this model or machine cannot have
	CauseModel   Cause = "model"    // the model is not there, or needs permission
	CauseDevice  Cause = "device"   // no device
	CauseKilled  Cause = "killed"   // a signal from outside
)

// symptom is a line in a server's log that tells why it ended, and what to do about it.
type symptom struct {
	cause      Cause
	pattern    *regexp.Regexp
	suggestion string
}

// symptoms in order of how decisive they are: the first that matches any line wins. Wordings are those of vLLM 0.18 to
// 0.33 and PyTorch.
func symptoms() []symptom {
	s := func(cause Cause, pattern, suggestion string) symptom {
		return symptom{cause, regexp.MustCompile(pattern), suggestion}
	}
	return []symptom{
		s(CauseFlag, `unrecognized arguments|error: argument|invalid choice|invalid .* value:`,
			"this version of vLLM does not take the flag or value: leave it out, or use the version that the plan is for"),
		s(CausePort, `(?i)address already in use`, "the port is taken: stop what listens there, or choose another --port"),
		s(CauseBlock, `No common block size|[Bb]lock.?size.*(not supported|must be|multiple)`,
			"the attention backend refuses this block_size: use a multiple of 16 on a GPU, of 32 on the CPU"),
		s(CauseKVCache,
			`(?i)kv cache is needed, which is larger|larger than the (available|maximum number of tokens).*KV cache|`+
				`No available memory for the cache blocks`,
			"the KV cache is too small: lower max_model_len, or raise gpu_memory_utilization"),
		s(CauseMemory,
			`(?i)out ?of ?memory|Free memory on device .* is less than|Cannot allocate memory|not enough memory|MemoryError`,
			"memory ran out: lower gpu_memory_utilization, max_num_seqs or max_num_batched_tokens, or free the device"),
		s(CauseConfig, `max_num_batched_tokens.*max_num_seqs|max_num_batched_tokens.*max_model_len`,
			"set max_num_batched_tokens and max_num_seqs together: tokens at least sequences, and at least max_model_len "+
				"without chunked prefill"),
		s(CauseConfig, `max_model_len|maximum model length|derived max_model_len`,
			"max_model_len does not fit the model: lower it"),
		s(CauseModel, `(?i)gated repo|401 Client Error|access to model .* is restricted`,
			"the model needs permission: log in to the model hub, or use a local folder"),
		s(CauseModel, `(?i)RepositoryNotFound|LocalEntryNotFound|is not a local folder|not a valid model identifier|`+
			`Repo id must|config\.json|couldn't connect to`,
			"the model was not found: give a local folder with config.json, or check the name and the network"),
		s(CauseDevice, `(?i)failed to infer device type|no CUDA GPUs|NVIDIA driver|libcuda`,
			"vLLM sees no device: check the driver and the installed build"),
		s(CauseKilled, `(?i)^killed$|oom-kill`, "the system killed it, most likely for memory"),
		s(CauseConfig, `ValueError:|ValidationError|NotImplementedError:|AssertionError`,
			"vLLM refuses the configuration: see the line"),
		s("", `\w+(Error|Exception): `, ""),
	}
}

// diagnose finds the lines of a log that say why the server ended.
func diagnose(path string) *DiedError {
	all := tail(path, -1)
	var lines []string
	for _, sym := range symptoms() {
		for _, l := range all {
			if sym.pattern.MatchString(l) && (len(lines) == 0 || lines[len(lines)-1] != l) && len(lines) < maxLines {
				lines = append(lines, l)
			}
		}
		if len(lines) > 0 {
			return &DiedError{Lines: lines, Cause: sym.cause, Suggestion: sym.suggestion}
		}
	}
	return &DiedError{Lines: all[max(0, len(all)-maxLines):]}
}

// logPrefix is what vLLM puts before a message: "(EngineCore pid=7) ERROR 11-24 02:06:07 [core.py:99] ".
var logPrefix = regexp.MustCompile(`^(\([^)]*\) ?)?` +
	`((DEBUG|INFO|WARNING|ERROR|CRITICAL) \d\d-\d\d \d\d:\d\d:\d\d \[[^\]]*\] ?)?`)

// escapes are terminal colours.
var escapes = regexp.MustCompile("\x1b\\[[0-9;]*[A-Za-z]")

// tail is the last n lines of a log that are not blank, all for n < 0, without vLLM's prefixes. A log that cannot be
// read has none.
func tail(path string, n int) []string {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	want := int64(maxLogTail)
	if n >= 0 {
		want = min(want, int64(n+4)*4096)
	}
	if size, err := f.Seek(0, io.SeekEnd); err == nil {
		_, _ = f.Seek(max(0, size-want), io.SeekStart) // a failure shows in the read
	}
	text, err := io.ReadAll(io.LimitReader(f, want))
	if err != nil {
		return nil
	}
	var lines []string
	for _, l := range strings.FieldsFunc(string(text), func(r rune) bool { return r == '\n' || r == '\r' }) {
		l = escapes.ReplaceAllString(l, "")
		l = strings.TrimSpace(logPrefix.ReplaceAllString(strings.TrimSpace(l), ""))
		if l == "" {
			continue
		}
		if len(l) > maxLine {
			l = strings.ToValidUTF8(l[:maxLine], "") + " ..."
		}
		lines = append(lines, l)
	}
	if n >= 0 {
		lines = lines[max(0, len(lines)-n):]
	}
	return lines
}
