package hist

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"time"

	hdr "github.com/HdrHistogram/hdrhistogram-go"
)

// Tag names the series that an interval belongs to.
type Tag string

// The tags of kvtune's logs.
const (
	TTFT Tag = "TTFT"
	ITL  Tag = "ITL"
	TPOT Tag = "TPOT"
	E2E  Tag = "E2E"
	// LAG is the generator's own lateness.
	LAG Tag = "LAG"
)

// Interval is what one series held during one stretch of a run.
type Interval struct {
	Tag Tag
	// Start is from the start of the log. Start and Length are kept to the microsecond.
	Start, Length time.Duration
	Hist          *Recorder
}

// WriteLog writes intervals as an HdrHistogram interval log, version 1.3: V2 compressed histograms of nanoseconds, the
// interval's largest value in milliseconds, times in seconds relative to the base time, which is start. Overflow stands
// in a comment before its interval, where other tools pass over it. A tag must not hold a comma, a space or a line
// break.
//
// The lines are ours and the histograms the library's encoding: the library's own log writer cuts the start time to
// whole seconds and its interval times to milliseconds (hdrhistogram-go v1.4.0, log_writer.go).
func WriteLog(w io.Writer, start time.Time, intervals []Interval) error {
	if start.IsZero() { // a simulated run has no place on the clock
		start = time.Unix(0, 0)
	}
	seconds := float64(start.UnixMilli()) / 1e3
	b := bufio.NewWriter(w)
	fmt.Fprintf(b, "#[Histogram log format version 1.3]\n")
	fmt.Fprintf(b, "#[StartTime: %.3f (seconds since epoch), %s]\n", seconds, start.UTC().Format(time.RFC3339))
	fmt.Fprintf(b, "#[BaseTime: %.3f (seconds since epoch)]\n", seconds)
	fmt.Fprintf(b, "\"StartTimestamp\",\"Interval_Length\",\"Interval_Max\",\"Interval_Compressed_Histogram\"\n")
	for _, iv := range intervals {
		if strings.ContainsAny(string(iv.Tag), ", \t\r\n") {
			return fmt.Errorf("histogram tag %q: must not hold a comma, a space or a line break", iv.Tag)
		}
		if iv.Start < 0 || iv.Length < 0 {
			return fmt.Errorf("histogram interval %s at %v, length %v: must not be negative", iv.Tag, iv.Start, iv.Length)
		}
		payload, err := iv.Hist.h.EncodeV2()
		if err != nil {
			return fmt.Errorf("encode histogram %s: %w", iv.Tag, err)
		}
		if iv.Hist.overflow > 0 {
			fmt.Fprintf(b, "#[Overflow: %d]\n", iv.Hist.overflow)
		}
		if iv.Tag != "" {
			fmt.Fprintf(b, "Tag=%s,", iv.Tag)
		}
		fmt.Fprintf(b, "%.6f,%.6f,%.6f,%s\n", iv.Start.Seconds(), iv.Length.Seconds(), float64(iv.Hist.h.Max())/1e6, payload)
	}
	return b.Flush()
}

// ReadLog reads an interval log of this package or of any HdrHistogram implementation, whose values are taken as
// nanoseconds. On an error it also returns the whole intervals before it; a log that ends in the middle of a line gives
// an error that wraps [io.ErrUnexpectedEOF].
func ReadLog(r io.Reader) ([]Interval, error) {
	var intervals []Interval
	var start, base float64
	var haveStart, haveBase bool
	var overflow int64
	lines := bufio.NewReader(r)
	for number := 1; ; number++ {
		raw, end := lines.ReadBytes('\n')
		if end != nil && end != io.EOF {
			return intervals, end
		}
		line := string(bytes.TrimRight(raw, "\r\n"))
		switch {
		case strings.HasPrefix(line, "#"):
			if v, ok := header(line, "#[StartTime: "); ok {
				start, haveStart = v, true
			} else if v, ok := header(line, "#[BaseTime: "); ok {
				base, haveBase = v, true
			} else if v, ok := header(line, "#[Overflow: "); ok {
				overflow = int64(v)
			}
		case line != "" && !strings.HasPrefix(line, `"`): // not the legend
			iv, err := parseInterval(line)
			if err != nil {
				if end == io.EOF {
					err = io.ErrUnexpectedEOF
				}
				return intervals, fmt.Errorf("histogram log, line %d: %w", number, err)
			}
			if !haveStart {
				// Without a header the log starts with its first interval, as in the Java reader.
				start, haveStart = iv.at, true
			}
			at := iv.at + base - start
			if !haveBase && iv.at < start-365*24*3600 {
				at = iv.at // no base time, and far below the start time: relative already (the Java reader's rule)
			}
			recorder := New()
			recorder.overflow = overflow + recorder.h.Merge(iv.histogram)
			overflow = 0
			intervals = append(intervals, Interval{iv.tag, seconds(at), seconds(iv.length), recorder})
		}
		if end == io.EOF {
			return intervals, nil
		}
	}
}

// header reads the number of a header line "#[Name: 1.5 ...".
func header(line, prefix string) (float64, bool) {
	rest, ok := strings.CutPrefix(line, prefix)
	if !ok {
		return 0, false
	}
	if i := strings.IndexAny(rest, " ]"); i >= 0 {
		rest = rest[:i]
	}
	v, err := strconv.ParseFloat(rest, 64)
	return v, err == nil && v >= 0 && v < 1e15
}

type interval struct {
	tag        Tag
	at, length float64
	histogram  *hdr.Histogram
}

// parseInterval reads "Tag=T,start,length,max,payload"; the tag may be missing.
func parseInterval(line string) (interval, error) {
	var iv interval
	if rest, ok := strings.CutPrefix(line, "Tag="); ok {
		tag, after, _ := strings.Cut(rest, ",")
		iv.tag, line = Tag(tag), after
	}
	fields := strings.Split(line, ",")
	if len(fields) != 4 {
		return iv, errors.New("expected [Tag=T,]start,length,max,histogram")
	}
	for i, to := range []*float64{&iv.at, &iv.length} {
		v, err := strconv.ParseFloat(strings.TrimSpace(fields[i]), 64)
		if err != nil || !(math.Abs(v) < 1e12) {
			return iv, fmt.Errorf("time %q: expected seconds", fields[i])
		}
		*to = v
	}
	h, err := hdr.Decode([]byte(strings.TrimSpace(fields[3])))
	if err != nil {
		return iv, fmt.Errorf("decode histogram: %w", err)
	}
	iv.histogram = h
	return iv, nil
}

// seconds rounds to the microsecond that the log holds: float seconds since the epoch are no finer.
func seconds(s float64) time.Duration {
	if !(math.Abs(s) < 9e9) {
		return 0
	}
	return time.Duration(math.Round(s*1e6)) * time.Microsecond
}
