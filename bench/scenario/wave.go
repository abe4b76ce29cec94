package scenario

import (
	"errors"
	"math"
	"time"
)

// Wave is how shoppers arrive at a real sale: few while it is awaited, all at once in
// the second that it opens, then fewer and fewer.
type Wave struct {
	Peak  float64       // arrivals a second in the opening second
	Quiet float64       // arrivals a second before, and the least after
	Lead  time.Duration // from the start of the load to the opening
	Half  time.Duration // after the opening second, arrivals halve in this time
	Tail  time.Duration // from the end of the opening second to the end of the load
}

const (
	openingSecond = time.Second
	waveStep      = time.Millisecond // in which arrivals are spread
)

// Check refuses what makes no sense.
func (w *Wave) Check() error {
	if w.Peak < 1 || w.Quiet < 0 || w.Quiet > w.Peak || w.Lead <= 0 || w.Half <= 0 || w.Tail < 0 {
		return errors.New("want a peak of 1/s or more, less than that when quiet, and positive times")
	}
	return nil
}

// rate is the arrivals a second at a time from the start.
func (w *Wave) rate(at time.Duration) float64 {
	after := at - w.Lead - openingSecond
	switch {
	case at < w.Lead:
		return w.Quiet
	case after <= 0:
		return w.Peak
	default:
		return max(w.Quiet, w.Peak*math.Exp2(-after.Seconds()/w.Half.Seconds()))
	}
}

// arrivals is when each shopper arrives, from the start, in order.
func (w *Wave) arrivals() []time.Duration {
	var out []time.Duration
	due := 0.0
	for at := time.Duration(0); at < w.Lead+openingSecond+w.Tail; at += waveStep {
		due += w.rate(at) * waveStep.Seconds()
		n := int(due)
		for i := range n {
			out = append(out, at+waveStep*time.Duration(i)/time.Duration(n))
		}
		due -= float64(n)
	}
	return out
}

// requests is how many arrivals there are.
func (w *Wave) requests() int { return len(w.arrivals()) }
