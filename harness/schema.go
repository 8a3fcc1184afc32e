package harness

import (
	"fmt"
	"strconv"
	"strings"
)

// CheckSchema compares the schema that a file states with the one that its reader understands, both "kind/major" or
// "kind/major.minor" ("kvtune.result/1"). Another kind and a newer major version are errors; a newer minor one is read
// as far as it is known.
func CheckSchema(got, want string) error {
	kind, major, ok := splitSchema(got)
	wantKind, wantMajor, _ := splitSchema(want)
	switch {
	case !ok:
		return fmt.Errorf("schema %q is not of the form kind/version: expected %s", got, want)
	case kind != wantKind:
		return fmt.Errorf("a file of kind %s: expected %s", kind, want)
	case major > wantMajor:
		return fmt.Errorf("schema %s is newer than this kvtune reads (up to %s): use a newer kvtune", got, want)
	}
	return nil
}

// splitSchema takes "kvtune.result/1" and "kvtune.result/1.2" apart.
func splitSchema(s string) (kind string, major int, ok bool) {
	kind, version, found := strings.Cut(s, "/")
	digits, _, _ := strings.Cut(version, ".")
	major, err := strconv.Atoi(digits)
	return kind, major, found && kind != "" && err == nil && major >= 1
}
