package scenario

import (
	"testing"

	"github.com/stretchr/testify/require"

	"flashgate/bench/report"
)

// A machine that is half as fast for a while takes nothing from the ratios of the repeats
// that were then.
func TestRatiosAreOfRepeats(t *testing.T) {
	rep := report.New("all", "")
	run := func(scenario, figure string, value float64) {
		r := report.New(scenario, "")
		r.Figure(figure, value, "/s")
		rep.Runs = append(rep.Runs, r)
	}
	for _, speed := range []float64{1, 0.5, 1} {
		run("hello", "answers", 900*speed)
		run("storm", "answers", 800*speed)
		run("hello", "answers", 1100*speed)
		run("accept", "accepted", 300*speed)
	}
	run("bare EVALSHA", "sold", 600)
	ratios(rep, 3, true)
	sheet := rep.Sheet()
	of := func(name string) report.Measured {
		m, ok := report.Of(sheet, name)
		require.True(t, ok, name)
		return m
	}
	storm := of("storm ÷ hello")
	require.InDeltaSlice(t, []float64{0.8, 0.8, 0.8}, storm.Values, 1e-9)
	require.Equal(t, "wants ≥ 0.75, aims at 0.95: reached", storm.Target.Verdict(storm.Median()))
	require.InDeltaSlice(t, []float64{0.5, 0.25, 0.5}, of("accepted ÷ bare EVALSHA").Values, 1e-9)
	_, ok := report.Of(sheet, "duplicates ÷ accept")
	require.False(t, ok, "of what did not run")
}
