package workflow

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"kvtune/harness"
	"kvtune/harness/archive"
	"kvtune/harness/hist"
	"kvtune/harness/profile"
	"kvtune/planner"
	"kvtune/planner/report"
)

// rowsFile keeps the rows of a sweep's shard, a line per cell, as they are made.
const rowsFile = "sweep_rows.jsonl.zst"

// SweepWork is a parameter sweep beside the plans of its workload, as several processes divide it: the cells are dealt,
// and the first shard makes the plans.
type SweepWork struct {
	Basis   *Basis
	Options PlanOptions
	Grid    Grid
	// PlansFile and SweepFile are where one process writes the plans and the sweep (CSV). The shards lie beside SweepFile.
	PlansFile, SweepFile string
	// Tool is kvtune's version.
	Tool string
}

// sweepCell is a line of rowsFile.
type sweepCell struct {
	Cell int                `json:"cell"`
	Rows []planner.SweepRow `json:"rows"`
}

// sweepFiles are the base names under which merged files are written.
type sweepFiles struct {
	Plans string `json:"plans"`
	Sweep string `json:"sweep"`
}

// Shard makes one share, in a folder of its own, and returns the folder. With resume it goes on where an earlier run of
// the shard ended; taken is how many cells that one had done. onCell is told how many cells are done of how many; it
// may be nil.
func (w *SweepWork) Shard(ctx context.Context, shard harness.Shard, resume bool, onCell func(done, total int)) (
	_ *archive.Folder, taken int, err error) {
	b := w.Basis
	req, notes, err := b.sweepRequest(w.Options, w.Grid)
	if err != nil {
		return nil, 0, err
	}
	work, err := json.Marshal(map[string]any{
		"config": b.Config, "server": b.Info, "settings": b.Server.Args, "num_gpu_blocks": b.Server.NumGPUBlocks,
		"cost": b.Server.Cost, "notes": b.Notes, "options": w.Options, "grid": w.Grid,
		"files": sweepFiles{filepath.Base(w.PlansFile), filepath.Base(w.SweepFile)},
	})
	if err != nil {
		return nil, 0, err
	}
	var parts []string
	for _, c := range req.Cells() {
		parts = append(parts, fmt.Sprintf("C=%d/M=%d/B=%d/block_size=%d", c.C, c.M, c.B, c.BlockSize))
	}
	if len(parts) < shard.Count {
		return nil, 0, &harness.FieldError{Field: "shard", Value: shard,
			Allowed: fmt.Sprintf("at most %d shards, one for each cell", len(parts))}
	}
	folder, err := archive.CreateShard(filepath.Dir(w.SweepFile), archive.Shard{
		Shard: shard, Kind: archive.ShardedSweep, Tool: w.Tool, Work: work, Parts: parts,
	}, resume)
	if err != nil {
		return nil, 0, err
	}
	if err := folder.SetPart("sweep", archive.Running); err != nil {
		return nil, 0, err
	}
	done := map[int]bool{}
	rows, err := folder.OpenRows(rowsFile, func(line []byte) error {
		cell, err := readCell(line, parts)
		if err == nil {
			done[cell.Cell] = true
		}
		return err
	})
	if err != nil {
		return nil, 0, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	if part, _ := folder.Part("plans"); shard.Index == 0 && part.State != archive.Done {
		plans, err := b.Plan(ctx, w.Options)
		if err != nil {
			return nil, 0, err
		}
		plans.Notes = append(plans.Notes, notes...)
		err = errors.Join(folder.WriteJSON(filepath.Base(w.PlansFile), plans), folder.SetPart("plans", archive.Done))
		if err != nil {
			return nil, 0, err
		}
	}
	taken = len(done)
	req.Only = func(k int) bool { return shard.Has(k) && !done[k] }
	req.OnCell = func(k int, made []planner.SweepRow, n, total int) error {
		if onCell != nil {
			onCell(taken+n, taken+total)
		}
		return rows.Append(sweepCell{k, made})
	}
	if _, err := planner.Sweep(ctx, req); err != nil {
		return nil, 0, err
	}
	return folder, taken, folder.SetPart("sweep", archive.Done)
}

func readCell(line []byte, parts []string) (sweepCell, error) {
	var cell sweepCell
	if err := json.Unmarshal(line, &cell); err != nil {
		return cell, err
	}
	if cell.Cell < 0 || cell.Cell >= len(parts) || len(cell.Rows) == 0 {
		return cell, fmt.Errorf("cell %d with %d rows: expected one of %d cells, and its rows", cell.Cell, len(cell.Rows),
			len(parts))
	}
	return cell, nil
}

// MergeSweep writes into dir what one process would have written, and returns the paths. folders are those of
// [archive.OpenShards].
func MergeSweep(folders []*archive.Folder, dir string) (*planner.Plans, *planner.SweepResult, []string, error) {
	fail := func(err error) (*planner.Plans, *planner.SweepResult, []string, error) { return nil, nil, nil, err }
	stamp := folders[0].Shard()
	var work struct {
		Files sweepFiles `json:"files"`
	}
	if err := json.Unmarshal(stamp.Work, &work); err != nil {
		return fail(fmt.Errorf("%s: %w", folders[0].Path(archive.ManifestName), err))
	}
	plans := new(planner.Plans)
	if err := archive.ReadJSON(folders[0].Path(filepath.Base(work.Files.Plans)), planner.Schema, plans); err != nil {
		return fail(err)
	}
	cells := make([][]planner.SweepRow, len(stamp.Parts))
	for _, f := range folders {
		if err := ended(f, "sweep"); err != nil {
			return fail(err)
		}
		own := f.Shard().Shard
		err := f.ReadRows(rowsFile, func(line []byte) error {
			cell, err := readCell(line, stamp.Parts)
			switch {
			case err != nil:
				return err
			case !own.Has(cell.Cell):
				return fmt.Errorf("cell %s is another shard's", stamp.Parts[cell.Cell])
			case cells[cell.Cell] != nil:
				return fmt.Errorf("cell %s is there twice", stamp.Parts[cell.Cell])
			}
			cells[cell.Cell] = cell.Rows
			return nil
		})
		if err != nil {
			return fail(fmt.Errorf("%w: run the shard again with --resume", err))
		}
	}
	if k := slices.IndexFunc(cells, func(rows []planner.SweepRow) bool { return rows == nil }); k >= 0 {
		return fail(fmt.Errorf("no shard has cell %s: run shard %d/%d again with --resume", stamp.Parts[k], k%stamp.Count,
			stamp.Count))
	}
	sweep := planner.NewSweepResult(plans.Model, slices.Concat(cells...))
	files, err := WriteSweep(sweep, filepath.Join(dir, filepath.Base(work.Files.Sweep)))
	if err != nil {
		return fail(err)
	}
	path := filepath.Join(dir, filepath.Base(work.Files.Plans))
	return plans, sweep, append([]string{path}, files...), archive.WriteJSON(path, plans)
}

// WriteSweep writes a sweep's table (CSV) to path and its heat maps beside it, and returns both paths.
func WriteSweep(sweep *planner.SweepResult, path string) ([]string, error) {
	picture := strings.TrimSuffix(path, filepath.Ext(path)) + "_heatmap.png"
	if err := archive.WriteFile(path, sweep.WriteCSV); err != nil {
		return nil, err
	}
	return []string{path, picture}, archive.WriteFile(picture, func(w io.Writer) error {
		return report.HeatMaps(w, report.SweepHeatMaps(sweep))
	})
}

// ended refuses a shard whose part has not ended.
func ended(f *archive.Folder, part string) error {
	p, ok := f.Part(part)
	switch {
	case !ok:
		return fmt.Errorf("%s has no %s: run shard %v again with --resume", f.Dir(), part, f.Shard().Shard)
	case p.State == archive.Running || p.State == archive.Failed:
		return fmt.Errorf("%s: %s is %s: wait for the shard, or run it again (--shard %v --resume)", f.Dir(), part, p.State,
			f.Shard().Shard)
	}
	return nil
}

// ShardConfigs makes the folder of a share of several configurations, each measured on a server of its own. What an
// earlier run of the shard has done of them stands in its parts.
func ShardConfigs(dir string, s harness.Shard, configs []harness.Config, tool string, resume bool) (*archive.Folder,
	error) {
	stamp := archive.Shard{Shard: s, Kind: archive.ShardedConfigs, Tool: tool}
	var err error
	if stamp.Work, err = json.Marshal(map[string]any{"configs": configs}); err != nil {
		return nil, err
	}
	for _, cfg := range configs {
		stamp.Parts = append(stamp.Parts, cfg.Name)
	}
	return archive.CreateShard(dir, stamp, resume)
}

// MergeConfigs copies what the shards measured into one folder, as one process would have written it, and reads it.
func MergeConfigs(folders []*archive.Folder, into *archive.Folder) ([]*profile.Output, error) {
	stamp := folders[0].Shard()
	for k, name := range stamp.Parts {
		if err := ended(folders[k%stamp.Count], name); err != nil {
			return nil, err
		}
	}
	var runs []*profile.Output
	for k, name := range stamp.Parts {
		from := folders[k%stamp.Count]
		parts := []string{name}
		if k == 0 { // what is measured once, before the first
			for _, p := range from.Parts() {
				if !slices.Contains(stamp.Parts, p.Name) {
					parts = append(parts, p.Name)
				}
			}
		}
		if err := into.Take(from, parts...); err != nil {
			return nil, err
		}
		run, err := ReadRun(into, name)
		if err != nil {
			return nil, err
		}
		runs = append(runs, run)
	}
	return runs, nil
}

// ShardLoad makes the folder of a share of the load of one configuration.
func ShardLoad(dir string, s *Setup, cfg harness.Config) (*archive.Folder, error) {
	start := ""
	if !s.StartAt.IsZero() {
		start = s.StartAt.UTC().Format(time.RFC3339Nano)
	}
	work, err := json.Marshal(map[string]any{"config": cfg, "start_at": start})
	if err != nil {
		return nil, err
	}
	stamp := archive.Shard{Shard: s.Shard, Kind: archive.ShardedLoad, Tool: s.Tool, Work: work}
	return archive.CreateShard(dir, stamp, false)
}

// MergeLoad unites the shards of a load and keeps the whole in a folder; see [profile.Merge].
func MergeLoad(folders []*archive.Folder, into *archive.Folder) (*profile.Output, error) {
	var shards []profile.ShardOutput
	for _, f := range folders {
		names := f.Results()
		if len(names) != 1 {
			return nil, fmt.Errorf("%s holds %d results, expected one: run all shards of the load again, together", f.Dir(),
				len(names))
		}
		if err := ended(f, names[0]); err != nil {
			return nil, err
		}
		run, err := ReadRun(f, names[0])
		if err != nil {
			return nil, err
		}
		var log []hist.Interval
		log, partial, err := f.ReadHistograms(names[0])
		if err == nil && partial {
			err = fmt.Errorf("%s is cut short", f.Path(names[0]+archive.LatencySuffix))
		}
		if err != nil {
			return nil, err
		}
		shards = append(shards, profile.ShardOutput{Output: run, Log: log})
	}
	out, err := profile.Merge(shards)
	if err != nil {
		return nil, err
	}
	return out, out.Save(into)
}
