package harness

import (
	"strings"
	"testing"
)

func TestFindShard(t *testing.T) {
	slurm := map[string]string{"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "5", "SLURM_ARRAY_TASK_COUNT": "4"}
	with := func(base map[string]string, pairs ...string) map[string]string {
		out := map[string]string{}
		for k, v := range base {
			out[k] = v
		}
		for i := 0; i < len(pairs); i += 2 {
			out[pairs[i]] = pairs[i+1]
		}
		return out
	}
	pod := map[string]string{"JOB_COMPLETION_INDEX": "2"}
	for _, tt := range []struct {
		name, text string
		env        map[string]string
		want       Shard
		from, err  string
	}{
		{name: "nothing"},
		{name: "given", text: "1/3", want: Shard{1, 3}},
		{name: "one of one is the whole", text: "0/1"},
		{name: "the flag wins", text: "0/2", env: slurm, want: Shard{0, 2}},
		{name: "off in an array", text: "0/1", env: slurm},
		{name: "array", env: slurm, want: Shard{2, 4}, from: "SLURM_ARRAY_TASK_ID"},
		{name: "array with a step", env: with(slurm, "SLURM_ARRAY_TASK_ID", "11", "SLURM_ARRAY_TASK_STEP", "2"),
			want: Shard{3, 4}, from: "SLURM_ARRAY_TASK_ID"},
		{name: "array of one", env: with(slurm, "SLURM_ARRAY_TASK_ID", "5", "SLURM_ARRAY_TASK_COUNT", "1"),
			from: "SLURM_ARRAY_TASK_ID"},
		{name: "array, count given", text: "/4", env: slurm, want: Shard{2, 4}, from: "SLURM_ARRAY_TASK_ID"},
		{name: "array, another count", text: "/5", env: slurm, err: "SLURM_ARRAY_TASK_COUNT is 4"},
		{name: "array with gaps", env: with(slurm, "SLURM_ARRAY_TASK_ID", "9"),
			err: "which is shard 4, and there are 4 shards"},
		{name: "beside the step", env: with(slurm, "SLURM_ARRAY_TASK_STEP", "3"),
			err: "is not SLURM_ARRAY_TASK_MIN 5 plus a multiple"},
		{name: "below the least", env: with(slurm, "SLURM_ARRAY_TASK_ID", "4"), err: "is not SLURM_ARRAY_TASK_MIN 5"},
		{name: "not a number", env: with(slurm, "SLURM_ARRAY_TASK_MIN", "x"), err: `SLURM_ARRAY_TASK_MIN is "x"`},
		{name: "array without a count", env: map[string]string{"SLURM_ARRAY_TASK_ID": "0"}, err: "there are 0 shards"},
		{name: "indexed job", text: "/3", env: pod, want: Shard{2, 3}, from: "JOB_COMPLETION_INDEX"},
		{name: "indexed job without a count", env: pod, err: "give --shard /n"},
		{name: "indexed job, too few", text: "/2", env: pod, err: "which is shard 2, and there are 2 shards"},
		{name: "no index", text: "/3", err: "neither SLURM_ARRAY_TASK_ID nor JOB_COMPLETION_INDEX is set"},
		{name: "no count", text: "1/", err: "expected i/n"},
		{name: "no slash", text: "3", err: "expected i/n"},
		{name: "too large", text: "3/3", err: "expected i/n"},
		{name: "negative", text: "-1/3", err: "expected i/n"},
		{name: "words", text: "a/b", err: "expected i/n"},
		{name: "none at all", text: "0/0", err: "expected i/n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, from, err := FindShard(tt.text, func(k string) string { return tt.env[k] })
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Fatalf("got %v and %v, want an error with %q", got, err, tt.err)
				}
				return
			}
			if err != nil || got != tt.want || from != tt.from {
				t.Errorf("got %v from %q and %v, want %v from %q", got, from, err, tt.want, tt.from)
			}
		})
	}
}

// TestShardsDealEverything: every part belongs to one shard, and Share counts them.
func TestShardsDealEverything(t *testing.T) {
	for n := 1; n <= 7; n++ {
		for parts := range 20 {
			owners := make([]int, parts)
			for i := range n {
				s, own := Shard{i, n}, 0
				for k := range parts {
					if s.Has(k) {
						owners[k]++
						own++
					}
				}
				if s.Share(parts) != own {
					t.Errorf("shard %v has %d of %d parts, Share says %d", s, own, parts, s.Share(parts))
				}
			}
			for k, o := range owners {
				if o != 1 {
					t.Errorf("part %d of %d has %d owners of %d", k, parts, o, n)
				}
			}
		}
	}
}
