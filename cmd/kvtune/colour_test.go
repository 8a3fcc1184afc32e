package main

import (
	"strings"
	"testing"
)

func TestPainter(t *testing.T) {
	var b strings.Builder
	p := &painter{w: &b}
	for _, part := range []string{"KEEP; SIMU", "LATED\n! a run is PARTIAL\nplain\nSLO MISSED: p99", " TTFT"} {
		if n, err := p.Write([]byte(part)); n != len(part) || err != nil {
			t.Fatalf("%d, %v", n, err)
		}
	}
	if err := p.flush(); err != nil {
		t.Fatal(err)
	}
	want := bold + "KEEP; " + yellow + "SIMULATED" + plain + bold + plain + "\n" +
		yellow + "! a run is " + red + "PARTIAL" + plain + yellow + plain + "\n" +
		"plain\n" +
		"SLO " + red + "MISSED" + plain + ": p99 TTFT"
	if b.String() != want {
		t.Errorf("%q, want %q", b.String(), want)
	}
	// Without its colours it is the text.
	if bare := strings.NewReplacer(bold, "", yellow, "", red, "", plain, "").Replace(b.String()); bare !=
		"KEEP; SIMULATED\n! a run is PARTIAL\nplain\nSLO MISSED: p99 TTFT" {
		t.Errorf("%q", bare)
	}
}
