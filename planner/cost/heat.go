package cost

import (
	"math"
	"time"
)

// Heat is how much of the recent past a device spent on arithmetic, 0..1, exponentially weighted. A part whose matrix
// units draw more than its power limit lowers its clocks: on one H200 (Llama-3.1-8B, vLLM 0.26) a step of 8192 prompt
// tokens takes 168 to 178 ms after idling, 186 to 189 ms a few steps later. The zero value is a device that has idled.
type Heat struct {
	level float64
	at    time.Duration
}

// heatTime is the time constant: the slowdown is there within the first two or three steps of 8192 tokens.
const heatTime = 250 * time.Millisecond

// coolTokens is the size of a step up to which memory, not arithmetic, sets the pace: the device cools meanwhile.
const coolTokens = 256

func (s Step) heats() bool { return s.Tokens() > coolTokens }

// before is the level at a moment after the last step that heated.
func (h *Heat) before(at time.Duration) float64 {
	const cold = 6 * heatTime
	since := max(0, at-h.at)
	if h.level == 0 || since > cold {
		return 0
	}
	return h.level * math.Exp(-since.Seconds()/heatTime.Seconds())
}

// During is the mean level over a step that runs from start for d, and makes that step part of the past.
func (h *Heat) During(s Step, start, d time.Duration) float64 {
	level := h.before(start)
	if !s.heats() || d <= 0 {
		return level
	}
	n := float64(s.Tokens())
	drive := (n - coolTokens) / (n + coolTokens)
	x := d.Seconds() / heatTime.Seconds()
	left := math.Exp(-x)
	h.level, h.at = drive+(level-drive)*left, start+d
	return drive + (level-drive)*(1-left)/x
}

// StepTime is how long the device is busy with a step that begins at start, by what t says of it.
func (h *Heat) StepTime(t Timer, s Step, start time.Duration) time.Duration {
	s.Heat = h.before(start)
	if d := t.StepTime(s); s.heats() {
		s.Heat = h.During(s, start, d)
	} else {
		return d
	}
	return t.StepTime(s)
}
