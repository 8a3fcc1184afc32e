package archive

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/klauspost/compress/zstd"
)

// Rows is a file of JSON lines that grows over several runs: each line is a zstd frame with a checksum and is on the
// disk when Append returns. What a killed process leaves is whole but for a last line, and the next run goes on behind
// it.
type Rows struct {
	file *os.File
	z    *zstd.Encoder
}

// lineCompressor makes a frame of a line (EncodeAll), with a checksum.
func lineCompressor() (*zstd.Encoder, error) {
	return zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
}

// OpenRows opens a file of rows to go on with it: each is called for every whole line that is there. A line that is cut
// or damaged and what follows it are removed, as is a line that each refuses.
func (f *Folder) OpenRows(file string, each func(line []byte) error) (*Rows, error) {
	z, err := lineCompressor()
	if err != nil {
		return nil, err
	}
	if err := checkName(file); err != nil {
		return nil, err
	}
	var whole []byte
	_, _ = f.readRows(file, func(line []byte) error { // up to the first that is not whole
		err := each(line)
		if err == nil {
			whole = z.EncodeAll(append(line, '\n'), whole)
		}
		return err
	})
	err = f.replace(file, func() (*Sum, error) {
		_, err := writeFile(f.Path(file), func(w io.Writer) error {
			_, err := w.Write(whole)
			return err
		})
		return nil, err
	})
	if err != nil {
		return nil, err
	}
	out, err := os.OpenFile(f.Path(file), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return nil, diskError("write", f.Path(file), err)
	}
	return &Rows{out, z}, nil
}

// Append writes one line.
func (r *Rows) Append(v any) error {
	line, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if _, err = r.file.Write(r.z.EncodeAll(append(line, '\n'), nil)); err == nil {
		err = r.file.Sync()
	}
	if err != nil {
		return diskError("write", r.file.Name(), err)
	}
	return nil
}

// Close closes the file.
func (r *Rows) Close() error { return r.file.Close() }

// ReadRows calls each for every line of a file of rows. A file that is cut short or damaged is an error.
func (f *Folder) ReadRows(file string, each func(line []byte) error) error {
	partial, err := f.readRows(file, each)
	if err == nil && partial {
		err = errors.New("cut short")
	}
	if err != nil {
		return fmt.Errorf("%s: %w", f.Path(file), err)
	}
	return nil
}

func (f *Folder) readRows(file string, each func(line []byte) error) (partial bool, err error) {
	in, err := os.Open(f.Path(file))
	if err != nil {
		return false, err
	}
	defer in.Close()
	if info, err := in.Stat(); err == nil && info.Size() == 0 {
		return false, nil // no row yet
	}
	return readLines(in, func(number int, line []byte, _ bool) error {
		if !json.Valid(line) {
			return fmt.Errorf("line %d is not JSON", number)
		}
		if err := each(line); err != nil {
			return fmt.Errorf("line %d: %w", number, err)
		}
		return nil
	})
}
