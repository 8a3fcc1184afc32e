package bench

import (
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
)

// assumedCache is taken for the host's last-level cache where the system tells of none, in bytes.
const assumedCache = 64 << 20

// cacheSize is the largest cache that a core of the host has, in bytes.
func cacheSize() int64 {
	files, err := filepath.Glob("/sys/devices/system/cpu/cpu0/cache/index*/size")
	if err != nil {
		return assumedCache // the pattern is fixed
	}
	largest := int64(0)
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		number, unit := strings.TrimSpace(string(text)), int64(1)
		if n, ok := strings.CutSuffix(number, "K"); ok {
			number, unit = n, 1<<10
		} else if n, ok := strings.CutSuffix(number, "M"); ok {
			number, unit = n, 1<<20
		}
		if n, err := strconv.ParseInt(number, 10, 64); err == nil {
			largest = max(largest, n*unit)
		}
	}
	if largest == 0 {
		return assumedCache
	}
	return largest
}

// evict reads twice as much as the host's largest cache holds, so that nothing else is left in it. What it leaves there
// is clean: no write-back falls into the launch that follows.
func (r *runner) evict(cache int64) {
	if r.sweep == nil {
		r.sweep = make([]uint64, 2*cache/8)
		for i := range r.sweep { // touched pages are memory of their own
			r.sweep[i] = uint64(i)
		}
	}
	sum := uint64(0)
	for i := 0; i < len(r.sweep); i += 8 { // one number of a cache line
		sum += r.sweep[i]
	}
	runtime.KeepAlive(sum)
}
