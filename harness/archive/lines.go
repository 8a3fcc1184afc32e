package archive

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"

	"kvtune/harness"
	"kvtune/harness/hist"
	"kvtune/harness/workload"
)

// maxLine bounds a line: a request of a million tokens has about 20 MB.
const maxLine = 256 << 20

// maxWindow bounds what a hostile file can make the decoder allocate; `zstd --long=27` needs as much.
const maxWindow = 128 << 20

// compressor writes one zstd frame. A single goroutine: the bytes then do not depend on the number of cores.
func compressor(w io.Writer) (*zstd.Encoder, error) {
	return zstd.NewWriter(w, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedDefault))
}

// compressed is a WriteFile function that compresses what write writes.
func compressed(write func(io.Writer) error) func(io.Writer) error {
	return func(w io.Writer) error {
		z, err := compressor(w)
		if err != nil {
			return err
		}
		b := bufio.NewWriterSize(z, 1<<16)
		err = write(b)
		if err == nil {
			err = b.Flush()
		}
		return errors.Join(err, z.Close())
	}
}

// zstdMagic begins every zstd frame.
var zstdMagic = [...]byte{0x28, 0xb5, 0x2f, 0xfd}

// decompressed gives the bytes of a zstd file, or a plain one as it is. An empty file, or one that ends inside the
// magic number, reads as io.ErrUnexpectedEOF: no finished file is so short. close must be called.
func decompressed(r io.Reader) (plain io.Reader, close func(), err error) {
	b := bufio.NewReader(r)
	head, err := b.Peek(len(zstdMagic))
	if err != nil && err != io.EOF {
		return nil, nil, err
	}
	if len(head) < len(zstdMagic) && bytes.HasPrefix(zstdMagic[:], head) {
		return nil, nil, io.ErrUnexpectedEOF
	}
	if !bytes.Equal(head, zstdMagic[:]) {
		return b, func() {}, nil
	}
	// Concurrency 1 and no decoding in advance: the blocks before a cut must come out, and each as it is reached.
	z, err := zstd.NewReader(b, zstd.WithDecoderConcurrency(1), zstd.WithDecodeBuffersBelow(0),
		zstd.WithDecoderMaxWindow(maxWindow))
	if err != nil {
		return nil, nil, err
	}
	return z, z.Close, nil
}

// readLines calls each for every line of a compressed or plain file, without its end. whole says whether the line's end
// was there. partial is set when the file ends in the middle, a compressed one also when its last line has no end. A
// line counts once the next bytes were read without an error: a damaged frame's checksum is looked at after its lines
// have come out.
func readLines(r io.Reader, each func(number int, line []byte, whole bool) error) (partial bool, err error) {
	plain, close, err := decompressed(r)
	if err == io.ErrUnexpectedEOF {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	defer close()
	lines := bufio.NewReaderSize(plain, 1<<16)
	var line, last []byte // last is the one before, not yet told
	tell := func(number int, whole bool) error {
		if len(bytes.TrimSpace(last)) == 0 {
			return nil
		}
		return each(number, bytes.TrimRight(last, "\r\n"), whole)
	}
	for number := 1; ; {
		piece, err := lines.ReadSlice('\n')
		line = append(line, piece...)
		if err == bufio.ErrBufferFull {
			if len(line) > maxLine {
				return false, fmt.Errorf("line %d is longer than %d MiB", number, maxLine>>20)
			}
			continue
		}
		if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
			return false, err
		}
		if e := tell(number-1, true); e != nil {
			return false, e
		}
		last, line = line, last[:0]
		if err != nil {
			if tell(number, false) != nil {
				return true, nil // the last line, cut
			}
			_, isPlain := plain.(*bufio.Reader)
			return err == io.ErrUnexpectedEOF || !isPlain && len(last) > 0, nil
		}
		number++
	}
}

// ReadRequests reads a requests file, compressed or plain. A file that was cut short gives every whole record and
// partial. On an error, the records before it are returned too.
func ReadRequests(r io.Reader) (records []workload.Record, partial bool, err error) {
	partial, err = readLines(r, func(number int, line []byte, _ bool) error {
		// A cut line is no whole JSON object, whether or not its end is there.
		var rec workload.Record
		if err := json.Unmarshal(line, &rec); err != nil {
			return fmt.Errorf("requests file, line %d: %w", number, err)
		}
		records = append(records, rec)
		return nil
	})
	return records, partial, err
}

// ReadRequests reads the requests of a part, from what a crash left where the run never ended.
func (f *Folder) ReadRequests(name string) (records []workload.Record, partial bool, err error) {
	file, left, err := f.openOrPartial(name + RequestsSuffix)
	if err != nil {
		return nil, false, err
	}
	defer file.Close()
	records, partial, err = readChecked(file, ReadRequests)
	return records, partial || left, err
}

// openOrPartial opens a file, or what a crash left of it.
func (f *Folder) openOrPartial(name string) (file *os.File, left bool, err error) {
	file, err = os.Open(f.Path(name))
	if errors.Is(err, fs.ErrNotExist) {
		if file, e := os.Open(f.Path(name + PartialSuffix)); e == nil {
			return file, true, nil
		}
	}
	return file, false, err
}

// RequestWriter appends request lines while a run goes on. Every line is a zstd frame with a checksum, on its way to
// the disk when Append returns: a killed process loses no record that was appended, and a reader gets every whole one
// and nothing else. The end of a line begins the next frame, the last one is written by Close: a file that lacks frames
// lacks it. Safe for concurrent use.
type RequestWriter struct {
	folder *Folder
	name   string

	mu   sync.Mutex
	file *os.File
	z    *zstd.Encoder
	sum  *summing
	err  error // the first failure; nothing is written after it
}

// Requests opens `<name>_requests.jsonl.zst` for streaming. It has [PartialSuffix] until it is closed.
func (f *Folder) Requests(name string) (*RequestWriter, error) {
	if err := checkName(name + RequestsSuffix); err != nil {
		return nil, err
	}
	z, err := lineCompressor()
	if err != nil {
		return nil, err
	}
	path := f.Path(name + RequestsSuffix)
	file, err := os.Create(path + PartialSuffix)
	if err != nil {
		return nil, diskError("write", path, err)
	}
	return &RequestWriter{folder: f, name: name + RequestsSuffix, file: file, z: z, sum: newSumming()}, nil
}

// Append writes one record.
func (w *RequestWriter) Append(rec workload.Record) error {
	line, err := json.Marshal(&rec)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return w.err
	}
	if err != nil {
		w.err = fmt.Errorf("write %s: %w", w.file.Name(), err)
		return w.err
	}
	if w.sum.bytes > 0 {
		line = append([]byte{'\n'}, line...)
	}
	return w.write(line)
}

// write writes text as a frame; w.mu is held.
func (w *RequestWriter) write(text []byte) error {
	if _, err := io.MultiWriter(w.file, w.sum).Write(w.z.EncodeAll(text, nil)); err != nil {
		w.err = diskError("write", w.file.Name(), err)
	}
	return w.err
}

// Close ends the file and gives it its name. After a failed Append it returns that failure and leaves what was written
// under the partial name, for the records in it.
func (w *RequestWriter) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil {
		w.write([]byte{'\n'})
	}
	if w.err != nil {
		w.file.Close()
		return w.err
	}
	w.err = errors.New("requests file is closed")
	path := w.folder.Path(w.name)
	return w.folder.replace(w.name, func() (*Sum, error) {
		sum := w.sum.sum()
		if err := finish(w.file, path); err != nil {
			return nil, diskError("write", path, err)
		}
		return &sum, nil
	})
}

// WriteRequests writes `<name>_requests.jsonl.zst` at once.
func (f *Folder) WriteRequests(name string, records []workload.Record) error {
	return f.StreamRequests(name, func(add func(*workload.Record) error) error {
		for i := range records {
			if err := add(&records[i]); err != nil {
				return err
			}
		}
		return nil
	})
}

// StreamRequests is WriteRequests for records that are not kept: from writes each by add. The file is there when from
// has returned without an error, else the one before it stays.
func (f *Folder) StreamRequests(name string, from func(add func(*workload.Record) error) error) error {
	err := f.WriteFile(name+RequestsSuffix, compressed(func(w io.Writer) error {
		e := json.NewEncoder(w)
		e.SetEscapeHTML(false)
		return from(func(rec *workload.Record) error { return e.Encode(rec) })
	}))
	if err == nil {
		// What an earlier run of this part left is superseded.
		err = ignoreMissing(os.Remove(f.Path(name + RequestsSuffix + PartialSuffix)))
	}
	return err
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// sampleLine is a line of a series file. A value that JSON cannot hold is null.
type sampleLine struct {
	T      float64  `json:"t_s"`
	Metric string   `json:"metric"`
	Value  *float64 `json:"value"`
}

// WriteSeries writes `<name>_series.jsonl.zst`.
func (f *Folder) WriteSeries(name string, series []harness.Sample) error {
	return f.WriteFile(name+SeriesSuffix, compressed(func(w io.Writer) error {
		e := json.NewEncoder(w)
		e.SetEscapeHTML(false)
		for _, s := range series {
			line := sampleLine{T: s.T.Seconds(), Metric: s.Metric}
			if !math.IsNaN(s.Value) && !math.IsInf(s.Value, 0) {
				line.Value = &s.Value
			}
			if err := e.Encode(line); err != nil {
				return err
			}
		}
		return nil
	}))
}

// ReadSeries reads a series file. A null value, which was not observed, is left out.
func ReadSeries(r io.Reader) (series []harness.Sample, partial bool, err error) {
	partial, err = readLines(r, func(number int, line []byte, _ bool) error {
		var s sampleLine
		if err := json.Unmarshal(line, &s); err != nil {
			return fmt.Errorf("series file, line %d: %w", number, err)
		}
		if s.Metric == "" || !(math.Abs(s.T) < 9e9) {
			return fmt.Errorf("series file, line %d: expected t_s (seconds), metric and value", number)
		}
		if s.Value != nil {
			series = append(series, harness.Sample{T: nanoseconds(s.T), Metric: s.Metric, Value: *s.Value})
		}
		return nil
	})
	return series, partial, err
}

func nanoseconds(seconds float64) time.Duration { return time.Duration(math.Round(seconds * 1e9)) }

// ReadSeries reads the series of a part.
func (f *Folder) ReadSeries(name string) (series []harness.Sample, partial bool, err error) {
	return Read(f.Path(name+SeriesSuffix), ReadSeries)
}

// WriteHistograms writes `<name>_latency.hlog.zst`; start and intervals as in [hist.WriteLog].
func (f *Folder) WriteHistograms(name string, start time.Time, intervals []hist.Interval) error {
	return f.WriteFile(name+LatencySuffix, compressed(func(w io.Writer) error {
		return hist.WriteLog(w, start, intervals)
	}))
}

// ReadHistograms reads a histogram log, compressed or plain.
func ReadHistograms(r io.Reader) (intervals []hist.Interval, partial bool, err error) {
	plain, close, err := decompressed(r)
	if err == nil {
		defer close()
		intervals, err = hist.ReadLog(plain)
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return intervals, true, nil
	}
	return intervals, false, err
}

// ReadHistograms reads the histogram log of a part.
func (f *Folder) ReadHistograms(name string) (intervals []hist.Interval, partial bool, err error) {
	return Read(f.Path(name+LatencySuffix), ReadHistograms)
}

// Read reads a file to its end by one of this package's readers ([ReadSteps], ...), names it in errors and checks it
// against the manifest beside it, where there is one that lists it: what was cut short is partial, what was changed
// otherwise a [DamagedError].
func Read[T any](path string, read func(io.Reader) ([]T, bool, error)) ([]T, bool, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, false, err
	}
	defer file.Close()
	return readChecked(file, read)
}
