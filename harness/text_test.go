package harness_test

import (
	"strings"
	"testing"
	"unicode/utf8"

	"kvtune/harness"
)

func TestWrap(t *testing.T) {
	long := strings.Repeat("x", harness.TextWidth+20)
	// 98 columns: a word of one more fits, a number with its % does not.
	nearly := strings.Repeat("ab ", 32) + "ab"
	tests := []struct {
		name, first, rest, text string
		want                    []string
	}{
		{"nothing", "! ", "  ", "", []string{"!"}},
		{"a short line, its spaces made one", "! ", "  ", " a \n b", []string{"! a b"}},
		{"exactly full", "", "  ", nearly + " c", []string{nearly + " c"}},
		{"one too many", "", "  ", nearly + " cd", []string{nearly, "  cd"}},
		{"a number keeps its %", "", "  ", nearly + " 7 % of it", []string{nearly, "  7 % of it"}},
		{"a word longer than a line", "! ", "    ", "see " + long + " there", []string{"! see", "    " + long, "    there"}},
		{"columns, not bytes", "", "", strings.Repeat("µ", 60) + " " + strings.Repeat("µ", 39),
			[]string{strings.Repeat("µ", 60) + " " + strings.Repeat("µ", 39)}},
	}
	for _, tt := range tests {
		got, want := harness.Wrap(tt.first, tt.rest, tt.text), strings.Join(tt.want, "\n")+"\n"
		if got != want {
			t.Errorf("%s:\n%s\nwant\n%s", tt.name, got, want)
		}
	}
}

// Whatever the text, no word is lost and no line of several words is wider than the terminal.
func FuzzWrap(f *testing.F) {
	f.Add("requests wait 31 s of 106 s, 29 % of the time")
	f.Add(strings.Repeat("word ", 60))
	f.Add(strings.Repeat("%% ", 60))
	f.Add(strings.Repeat("%0 ", 60))
	f.Fuzz(func(t *testing.T, text string) {
		lines := harness.Wrap("! ", "  ", text)
		got := strings.Fields(strings.TrimPrefix(lines, "!"))
		if want := strings.Fields(text); strings.Join(got, " ") != strings.Join(want, " ") {
			t.Errorf("%q became %q", want, got)
		}
		for line := range strings.Lines(lines) {
			line = strings.TrimRight(line, "\n")
			several := len(strings.Fields(strings.TrimPrefix(line, "! "))) > 2
			if several && utf8.RuneCountInString(line) > harness.TextWidth {
				t.Errorf("%d columns: %q", utf8.RuneCountInString(line), line)
			}
		}
	})
}
