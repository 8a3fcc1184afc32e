package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"kvtune/harness/profile"
)

// plainBeat is how often a run that goes on says so where there is no terminal.
const plainBeat = 10 * time.Second

// screen shows progress on stderr: on a terminal a bar with an estimate of what is left and, below it, two lines with
// how the run goes; elsewhere one line per stage, and one every ten seconds.
type screen struct {
	w io.Writer

	mu    sync.Mutex
	bars  *mpb.Progress
	bar   *mpb.Bar
	title string
	vital [2]string     // what vitals says, below the bar
	began time.Time     // of the stage
	said  time.Duration // when the last plain line was, from the stage's or the run's begin
}

func newScreen(w io.Writer) *screen {
	s := &screen{w: w}
	if f, ok := w.(*os.File); ok && isTerminal(f) && os.Getenv("TERM") != "dumb" {
		s.bars = mpb.New(mpb.WithOutput(w), mpb.WithWidth(40), mpb.WithRefreshRate(200*time.Millisecond))
	}
	return s
}

func isTerminal(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// stage says what begins.
func (s *screen) stage(title string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.finish()
	s.begin(title)
}

func (s *screen) begin(title string) {
	s.title, s.vital, s.said, s.began = title, [2]string{}, 0, time.Now()
	if s.bars == nil {
		fmt.Fprintf(s.w, "kvtune: %s\n", title)
	}
}

// detail says what the present stage is at. A server's log has hundreds of lines: without a terminal only a few are
// shown.
func (s *screen) detail(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if text == "" {
		return
	}
	if s.title == "" { // what comes before the first stage is a server's start
		s.begin("starting the server")
	}
	if s.bars != nil {
		fmt.Fprintf(s.w, "\r\033[K%.*s", 100, s.title+": "+text)
		return
	}
	if time.Since(s.began)-s.said >= 3*plainBeat {
		s.said = time.Since(s.began)
		fmt.Fprintf(s.w, "kvtune: %s, %v: %.200s\n", s.title, s.said.Round(time.Second), text)
	}
}

// progress follows the requests of the present stage.
func (s *screen) progress(p profile.Progress) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.bars == nil {
		if p.Elapsed-s.said >= plainBeat {
			s.said = p.Elapsed
			client, server := vitals(p)
			fmt.Fprintf(s.w, "kvtune: %s: %d/%d requests after %v: %s\n", s.title, p.Ended, p.Total,
				p.Elapsed.Round(time.Second), strings.TrimSuffix(client+", "+server, ", "))
		}
		return
	}
	s.vital[0], s.vital[1] = vitals(p)
	s.set(p.Ended, p.Total)
}

// count follows work that is not requests, on a terminal only.
func (s *screen) count(done, total int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.bars != nil {
		s.set(done, total)
	}
}

// set moves the bar of the present stage.
func (s *screen) set(done, total int) {
	if s.bar == nil {
		s.bar = s.bars.AddBar(int64(total), mpb.BarRemoveOnComplete(), mpb.BarWidth(20),
			mpb.PrependDecorators(decor.Name(s.title+" ", decor.WCSyncSpaceR)),
			mpb.AppendDecorators(decor.CountersNoUnit("%d/%d "), decor.AverageETA(decor.ET_STYLE_GO)),
			mpb.BarBtmExtender(s.below(0), s.below(1)))
	}
	s.bar.SetCurrent(int64(done))
}

// below is a line of vitals below the bar, which asks for it in a goroutine of its own. TryLock: who waits for the bar
// to end holds the lock.
func (s *screen) below(line int) mpb.BarFiller {
	return mpb.BarFillerFunc(func(w io.Writer, st decor.Statistics) error {
		var text string
		if s.mu.TryLock() {
			text = s.vital[line]
			s.mu.Unlock()
		}
		_, err := fmt.Fprintf(w, "  %.*s\n", max(0, st.AvailableWidth-2), text)
		return err
	})
}

// vitals are how a run goes, as the client sees it ("12.5/s, 32 in flight, TTFT 120/340 ms, ITL 8/12 ms (p50/p99), lag
// 0.1 ms") and as the server does ("1800 token/s, KV 45 %, 3 waiting"). What is not known yet is left out.
func vitals(p profile.Progress) (client, server string) {
	parts := []string{fmt.Sprintf("%.3g/s", p.Rate), fmt.Sprintf("%d in flight", max(0, p.Sent-p.Ended))}
	add := func(format string, args ...any) { parts = append(parts, fmt.Sprintf(format, args...)) }
	ms := func(d time.Duration) string {
		if v := d.Seconds() * 1e3; v < 1000 {
			return fmt.Sprintf("%.3g", v)
		}
		return fmt.Sprint(d.Milliseconds())
	}
	if p.Failed > 0 {
		add("%d FAILED", p.Failed)
	}
	if p.TTFT.P99 > 0 {
		add("TTFT %s/%s ms", ms(p.TTFT.P50), ms(p.TTFT.P99))
	}
	if p.ITL.P99 > 0 {
		add("ITL %s/%s ms (p50/p99)", ms(p.ITL.P50), ms(p.ITL.P99))
	}
	if p.Lag.P99 > 0 {
		add("lag %s ms", ms(p.Lag.P99))
	}
	client, parts = strings.Join(parts, ", "), nil
	if n := p.Server; n != nil {
		add("%.0f token/s", n.OutputRate)
		add("KV %.0f %%", n.KVUsage*100)
		if n.Waiting > 0 {
			add("%.0f waiting", n.Waiting)
		}
	}
	return client, strings.Join(parts, ", ")
}

func (s *screen) finish() {
	if s.bar != nil {
		s.bar.Abort(true)
		s.bar.Wait()
		s.bar = nil
	}
}

// close removes what is on the terminal, so that results can be printed.
func (s *screen) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.finish()
	if s.bars != nil {
		s.bars.Wait()
		s.bars = nil
	}
}
