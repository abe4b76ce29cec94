package report

import "fmt"

// Target is what a figure is to reach, and what it aims at.
type Target struct {
	Bound  float64 `json:"bound"`
	Aim    float64 `json:"aim"`
	AtMost bool    `json:"at_most,omitempty"` // less is better
}

// AtLeast is the target of a figure of which more is better.
func AtLeast(bound, aim float64) *Target { return &Target{Bound: bound, Aim: aim} }

// AtMost is the target of a figure of which less is better.
func AtMost(bound, aim float64) *Target { return &Target{Bound: bound, Aim: aim, AtMost: true} }

// Verdict holds a value against the target, in words; of no target, "".
func (t *Target) Verdict(value float64) string {
	if t == nil {
		return ""
	}
	sign, reaches := "≥", func(mark float64) bool { return value >= mark }
	if t.AtMost {
		sign, reaches = "≤", func(mark float64) bool { return value <= mark }
	}
	word := "MISSED"
	switch {
	case reaches(t.Aim):
		word = "aim reached"
	case reaches(t.Bound):
		word = "reached"
	}
	return fmt.Sprintf("wants %s %g, aims at %g: %s", sign, t.Bound, t.Aim, word)
}
