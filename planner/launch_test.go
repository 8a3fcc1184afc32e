package planner

import (
	"slices"
	"testing"
)

func TestWithoutUsersFlags(t *testing.T) {
	argv := []string{"--max-num-seqs", "64", "--no-enable-chunked-prefill", "--enforce-eager", "--block-size", "32"}
	for _, c := range []struct{ extra, want []string }{
		{nil, argv},
		{[]string{"--load-format", "dummy"}, argv},
		{[]string{"--enforce-eager"}, []string{"--max-num-seqs", "64", "--no-enable-chunked-prefill", "--block-size", "32"}},
		{[]string{"--block-size", "32", "--max-num-seqs", "64"}, []string{"--no-enable-chunked-prefill", "--enforce-eager"}},
	} {
		if got := without(argv, c.extra); !slices.Equal(got, c.want) {
			t.Errorf("without %v: %v, want %v", c.extra, got, c.want)
		}
	}
}
