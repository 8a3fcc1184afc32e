package harness

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// TextWidth is the number of columns that text for a terminal keeps to.
const TextWidth = 100

// Wrap breaks text into lines of at most [TextWidth] columns, with first before the first line and rest before the
// others, each ended, without spaces at the end. A word that is longer has a line of its own, and a number is not
// parted from its %.
func Wrap(first, rest, text string) string {
	var b strings.Builder
	line, empty := first, true
	for _, word := range words(text) {
		if !empty && utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > TextWidth {
			fmt.Fprintln(&b, strings.TrimRight(line, " "))
			line, empty = rest, true
		}
		if !empty {
			line += " "
		}
		line += word
		empty = false
	}
	fmt.Fprintln(&b, strings.TrimRight(line, " "))
	return b.String()
}

// numeral says that a word ends in a digit.
func numeral(word string) bool {
	end := word[len(word)-1]
	return '0' <= end && end <= '9'
}

// words are what a line may be broken between.
func words(text string) (words []string) {
	for _, word := range strings.Fields(text) {
		last := len(words) - 1
		if last >= 0 && strings.HasPrefix(word, "%") && numeral(words[last]) && !strings.Contains(words[last], " ") {
			words[last] += " " + word
		} else {
			words = append(words, word)
		}
	}
	return words
}
