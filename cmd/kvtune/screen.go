package main

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"kvtune/harness/load"
)

// screen shows progress on stderr: bars with an estimate of what is left on a terminal, one line per stage elsewhere.
type screen struct {
	w io.Writer

	mu    sync.Mutex
	bars  *mpb.Progress
	bar   *mpb.Bar
	title string
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
	s.title = title
	if s.bars == nil {
		fmt.Fprintf(s.w, "kvtune: %s\n", title)
	}
}

// detail says what the present stage is at, on a terminal only: a server's log has hundreds of lines.
func (s *screen) detail(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.bars != nil && text != "" {
		fmt.Fprintf(s.w, "\r\033[K%.*s", 100, s.title+": "+text)
	}
}

// progress moves the bar of the present stage.
func (s *screen) progress(p load.Progress) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.bars == nil {
		return
	}
	if s.bar == nil {
		s.bar = s.bars.AddBar(int64(p.Total), mpb.BarRemoveOnComplete(),
			mpb.PrependDecorators(decor.Name(s.title+" ", decor.WCSyncSpaceR)),
			mpb.AppendDecorators(decor.CountersNoUnit("%d/%d requests"), decor.Name(" "), decor.AverageETA(decor.ET_STYLE_GO)))
	}
	s.bar.SetCurrent(int64(p.Ended))
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
