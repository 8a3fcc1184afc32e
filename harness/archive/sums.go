package archive

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
)

// Sum is what a file was when it was written.
type Sum struct {
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256"` // in hexadecimal
}

// DamagedError is a file that is not what was written.
type DamagedError struct{ Path, Why string }

func (e *DamagedError) Error() string {
	return fmt.Sprintf("%s is damaged, or was changed after kvtune wrote it: %s", e.Path, e.Why)
}

func differs(path string, got, want Sum) error {
	why := "its SHA-256 sum is another"
	if got.Bytes != want.Bytes {
		why = fmt.Sprintf("it has %d bytes and had %d", got.Bytes, want.Bytes)
	}
	return &DamagedError{path, fmt.Sprintf("%s; restore it, or, if the change is meant, remove %q from \"sums\", and the "+
		"last entry, \"sha256\", from the %s beside it", why, filepath.Base(path), ManifestName)}
}

// summing takes the sum of what passes.
type summing struct {
	hash.Hash
	bytes int64
}

func newSumming() *summing { return &summing{Hash: sha256.New()} }

func (s *summing) Write(p []byte) (int, error) {
	s.bytes += int64(len(p))
	return s.Hash.Write(p)
}

func (s *summing) sum() Sum { return Sum{s.bytes, hex.EncodeToString(s.Sum(nil))} }

func sumOf(data []byte) Sum {
	s := newSumming()
	s.Write(data)
	return s.sum()
}

// sumBeside is the sum that the manifest of a file's folder has for it; nil where there is none.
func sumBeside(path string) (*Sum, error) {
	var m Manifest
	err := readManifest(filepath.Join(filepath.Dir(path), ManifestName), &m)
	if damaged := (*DamagedError)(nil); errors.As(err, &damaged) {
		return nil, err
	}
	// A folder without a manifest, or one with another program's: nothing is known of its files.
	if sum, ok := m.Sums[filepath.Base(path)]; ok && err == nil {
		return &sum, nil
	}
	return nil, nil
}

// ReadFile reads a whole file and checks it against the manifest beside it, where there is one that lists it.
func ReadFile(path string) ([]byte, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	want, err := sumBeside(path)
	if got := sumOf(data); err == nil && want != nil && got != *want {
		err = differs(path, got, *want)
	}
	return data, err
}

// readChecked reads a file to its end and checks it against the manifest beside it. One that was cut short is partial,
// one that was changed a [DamagedError]; the records before it come with it.
func readChecked[T any](file *os.File, read func(io.Reader) ([]T, bool, error)) (all []T, partial bool, err error) {
	partial, err = check(file, func(r io.Reader) (partial bool, err error) {
		all, partial, err = read(r)
		if err != nil {
			err = fmt.Errorf("%s: %w", file.Name(), err)
		}
		return partial, err
	})
	return all, partial, err
}

// ReadWith reads a file of any kind, by a reader that names the file in its errors, and checks it as [Read] does.
func ReadWith(path string, read func(io.Reader) error) (partial bool, err error) {
	file, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer file.Close()
	return check(file, func(r io.Reader) (bool, error) { return false, read(r) })
}

func check(file *os.File, read func(io.Reader) (bool, error)) (partial bool, err error) {
	got := newSumming()
	through := io.TeeReader(file, got)
	if partial, err = read(through); err != nil {
		return partial, err
	}
	if _, err := io.Copy(io.Discard, through); err != nil {
		return partial, err
	}
	want, err := sumBeside(file.Name())
	switch {
	case err != nil || want == nil || got.sum() == *want:
	case got.bytes < want.Bytes:
		partial = true
	default:
		err = differs(file.Name(), got.sum(), *want)
	}
	return partial, err
}

// The manifest's own sum is its last entry, of all that stands before it.
const sealKey = ",\n  \"sha256\": \""

// sealed adds the sum to a manifest's JSON.
func sealed(text []byte) []byte {
	body := bytes.TrimSuffix(text, []byte("\n}\n"))
	return fmt.Appendf(body, "%s%s\"\n}\n", sealKey, sumOf(body).SHA256)
}

// readManifest reads a manifest and checks its sum; an old one has none.
func readManifest(path string, m *Manifest) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := decodeJSON(data, ManifestSchema, m); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	at := bytes.LastIndex(data, []byte(sealKey))
	switch {
	case at < 0 && len(m.Sums) == 0:
		return nil
	case at >= 0 && bytes.Equal(sealed(append(bytes.Clone(data[:at]), "\n}\n"...)), data):
		return nil
	}
	return &DamagedError{path, "its SHA-256 sum, the last entry, is another; restore it, or, if the change is meant, " +
		"remove \"sums\" and that entry"}
}
