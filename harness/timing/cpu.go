package timing

import "time"

// Launch runs the work n times back to back and returns when it is done.
type Launch func(n int) error

// CPU is the clock of work on the host: the monotonic clock of the system around every sample. before, if not nil, runs
// ahead of every sample outside of the timed part; one that makes caches cold needs samples of one launch.
func CPU(launch Launch, before func() error) Clock { return cpuClock{launch, before} }

type cpuClock struct {
	launch Launch
	before func() error
}

func (c cpuClock) Series(samples, launches int) ([]Reading, error) {
	seconds, err := c.time(samples, launches, c.launch)
	readings := make([]Reading, len(seconds))
	for i, s := range seconds {
		readings[i].Seconds = s
	}
	return readings, err
}

func (c cpuClock) Empty(samples int) ([]float64, error) {
	return cpuClock{}.time(samples, 1, func(int) error { return nil })
}

func (c cpuClock) time(samples, launches int, launch Launch) ([]float64, error) {
	seconds := make([]float64, samples)
	for i := range seconds {
		if c.before != nil {
			if err := c.before(); err != nil {
				return nil, err
			}
		}
		begin := time.Now()
		if err := launch(launches); err != nil {
			return nil, err
		}
		seconds[i] = time.Since(begin).Seconds()
	}
	return seconds, nil
}
