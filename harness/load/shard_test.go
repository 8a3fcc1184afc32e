package load

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"kvtune/harness/workload"
)

// TestShardsAreOneSchedule: generators that are started at different moments with the same StartAt send, each its
// share, what one would have sent, at the same moments of the clock; what goes before is sent at once.
func TestShardsAreOneSchedule(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		whole := requests(41, func(i int, r *workload.Request) {
			if i < 5 {
				r.Phase = workload.Prime
				return
			}
			r.Wave, r.Due = 1, time.Duration((i-5)*(i-5))*time.Millisecond
		})
		at := time.Now().Add(10 * time.Second)
		moments := make(map[int]time.Time)
		type sent struct {
			index int
			at    time.Time
		}
		ends := make(chan []sent, 3)
		for i := range 3 {
			go func() {
				time.Sleep(time.Duration(i) * 3 * time.Second)
				shard, err := whole.Shard(i, 3, false)
				if err != nil {
					t.Error(err)
				}
				run := do(t, t.Context(), Options{Client: &server{serve: steady}, Workload: shard, StartAt: at})
				if run.Begin == nil || !run.Started.Add(*run.Begin).Equal(at) {
					t.Errorf("shard %d began %v after its start at %v, want %v", i, run.Begin, run.Started, at)
				}
				var all []sent
				for _, r := range run.Records {
					if r.Phase == workload.Prime && r.Sent != 0 {
						t.Errorf("shard %d primed after %v", i, r.Sent)
					}
					all = append(all, sent{r.Index, run.Started.Add(r.Sent)})
				}
				ends <- all
			}()
		}
		for range 3 {
			for _, s := range <-ends {
				if _, twice := moments[s.index]; twice {
					t.Errorf("request %d was sent twice", s.index)
				}
				moments[s.index] = s.at
			}
		}
		for i, r := range whole.Requests {
			if got, ok := moments[i]; !ok || r.Phase == workload.Measured && !got.Equal(at.Add(r.Due)) {
				t.Errorf("request %d was sent at %v, want %v", i, got, at.Add(r.Due))
			}
		}
	})
}

// TestStartAtThatHasPassed: what goes before takes longer than until then; the measured requests follow it.
func TestStartAtThatHasPassed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := requests(6, func(i int, r *workload.Request) {
			if i > 0 {
				r.Wave = 1
			} else {
				r.Phase = workload.Prime
			}
		})
		run := do(t, t.Context(), Options{Client: &server{serve: steady}, Workload: w,
			StartAt: time.Now().Add(15 * time.Millisecond)})
		if *run.Begin != 40*time.Millisecond ||
			slices.ContainsFunc(run.Records[1:], func(r workload.Record) bool { return r.Sent != *run.Begin }) {
			t.Errorf("begun after %v", *run.Begin)
		}
	})
}
