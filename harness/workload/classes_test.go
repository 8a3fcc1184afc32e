package workload

import (
	"errors"
	"math"
	"reflect"
	"testing"
)

func TestParseClasses(t *testing.T) {
	got, err := ParseClasses("chat=0.7, batch=0.3/10/sql/v2,low=1/-3")
	want := []Class{{"chat", 0.7, 0, ""}, {"batch", 0.3, 10, "sql/v2"}, {"low", 1, -3, ""}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := ParseClasses(""); got != nil || err != nil {
		t.Errorf("none: %v, %v", got, err)
	}
	for _, text := range []string{"chat", "chat=", "chat=0", "chat=-1", "=1", "a=1,a=2", "a=1/high", "a=NaN", "a=1,"} {
		var field *FieldError
		if _, err := ParseClasses(text); !errors.As(err, &field) || field.Field != "classes" {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestClassify(t *testing.T) {
	build := func() *Workload {
		w, err := Spec{C: 10, M: 2, B: 1, BlockSize: 16, Users: 2000, Turns: 3, NumWarmup: 0, NumMeasurements: 1,
			OutputLen: "5"}.Build()
		if err != nil {
			t.Fatal(err)
		}
		return w
	}
	classes := []Class{{Name: "chat", Share: 3}, {Name: "batch", Share: 1, Priority: 10, LoRA: "sql"}}
	w, again := build(), build()
	w.Classify(classes, 5)
	again.Classify(classes, 5)
	if !reflect.DeepEqual(w, again) {
		t.Error("the same seed gives other classes")
	}
	if len(w.Notes) != 1 {
		t.Errorf("notes %q", w.Notes)
	}
	of, batch := map[string]string{}, 0
	for i := range w.Requests {
		r := &w.Requests[i]
		switch {
		case r.Phase == Prime:
			if r.Class != "" || r.LoRA != "" {
				t.Fatalf("a priming request has class %q, adapter %q", r.Class, r.LoRA)
			}
			continue
		case r.Turn == 0:
			of[r.Session] = r.Class
		case r.Class != of[r.Session]:
			t.Fatalf("%s changes from %s to %s", r.Session, of[r.Session], r.Class)
		}
		if (r.Class == "batch") != (r.Priority == 10 && r.LoRA == "sql") {
			t.Fatalf("%+v", r)
		}
		if r.Class == "batch" {
			batch++
		}
	}
	if share := float64(batch) / 6000; math.Abs(share-0.25) > 0.04 {
		t.Errorf("a share of %.3f, want 0.25", share)
	}
	w.Requests[1].Class = "own"
	w.Classify(classes, 6)
	if w.Requests[1].Class != "own" {
		t.Error("a trace's class was replaced")
	}
}
