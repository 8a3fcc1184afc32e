package harness

import (
	"fmt"
	"strconv"
	"strings"
)

// Shard is one of Count shares of a work, numbered from 0. The zero Shard is the whole.
type Shard struct {
	Index int `json:"index"`
	Count int `json:"count"`
}

// Whole reports whether the work is not divided.
func (s Shard) Whole() bool { return s.Count == 0 }

// Has reports whether the k-th part of the work, from 0, belongs to the shard: parts are dealt by turns.
func (s Shard) Has(k int) bool { return s.Whole() || k%s.Count == s.Index }

// String is "0/3".
func (s Shard) String() string { return fmt.Sprintf("%d/%d", s.Index, s.Count) }

// Share is how many of n things fall to the shard; all of them to the whole.
func (s Shard) Share(n int) int {
	if s.Whole() {
		return n
	}
	return (n + s.Count - 1 - s.Index) / s.Count
}

const shardForm = "i/n with i from 0 to n-1, or /n where the environment has the index"

// FindShard reads "i/n", or "/n" with i from the environment, or "" with both from there. The environment is that of a
// task of a Slurm array job (SLURM_ARRAY_TASK_ID, _MIN, _STEP and _COUNT) or of a pod of a Kubernetes indexed Job
// (JOB_COMPLETION_INDEX; nothing there says how many there are). from names the variable that was used, "" for none.
// One shard of one, and no shard at all, are the whole.
func FindShard(text string, getenv func(string) string) (s Shard, from string, err error) {
	fail := func(format string, args ...any) (Shard, string, error) {
		return Shard{}, from, fmt.Errorf(format, args...)
	}
	index, count, both := strings.Cut(text, "/")
	if text != "" && !both {
		return fail("%q: expected %s", text, shardForm)
	}
	if count != "" {
		if s.Count, err = strconv.Atoi(count); err != nil || s.Count < 1 {
			return fail("%q: expected %s", text, shardForm)
		}
	} else if both {
		return fail("%q: expected %s", text, shardForm)
	}
	if index != "" {
		if s.Index, err = strconv.Atoi(index); err != nil || s.Index < 0 || s.Index >= s.Count {
			return fail("%q: expected %s", text, shardForm)
		}
		return s.divided(), "", nil
	}
	const slurm, kubernetes = "SLURM_ARRAY_TASK_ID", "JOB_COMPLETION_INDEX"
	number := func(name string, missing int) (int, error) {
		value := getenv(name)
		if value == "" {
			return missing, nil
		}
		n, err := strconv.Atoi(value)
		if err != nil || n < 0 {
			return 0, fmt.Errorf("%s is %q: expected a whole number", name, value)
		}
		return n, nil
	}
	has := 0
	switch {
	case getenv(slurm) != "":
		from = slurm
		var id, least, step int
		for _, v := range []struct {
			name    string
			missing int
			to      *int
		}{{slurm, 0, &id}, {"SLURM_ARRAY_TASK_MIN", 0, &least}, {"SLURM_ARRAY_TASK_STEP", 1, &step},
			{"SLURM_ARRAY_TASK_COUNT", 0, &has}} {
			if *v.to, err = number(v.name, v.missing); err != nil {
				return fail("%w", err)
			}
		}
		if s.Index = (id - least) / max(step, 1); id < least || (id-least)%max(step, 1) != 0 {
			return fail("SLURM_ARRAY_TASK_ID %d is not SLURM_ARRAY_TASK_MIN %d plus a multiple of SLURM_ARRAY_TASK_STEP %d: "+
				"use an array without gaps (--array=0-7), or --shard i/n", id, least, step)
		}
	case getenv(kubernetes) != "":
		if from = kubernetes; s.Count == 0 {
			return fail("JOB_COMPLETION_INDEX is set, and Kubernetes does not say how many completions there are: give " +
				"--shard /n with the Job's .spec.completions, or --shard 0/1 for the whole in every pod")
		}
		if s.Index, err = number(kubernetes, 0); err != nil {
			return fail("%w", err)
		}
	case text == "":
		return Shard{}, "", nil
	default:
		return fail("%q: neither SLURM_ARRAY_TASK_ID nor JOB_COMPLETION_INDEX is set: expected i/n with i from 0 to n-1",
			text)
	}
	switch {
	case s.Count > 0 && has > 0 && s.Count != has:
		return fail("--shard %s, and SLURM_ARRAY_TASK_COUNT is %d: expected the same number", text, has)
	case s.Count == 0:
		s.Count = has
	}
	if s.Index >= s.Count {
		return fail("%s is %s, which is shard %d, and there are %d shards, numbered from 0: use an array without gaps "+
			"(--array=0-%d), or --shard i/n", from, getenv(from), s.Index, s.Count, max(0, s.Count-1))
	}
	return s.divided(), from, nil
}

// divided is s, or the whole where there is nothing to divide.
func (s Shard) divided() Shard {
	if s.Count == 1 {
		return Shard{}
	}
	return s
}
