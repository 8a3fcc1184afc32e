package workload

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// trace of an import, in short: due, lengths, session and turn.
func imported(im *Imported) string {
	var b strings.Builder
	for i := range im.Records {
		r := &im.Records[i]
		fmt.Fprintf(&b, "%v %d>%d", *r.Due, r.PromptTokens, r.AskedTokens)
		if r.Session != "" {
			fmt.Fprintf(&b, " %s.%d", r.Session, r.Turn)
		}
		if r.Class != "" || r.Priority != 0 || r.LoRA != "" {
			fmt.Fprintf(&b, " %s/%d/%s", r.Class, r.Priority, r.LoRA)
		}
		b.WriteString("; ")
	}
	return strings.TrimSuffix(b.String(), "; ")
}

func TestImport(t *testing.T) {
	const want = "0s 100>10 c1.0; 500ms 200>20 c2.0; 1s 130>5 c1.1"
	for _, c := range []struct{ name, columns, log, want string }{
		{"as the issue has it", "time=ts,in=prompt_tokens,out=completion_tokens,session=conv_id",
			"ts,user,prompt_tokens,completion_tokens,conv_id,prompt\n1700000000,x,100,10,alice,\"hello, you\"\n" +
				"1700000000.5,y,200,20,bob,secret\n1700000001,z,130,5,alice,more\n", want},
		{"out of order, other separator", "time=when,in=p,out=c,session=s",
			"when;p;c;s\n2026-01-01 00:00:01;130;5;a\n2026-01-01 00:00:00;100;10;a\n2026-01-01 00:00:00.5;200;20;b\n",
			"0s 100>10 c1.0; 500ms 200>20 c2.0; 1s 130>5 c1.1"},
		{"found by their names", "", "timestamp,input_tokens,output_tokens,session_id\n0,100,10,a\n0.5,200,20,b\n1,130,5,a\n",
			want},
		{"JSON lines", "time=ts,in=usage.prompt_tokens,out=usage.completion_tokens,session=meta.conv",
			`{"level":"info","msg":"started"}` + "\n" +
				`{"ts":"2026-01-01T00:00:00Z","usage":{"prompt_tokens":100,"completion_tokens":10},"meta":{"conv":"a"},` +
				`"prompt":"secret"}` + "\n" +
				`{"ts":"2026-01-01T00:00:00.5Z","usage":{"prompt_tokens":200,"completion_tokens":20},"meta":{"conv":17}}` + "\n" +
				`{"ts":"2026-01-01T00:00:00.7Z","status":503,"usage":null}` + "\n" +
				`{"ts":"2026-01-01T00:00:01Z","usage":{"prompt_tokens":130.0,"completion_tokens":5},"meta":{"conv":"a"}}`, want},
		{"JSON lines, found", "", `{"time_ms":1000,"request":{"promptTokens":100},"usage":{"output_tokens":10}}` + "\n" +
			`{"time_ms":1500,"request":{"promptTokens":200},"usage":{"output_tokens":20}}` + "\n", "0s 100>10; 500ms 200>20"},
		{"classes", "time=t,in=i,out=o,class=k,priority=p,lora=l", "t,i,o,k,p,l\n0,1,2,batch,5,sql\n1,3,4,,,\n",
			"0s 1>2 batch/5/sql; 1s 3>4"},
	} {
		columns, err := ParseColumns(c.columns)
		if err != nil {
			t.Fatal(err)
		}
		im, err := Import("log", strings.NewReader(c.log), columns)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if got := imported(im); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
		if text := fmt.Sprintf("%+v", im); strings.Contains(text, "secret") || strings.Contains(text, "alice") {
			t.Errorf("%s: text of the log came through: %s", c.name, text)
		}
	}
}

// What is written is a trace that replays: conversations go on where they were.
func TestImportReplays(t *testing.T) {
	log := "ts,in,out,conv\n0,100,10,a\n1,50,5,b\n3,130,7,a\n"
	columns, err := ParseColumns("time=ts,in=in,out=out,session=conv")
	if err != nil {
		t.Fatal(err)
	}
	im, err := Import("log", strings.NewReader(log), columns)
	if err != nil {
		t.Fatal(err)
	}
	var lines strings.Builder
	for i := range im.Records {
		line, err := im.Records[i].MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		lines.Write(append(line, '\n'))
	}
	w := read(t, lines.String(), TraceOptions{})
	if got := times(w); got != "0s 100>10 1s 50>5 3s 130>7" {
		t.Errorf("replayed as %s", got)
	}
	last := w.Requests[2]
	if !slices.Equal(last.Prompt[:1], w.Requests[0].Prompt) || last.SharedTokens != 110 {
		t.Errorf("the second turn does not extend the first: %+v", last)
	}
}

func TestImportErrors(t *testing.T) {
	for _, c := range []struct{ columns, log, want string }{
		{"", "", "log is empty"},
		{"", "a,b\n1,2\n", `log, line 1: no column for the time in ["a" "b"]: name it with time=COLUMN`},
		{"time=a,in=b,out=x", "a,b\n1,2\n", `log, line 1: no column "x": there are ["a" "b"]`},
		{"time=a,in=b,out=c", "a,b,c\n1,many,3\n", `log, line 2: b: "many" is not a whole number`},
		{"time=a,in=b,out=c", "a,b,c\nsoon,2,3\n", `log, line 2: a: "soon" is not a time`},
		{"time=a,in=b,out=c", "a,b,c\n1,2\n", "log, line 2: wrong number of fields"},
		{"time=a,in=b,out=c,priority=d", "a,b,c,d\n1,2,3,high\n", `log, line 2: d: "high" is not a whole number`},
		{"time=a,in=b,out=c", "a,b,c\n1,,\n", "log has no requests: 1 lines say no token counts"},
		{"time=a,in=b,out=c", `{"a":1,"b":2}` + "\n", `log, line 1: no column "c"`},
		{"time=a,in=b,out=c", `{"a":1,"b":2,"c":3}` + "\n{]\n{}\n", "log, line 2: invalid character"},
	} {
		columns, err := ParseColumns(c.columns)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Import("log", strings.NewReader(c.log), columns); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v, want %q", c.log, err, c.want)
		}
	}
	for text, want := range map[string]string{
		"time": "expected KEY=COLUMN", "when=ts": "a key of class, in, lora, out, priority, session, time",
		"in=": "expected KEY=COLUMN", "in=a,in=b": "in is given twice, as a and b",
	} {
		if _, err := ParseColumns(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

func FuzzImport(f *testing.F) {
	f.Add([]byte("ts,in,out\n1,2,3\n"), "time=ts,in=in,out=out")
	f.Add([]byte(`{"ts":1,"u":{"prompt_tokens":2,"output_tokens":3}}`), "time=ts")
	f.Fuzz(func(t *testing.T, data []byte, text string) {
		columns, err := ParseColumns(text)
		if err != nil {
			return
		}
		im, err := Import("fuzz", strings.NewReader(string(data)), columns)
		if err != nil {
			if !strings.HasPrefix(err.Error(), "fuzz") {
				t.Fatalf("an error without the file's name: %v", err)
			}
			return
		}
		for i := range im.Records {
			r := &im.Records[i]
			if r.Due == nil || *r.Due < 0 || i == 0 && *r.Due != 0 || r.PromptTokens < 0 || r.AskedTokens < 0 || r.Index != i {
				t.Fatalf("record %d: %+v", i, r)
			}
		}
	})
}
