package spec

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// key is a name without case, separators and maker.
func key(name string) string {
	var b strings.Builder
	for _, r := range strings.ToLower(name) {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '.' {
			b.WriteRune(r)
		}
	}
	return strings.TrimPrefix(strings.TrimPrefix(b.String(), "nvidia"), "tesla")
}

// unknown is the error for a name that no table has: the nearest names, then what else works.
func unknown(kind, name string, names []string, advice string) error {
	want := key(name)
	slices.SortStableFunc(names, func(a, b string) int {
		return cmp.Compare(distance(want, key(a)), distance(want, key(b)))
	})
	near := names[:min(4, len(names))]
	return fmt.Errorf("unknown %s %q; nearest known: %s; %s", kind, name, strings.Join(near, ", "), advice)
}

// distance is the number of edits between two names; a name contained in the other is near whatever its length.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			edit := diagonal
			if a[i] != b[j] {
				edit++
			}
			diagonal = row[j+1]
			row[j+1] = min(edit, row[j]+1, row[j+1]+1)
		}
	}
	d := 2 * row[len(b)]
	if a != "" && (strings.Contains(a, b) || strings.Contains(b, a)) {
		d /= 2
	}
	return d
}
