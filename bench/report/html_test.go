package report

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"flashgate/bench/load"
	"flashgate/bench/usage"
)

// measuredRun is a run with everything that a report can show.
func measuredRun(scenario string, rate float64) *Report {
	ks := load.NewKinds()
	yes := ks.Number(202, "", nil)
	rec := &load.Recording{Kinds: ks, Took: time.Second, Answers: []load.Answer{
		{Status: 202, Kind: yes, TookNanos: 1_000_000, DoneNanos: 1_000_000},
		{Status: 202, Kind: yes, TookNanos: 3_000_000, DoneNanos: 900_000_000},
	}}
	run := New(scenario, "")
	run.Figure("answers", rate, "/s")
	run.Latency("answer", rec.Answers, func(*load.Answer) bool { return true })
	run.Throughput(rec)
	run.Took([]usage.Usage{{Name: "gateway-1", CPUSeconds: 0.5, PeakBytes: 1 << 20, Samples: []usage.Sample{{Seconds: 1, Cores: 0.5, Bytes: 1 << 20}}}}, 2)
	return run
}

func TestThePageHasEveryFigureAndChart(t *testing.T) {
	rep := New("all", "")
	rep.Runs = []*Report{measuredRun("storm", 100), measuredRun("hello", 400), measuredRun("storm", 300)}
	rep.Figures = append(rep.Figures, Figure{Name: "storm ÷ hello", Value: 0.5, Unit: "×", Target: AtLeast(0.75, 0.95)})
	file := filepath.Join(t.TempDir(), "report.html")
	require.NoError(t, rep.WriteHTML(file, "charts.js"))
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	page := string(text)
	for _, part := range []string{
		`src="charts.js"`, "storm ÷ hello", "MISSED", "(100–300 in 2 runs)", "250000", // µs of processors a request
		"storm: latency", "storm: answers a second", "storm: processors by process", "storm: memory by process", "hello: latency", "gateway-1",
	} {
		require.True(t, strings.Contains(page, part), part)
	}
	require.Equal(t, 1, strings.Count(page, "<h2>storm</h2>"), "a section a scenario")
}

// A figure that only a later run has stands with the others of its scenario.
func TestTheSheetIsByScenario(t *testing.T) {
	later := measuredRun("storm", 300)
	later.Figure("CPU worker-1", 1, "µs a request")
	rep := New("all", "")
	rep.Runs = []*Report{measuredRun("storm", 100), measuredRun("hello", 400), later}
	var scenarios []string
	for _, m := range rep.Sheet() {
		of, _, _ := strings.Cut(m.Name, " · ")
		scenarios = append(scenarios, of)
	}
	require.Equal(t, []string{"storm", "hello"}, slices.Compact(scenarios))
}

func TestAPageOfOneRun(t *testing.T) {
	file := filepath.Join(t.TempDir(), "report.html")
	require.NoError(t, measuredRun("storm", 100).WriteHTML(file, EChartsURL))
	page, err := os.ReadFile(file)
	require.NoError(t, err)
	require.True(t, strings.Contains(string(page), "storm: memory by process"))
}

func TestTheWordsOfATarget(t *testing.T) {
	for want, got := range map[string]string{
		"":             (*Target)(nil).Verdict(1),
		"MISSED":       AtLeast(2, 3).Verdict(1.9),
		": reached":    AtLeast(2, 3).Verdict(2),
		"aim reached":  AtLeast(2, 3).Verdict(3),
		"≤ 2, aims at": AtMost(2, 1).Verdict(9),
		"at 1: MISSED": AtMost(2, 1).Verdict(2.1),
		"1: reached":   AtMost(2, 1).Verdict(1.5),
		"1: aim reach": AtMost(2, 1).Verdict(0.2),
	} {
		require.True(t, strings.Contains(got, want), "%q in %q", want, got)
	}
}

func TestMedians(t *testing.T) {
	for want, values := range map[float64][]float64{2: {3, 1, 2}, 2.5: {1, 4, 2, 3}, 7: {7}} {
		m := Measured{Values: values}
		require.InDelta(t, want, m.Median(), 1e-12)
	}
}

func TestRatesCountEveryAnswer(t *testing.T) {
	run := measuredRun("storm", 1)
	sum := 0.0
	for _, v := range run.Rates[0].Values {
		sum += v * run.Rates[0].StepSeconds
	}
	require.InDelta(t, 2, sum, 1e-9)
}
