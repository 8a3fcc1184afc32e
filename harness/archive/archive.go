// Package archive keeps results on disk: a folder with a manifest, versioned JSON, request lines and series in
// compressed lines, histogram logs.
//
// Files are written to a temporary name in the folder, synced and renamed, so a name holds a whole file or nothing. The
// one exception is what streams while a run goes on: it grows under its name plus [PartialSuffix] and takes its name
// when it is closed. A file cut short gives back every whole record and says that it is partial.
//
// Start with [Create] to write and [Open] to read.
package archive

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
)

// Endings of an archive's files; the part's name stands before them.
const (
	ResultSuffix   = "_results.json"
	RequestsSuffix = "_requests.jsonl.zst"
	StepsSuffix    = "_steps.csv"
	SeriesSuffix   = "_series.jsonl.zst"
	LatencySuffix  = "_latency.hlog.zst"
	CostSuffix     = "_cost.json"
	BenchSuffix    = "_bench.json"
	SamplesSuffix  = "_samples.jsonl.zst"
	// PartialSuffix marks a file that is still growing, or that a crash left.
	PartialSuffix = ".partial"

	// ManifestName is the manifest's file name.
	ManifestName = "manifest.json"
	// ManifestSchema is the manifest's schema.
	ManifestSchema = "kvtune.archive/1"
)

// State says how far a part is.
type State string

const (
	Running State = "running"
	Done    State = "done"
	// Partial: the part ended early; what is there is whole.
	Partial State = "partial"
	Failed  State = "failed"
)

// Part is a named piece of work, e.g. the profile of one configuration.
type Part struct {
	Name  string `json:"name"`
	State State  `json:"state"`
}

// Manifest is `manifest.json`. It holds no times, so that the same run gives the same bytes.
type Manifest struct {
	Schema string `json:"schema"`
	// Parts are in the order in which they were first set.
	Parts []Part `json:"parts"`
	// Files are the names of the files written, in order of their first writing.
	Files []string `json:"files"`
	// Shard is set where the folder holds one share of a divided work.
	Shard *Shard `json:"shard,omitempty"`
	// Sums say by name what the files were when they were written. Those that grow over several runs are not among them.
	Sums map[string]Sum `json:"sums,omitempty"`
	// SHA256, in hexadecimal, is the sum of what stands before it in the file. It is the last entry.
	SHA256 string `json:"sha256,omitempty"`
}

// Folder is an archive. Its methods may be called concurrently.
type Folder struct {
	dir      string
	selected string // the part that a file given to Open belongs to

	mu       sync.Mutex
	manifest Manifest
}

// Create makes the folder where it is missing, checks that it can be written and writes its manifest. An archive that
// is there already is continued: its parts and files stay.
func Create(dir string) (*Folder, error) {
	if err := os.MkdirAll(dir, 0o777); err != nil {
		if info, e := os.Stat(dir); e == nil && !info.IsDir() {
			return nil, fmt.Errorf("output folder %s is a file: choose another folder", dir)
		}
		return nil, diskError("make output folder", dir, err)
	}
	f := &Folder{dir: dir, manifest: Manifest{Schema: ManifestSchema}}
	path := f.Path(ManifestName)
	if _, err := os.Stat(path); err == nil {
		if err := readManifest(path, &f.manifest); err != nil {
			return nil, err
		}
		f.manifest.Schema = ManifestSchema
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f, f.saveManifest()
}

// Open opens an archive for reading: its folder, or one of its files. A file that belongs to a part selects it; the
// manifest, and others that the manifest lists, stand for the whole folder. A folder without a manifest is accepted
// when it holds a file with an archive's ending.
func Open(path string) (*Folder, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s does not exist: expected an output folder of kvtune or one of its files", path)
	}
	if err != nil {
		return nil, err
	}
	f := &Folder{dir: path}
	file := "" // the one that was given
	if !info.IsDir() {
		if !info.Mode().IsRegular() {
			return nil, fmt.Errorf("%s is neither a folder nor a file: expected an output folder of kvtune or one of its files",
				path)
		}
		file = filepath.Base(path)
		f.dir, f.selected = filepath.Dir(path), partOf(file)
	}
	manifest := f.Path(ManifestName)
	_, err = os.Stat(manifest)
	bare := errors.Is(err, fs.ErrNotExist)
	switch {
	case err == nil:
		err = readManifest(manifest, &f.manifest)
	case bare:
		f.manifest.Schema = ManifestSchema
		f.manifest.Files, err = archiveFiles(f.dir)
	}
	switch {
	case err != nil:
		return nil, err
	case file == "" && bare && len(f.manifest.Files) == 0:
		return nil, fmt.Errorf("%s is not a kvtune archive: it has no %s and no file that ends in one of %s",
			path, ManifestName, strings.Join(suffixes(), ", "))
	case file != "" && f.selected == "" && !slices.Contains(f.Files(), file):
		return nil, fmt.Errorf("%s is not a file of a kvtune archive: expected a name that ends in one of %s",
			path, strings.Join(suffixes(), ", "))
	}
	return f, nil
}

func suffixes() []string {
	return []string{ResultSuffix, RequestsSuffix, StepsSuffix, SeriesSuffix, LatencySuffix, CostSuffix, BenchSuffix,
		SamplesSuffix}
}

// partOf is the part that a file belongs to, "" for none.
func partOf(name string) string {
	name = strings.TrimSuffix(name, PartialSuffix)
	for _, s := range suffixes() {
		if part, ok := strings.CutSuffix(name, s); ok {
			return part
		}
	}
	return ""
}

func archiveFiles(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries { // sorted by name
		if e.Type().IsRegular() && partOf(e.Name()) != "" && !strings.HasSuffix(e.Name(), PartialSuffix) {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// Dir is the folder's path.
func (f *Folder) Dir() string { return f.dir }

// Path is the path of a file in the folder.
func (f *Folder) Path(file string) string { return filepath.Join(f.dir, file) }

// Names are the parts that have a file in the archive, sorted; the one that a file given to [Open] belongs to, if one
// was given.
func (f *Folder) Names() []string {
	if f.selected != "" {
		return []string{f.selected}
	}
	var names []string
	for _, file := range f.Files() {
		if n := partOf(file); n != "" {
			names = append(names, n)
		}
	}
	for _, p := range f.Parts() {
		if _, err := os.Stat(f.Path(p.Name + RequestsSuffix + PartialSuffix)); err == nil {
			names = append(names, p.Name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// Files are the names of the archive's files in the order of their first writing, the manifest first.
func (f *Folder) Files() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string{ManifestName}, f.manifest.Files...)
}

// Parts are the parts with their states, in the order in which they were first set.
func (f *Folder) Parts() []Part {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.manifest.Parts)
}

// Part finds a part by name.
func (f *Folder) Part(name string) (Part, bool) {
	for _, p := range f.Parts() {
		if p.Name == name {
			return p, true
		}
	}
	return Part{}, false
}

// SetPart records the state of a part in the manifest.
func (f *Folder) SetPart(name string, state State) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	p := Part{Name: name, State: state}
	if i := slices.IndexFunc(f.manifest.Parts, func(p Part) bool { return p.Name == name }); i >= 0 {
		f.manifest.Parts[i] = p
	} else {
		f.manifest.Parts = append(f.manifest.Parts, p)
	}
	return f.saveManifest()
}

// saveManifest writes the manifest; f.mu is held.
func (f *Folder) saveManifest() error {
	m := f.manifest
	if m.Parts == nil {
		m.Parts = []Part{} // [] in the file, not null
	}
	if m.Files == nil {
		m.Files = []string{}
	}
	m.SHA256 = ""
	var text bytes.Buffer
	if err := jsonWriter(m)(&text); err != nil {
		return err
	}
	_, err := writeFile(f.Path(ManifestName), func(w io.Writer) error {
		_, err := w.Write(sealed(text.Bytes()))
		return err
	})
	return err
}

// replace puts a file in its place by put and records it in the manifest. At every moment a sum there is that of the
// file which has the name: a crash leaves none that does not fit.
func (f *Folder) replace(file string, put func() (*Sum, error)) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, ok := f.manifest.Sums[file]; ok {
		delete(f.manifest.Sums, file)
		if err := f.saveManifest(); err != nil {
			return err
		}
	}
	sum, err := put()
	if err != nil {
		return err
	}
	if !slices.Contains(f.manifest.Files, file) {
		f.manifest.Files = append(f.manifest.Files, file)
	} else if sum == nil {
		return nil
	}
	if sum != nil {
		if f.manifest.Sums == nil {
			f.manifest.Sums = map[string]Sum{}
		}
		f.manifest.Sums[file] = *sum
	}
	return f.saveManifest()
}

// checkName refuses what would be a file elsewhere: names come from configurations and from files of others.
func checkName(file string) error {
	if file != filepath.Base(file) || !filepath.IsLocal(file) || strings.ContainsFunc(file, func(r rune) bool {
		return r < ' ' || r == 0x7f || r == '\\'
	}) {
		return fmt.Errorf("%q cannot be a file of an output folder: expected a name without a folder and control characters",
			file)
	}
	return nil
}

// WriteFile writes a file of any kind atomically: write gets a temporary file, which takes the name when all went well
// and is removed when not. A file of that name is replaced.
func (f *Folder) WriteFile(file string, write func(io.Writer) error) error {
	if err := checkName(file); err != nil {
		return err
	}
	return f.replace(file, func() (*Sum, error) {
		sum, err := writeFile(f.Path(file), write)
		return &sum, err
	})
}

// WriteJSON writes v as indented JSON, atomically. v holds its schema under the key "schema".
func (f *Folder) WriteJSON(file string, v any) error {
	return f.WriteFile(file, jsonWriter(v))
}

// WriteJSON writes v as indented JSON to a file outside any folder, atomically.
func WriteJSON(path string, v any) error { return WriteFile(path, jsonWriter(v)) }

func jsonWriter(v any) func(io.Writer) error {
	return func(w io.Writer) error {
		e := json.NewEncoder(w)
		e.SetEscapeHTML(false)
		e.SetIndent("", "  ")
		return e.Encode(v)
	}
}

// WriteFile writes path atomically, by way of a temporary file beside it. A file of a folder stays one of it: its
// manifest gets the new sum.
func WriteFile(path string, write func(io.Writer) error) error {
	if sum, err := sumBeside(path); err != nil {
		return err
	} else if sum != nil {
		f, err := Open(filepath.Dir(path))
		if err != nil {
			return err
		}
		return f.WriteFile(filepath.Base(path), write)
	}
	_, err := writeFile(path, write)
	return err
}

func writeFile(path string, write func(io.Writer) error) (sum Sum, err error) {
	dir, base := filepath.Split(path)
	if dir == "" {
		dir = "."
	}
	tmp, err := os.CreateTemp(dir, "."+base+".tmp*")
	if err != nil {
		return sum, diskError("write", path, err)
	}
	defer func() {
		if err != nil {
			tmp.Close()
			os.Remove(tmp.Name())
			err = diskError("write", path, err)
		}
	}()
	got := newSumming()
	if err := write(io.MultiWriter(tmp, got)); err != nil {
		return sum, err
	}
	// CreateTemp makes files private; the result is one that colleagues may read.
	if err := tmp.Chmod(0o644); err != nil {
		return sum, err
	}
	return got.sum(), finish(tmp, path)
}

// finish syncs a file, closes it and gives it its name.
func finish(tmp *os.File, path string) error {
	if err := tmp.Sync(); err != nil {
		return err
	}
	if err := tmp.Close(); err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return err
	}
	// The name itself must survive a power cut. Some file systems refuse to sync a folder: the file is there all the same.
	if d, err := os.Open(filepath.Dir(path)); err == nil {
		d.Sync()
		d.Close()
	}
	return nil
}

// diskError says what to do about the usual failures of writing.
func diskError(doing, path string, err error) error {
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fmt.Errorf("%s %s: the disk is full: free some space or choose another output folder: %w", doing, path, err)
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		return fmt.Errorf("%s %s: not writable: choose another output folder: %w", doing, path, err)
	}
	return fmt.Errorf("%s %s: %w", doing, path, err)
}
