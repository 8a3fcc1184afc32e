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
	"reflect"
	"slices"
	"strings"

	"kvtune/harness"
)

// What several processes divide among them ([Shard].Kind).
const (
	ShardedCases   = "bench cases"
	ShardedConfigs = "configurations"
	ShardedLoad    = "load"
	ShardedSweep   = "sweep"
)

// Shard says which share of a divided work a folder holds.
type Shard struct {
	harness.Shard
	Kind string `json:"kind"`
	// Tool is kvtune's version.
	Tool string `json:"tool"`
	// Work is the whole, as JSON: equal in all shards, or they are not shards of one work.
	Work json.RawMessage `json:"work"`
	// Parts are the names of what was dealt, all shards' in the order of the whole; a load has none.
	Parts []string `json:"parts,omitempty"`
}

// shardPattern are the folders of shards within the output folder that they have in common.
const shardPattern = "shard-*-of-*"

// CreateShard makes the folder of a shard in dir. What an earlier run of the shard left is removed, unless resume is
// set: then it must be of the same work, and stays.
func CreateShard(dir string, s Shard, resume bool) (*Folder, error) {
	path := filepath.Join(dir, fmt.Sprintf("shard-%d-of-%d", s.Index, s.Count))
	f, err := Create(path)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if old := f.manifest.Shard; resume && old != nil {
		if err := sameWork(old, &s); err != nil {
			return nil, fmt.Errorf("%s cannot be resumed: %w; without --resume it is begun anew", path, err)
		}
		return f, nil
	}
	for _, file := range f.manifest.Files {
		if err := ignoreMissing(os.Remove(f.Path(file))); err != nil {
			return nil, err
		}
	}
	f.manifest = Manifest{Schema: ManifestSchema, Shard: &s}
	return f, f.saveManifest()
}

// Shard is which share of a divided work the folder holds, nil for none.
func (f *Folder) Shard() *Shard { return f.manifest.Shard }

// OpenShards opens the folders of all shards of one work, in order. A path is a shard's folder, or one that holds such
// folders. Its errors are a path that is neither, a shard that is missing or there twice, and shards of different works
// or different versions of kvtune.
func OpenShards(paths []string) ([]*Folder, error) {
	var found []*Folder
	seen := map[string]bool{}
	for _, path := range paths {
		dirs := []string{path}
		if _, err := os.Stat(filepath.Join(path, ManifestName)); err != nil || !isShard(path) {
			// Not as a pattern of the whole path, which may hold a pattern's signs.
			inside, err := fs.Glob(os.DirFS(path), shardPattern)
			if err != nil {
				return nil, err
			}
			if len(inside) == 0 {
				return nil, fmt.Errorf("%s is not the output of a shard, and holds none (%s): expected the --output-dir that "+
					"--shard i/n ran with", path, shardPattern)
			}
			dirs = inside
			for i := range dirs {
				dirs[i] = filepath.Join(path, dirs[i])
			}
		}
		for _, dir := range dirs {
			f, err := Open(dir)
			if err != nil {
				return nil, err
			}
			if f.manifest.Shard == nil {
				return nil, fmt.Errorf("%s is not the output of a shard: its %s names none", dir, ManifestName)
			}
			if abs, err := filepath.Abs(dir); err != nil {
				return nil, err
			} else if !seen[abs] {
				seen[abs], found = true, append(found, f)
			}
		}
	}
	slices.SortStableFunc(found, func(a, b *Folder) int { return a.manifest.Shard.Index - b.manifest.Shard.Index })
	if len(found) == 0 {
		return nil, errors.New("no shard to merge")
	}
	first := found[0]
	for i, f := range found {
		s := f.manifest.Shard
		if s.Count < 1 || s.Index < 0 || s.Index >= s.Count {
			return nil, fmt.Errorf("%s says that it is shard %v: expected an index from 0 to one less than the count", f.dir,
				s.Shard)
		}
		if i > 0 && found[i-1].manifest.Shard.Shard == s.Shard {
			return nil, fmt.Errorf("shard %v is there twice: %s and %s; name one of them", s.Shard, found[i-1].dir, f.dir)
		}
		if err := sameWork(first.manifest.Shard, s); err != nil {
			return nil, fmt.Errorf("%s and %s are not of one work: %w", first.dir, f.dir, err)
		}
	}
	if n := first.manifest.Shard.Count; len(found) < n {
		var missing []string
		for i := range n {
			s := harness.Shard{Index: i, Count: n}
			if !slices.ContainsFunc(found, func(f *Folder) bool { return f.manifest.Shard.Shard == s }) {
				missing = append(missing, s.String())
			}
		}
		return nil, fmt.Errorf("of %d shards %s missing: run the same command with --shard %s", n, isAre(missing), missing[0])
	}
	return found, nil
}

func isAre(names []string) string {
	if len(names) == 1 {
		return names[0] + " is"
	}
	return strings.Join(names, ", ") + " are"
}

func isShard(dir string) bool {
	f, err := Open(dir)
	return err != nil || f.manifest.Shard != nil // an error is Open's to tell
}

// OtherWorkError says in what two shards are not of one work.
type OtherWorkError struct{ Difference string }

func (e *OtherWorkError) Error() string { return e.Difference }

// sameWork refuses shards that are not of one work (*OtherWorkError).
func sameWork(a, b *Shard) error {
	other := func(what, a, b string) error {
		return &OtherWorkError{fmt.Sprintf("%s is %s in one and %s in the other", what, a, b)}
	}
	for _, x := range []struct{ what, a, b string }{
		{"the kind", a.Kind, b.Kind}, {"the number of shards", fmt.Sprint(a.Count), fmt.Sprint(b.Count)},
		{"the version of kvtune", a.Tool, b.Tool},
	} {
		if x.a != x.b {
			return other(x.what, x.a, x.b)
		}
	}
	var left, right any
	for _, x := range []struct {
		from json.RawMessage
		to   *any
	}{{a.Work, &left}, {b.Work, &right}} {
		d := json.NewDecoder(bytes.NewReader(x.from))
		d.UseNumber()
		if err := d.Decode(x.to); err != nil {
			return fmt.Errorf("the description of the work in %s: %w", ManifestName, err)
		}
	}
	if where, l, r, differ := difference("", left, right); differ {
		return other(where, l, r)
	}
	if !slices.Equal(a.Parts, b.Parts) {
		return &OtherWorkError{"their parts are not the same"}
	}
	return nil
}

// difference finds the first place in which two JSON values differ.
func difference(at string, a, b any) (where, left, right string, differ bool) {
	if ma, ok := a.(map[string]any); ok {
		if mb, ok := b.(map[string]any); ok {
			var keys []string
			for k := range ma {
				keys = append(keys, k)
			}
			for k := range mb {
				keys = append(keys, k)
			}
			slices.Sort(keys)
			for _, k := range slices.Compact(keys) {
				if where, left, right, differ = difference(strings.TrimPrefix(at+"."+k, "."), ma[k], mb[k]); differ {
					return where, left, right, true
				}
			}
			return "", "", "", false
		}
	}
	la, okA := a.([]any)
	lb, okB := b.([]any)
	if okA && okB && len(la) == len(lb) {
		for i := range la {
			if where, left, right, differ = difference(fmt.Sprintf("%s[%d]", at, i), la[i], lb[i]); differ {
				return where, left, right, true
			}
		}
		return "", "", "", false
	}
	if reflect.DeepEqual(a, b) {
		return "", "", "", false
	}
	short := func(v any) string {
		if v == nil {
			return "not set"
		}
		text, _ := json.Marshal(v) // it was decoded from JSON
		if len(text) > 80 {
			text = append(text[:80:80], "..."...)
		}
		return string(text)
	}
	return at, short(a), short(b), true
}

// Take copies the files of some parts from another folder, in that one's order and byte for byte, and their states.
func (f *Folder) Take(from *Folder, parts ...string) error {
	for _, file := range from.Files() {
		if part := partOf(file); part == "" || !slices.Contains(parts, part) {
			continue
		}
		err := f.WriteFile(file, func(w io.Writer) error {
			r, err := os.Open(from.Path(file))
			if err != nil {
				return err
			}
			defer r.Close()
			_, err = io.Copy(w, r)
			return err
		})
		if err != nil {
			return err
		}
		if want, ok := from.manifest.Sums[file]; ok && f.manifest.Sums[file] != want {
			return differs(from.Path(file), f.manifest.Sums[file], want)
		}
	}
	for _, p := range from.Parts() {
		if slices.Contains(parts, p.Name) {
			if err := f.SetPart(p.Name, p.State); err != nil {
				return err
			}
		}
	}
	return nil
}
