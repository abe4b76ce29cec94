package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"flashgate/bench/load"
	"flashgate/bench/report"
	"flashgate/bench/scenario"
	"flashgate/bench/system"
)

const testTimeout = 5 * time.Minute // a bound on a hang, not on a busy machine

// runBench runs a command of the driver against a fake with one fault and returns
// what it printed and its JSON report.
func runBench(t *testing.T, fault string, args ...string) (string, *report.Report, error) {
	t.Helper()
	dir := t.TempDir()
	limits, config := filepath.Join(dir, "limits.yaml"), filepath.Join(dir, "config.yaml")
	require.NoError(t, os.WriteFile(limits, []byte("address:\n  rate: 200 # a second\n"), 0o600))
	require.NoError(t, os.WriteFile(config, []byte(
		"listen: 127.0.0.1:1\noperators_listen: 127.0.0.1:2\nlimits: "+limits+"\nfault: "+fault+"\n"), 0o600))
	if args[0] == "k6" { // which signs tokens itself
		require.NoError(t, os.WriteFile(filepath.Join(dir, "env"), []byte("FLASHGATE_JWT_SECRET=a-secret\n"), 0o600))
		config = appendTo(t, config, "data_dir: "+dir+"\n")
	}
	self, err := os.Executable()
	require.NoError(t, err)

	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	jsonFile := filepath.Join(dir, "report.json")
	cmd := newCommand()
	cmd.SetArgs(append(args, "--start", "daemons", "--gateways", "1", "--workers", "1",
		"--flashgate", self, "--config", config, "--connections", "16", "--json", jsonFile))
	var out bytes.Buffer
	cmd.SetOut(&out)
	err = cmd.ExecuteContext(ctx)
	text, readErr := os.ReadFile(jsonFile)
	if readErr != nil {
		return out.String(), nil, err
	}
	rep := &report.Report{}
	require.NoError(t, json.Unmarshal(text, rep))
	return out.String(), rep, err
}

func appendTo(t *testing.T, file, text string) string {
	t.Helper()
	old, err := os.ReadFile(file)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(file, append(old, text...), 0o600))
	return file
}

func TestStormOfASoundShop(t *testing.T) {
	t.Parallel()
	out, rep, err := runBench(t, "none", "storm", "--shoppers", "300", "--total", "20")
	require.NoError(t, err, out)
	require.Empty(t, rep.Breaches)
	require.Positive(t, rep.Value("answers"))
	require.Positive(t, rep.Value("last 202 in the ledger"))
	require.Equal(t, []load.Count{
		{Kind: load.Kind{Status: 409, Code: "SOLD_OUT"}, Count: 560},
		{Kind: load.Kind{Status: 202}, Count: 40},
	}, rep.Answers)
	require.Contains(t, out, "storm: good")
	require.Contains(t, out, "20 of 20 orders across both stores")
	require.NotEmpty(t, rep.Audit)
}

// TestStormCatches plants one fault at a time in the shop.
func TestStormCatches(t *testing.T) {
	t.Parallel()
	for fault, rule := range map[string]string{
		"oversell":        scenario.RuleOversell,
		"doubled-id":      scenario.RuleDistinct,
		"replay-id":       scenario.RuleSameID,
		"refused-replay":  scenario.RuleTruthful,
		"unmarked-replay": scenario.RuleReplayed,
		"missing-answer":  scenario.RuleAnswered,
		"no-id":           scenario.RuleOrderID,
		"code":            scenario.RuleSoldOut,
		"lost":            system.RulePersisted,
		"cancelled":       system.RuleKept,
		"invisible":       system.RuleVisible,
		"stock":           system.RuleStockLeft,
		"audit":           system.RuleAudit,
	} {
		t.Run(fault, func(t *testing.T) {
			t.Parallel()
			out, rep, err := runBench(t, fault, "storm", "--shoppers", "100", "--total", "10", "--drain", "500ms")
			require.ErrorIs(t, err, report.ErrBroken, out)
			require.Empty(t, rep.Figures, "a run that broke a rule shows no figure")
			var rules []string
			for _, b := range rep.Breaches {
				rules = append(rules, b.Rule)
			}
			require.Contains(t, rules, rule)
			require.Contains(t, out, "BROKEN: "+rule)
		})
	}
}

func TestAcceptOfASoundShop(t *testing.T) {
	t.Parallel()
	out, rep, err := runBench(t, "none", "accept", "--shoppers", "500", "--warmup", "10")
	require.NoError(t, err, out)
	require.Positive(t, rep.Value(scenario.FigureAccepted))
	require.Positive(t, rep.Value("202 P99"))
	require.Greater(t, rep.Value("burst")+rep.Value("drain"), persistDelay.Seconds())
	require.Less(t, rep.Value("persisted"), rep.Value(scenario.FigureAccepted))
}

func TestAcceptRefusedByLimitsIsNoFigure(t *testing.T) {
	t.Parallel()
	out, rep, err := runBench(t, "none", "accept", "--shoppers", "50", "--warmup", "0", "--limits", "as-is")
	require.ErrorContains(t, err, "no purchase was accepted")
	require.Empty(t, rep.Figures)
	require.Contains(t, out, "429 RATE_LIMITED")
}

func TestAcceptAsksAgainAfter503(t *testing.T) {
	t.Parallel()
	out, rep, err := runBench(t, "busy-once", "accept", "--shoppers", "50", "--warmup", "0")
	require.NoError(t, err, out)
	require.Contains(t, out, "asked again  3")
	require.Equal(t, []load.Count{
		{Kind: load.Kind{Status: 202}, Count: 50},
		{Kind: load.Kind{Status: 503, Code: "UNAVAILABLE"}, Count: 3},
	}, rep.Answers)
	whole := 50 / rep.Value(scenario.FigurePersisted)
	require.GreaterOrEqual(t, whole-rep.Value(scenario.FigureBurst)-rep.Value(scenario.FigureDrain), 1.0,
		"the pause before asking again is no part of the burst, nor of the drain")
}

func TestAcceptGivesUpWhere503Stays(t *testing.T) {
	t.Parallel()
	_, rep, err := runBench(t, "busy", "accept", "--shoppers", "20", "--warmup", "0")
	require.Error(t, err)
	require.Equal(t, scenario.RuleAccepted, rep.Breaches[0].Rule)
	require.Equal(t, int64(20*(1+scenario.AskAgainRounds)), rep.Answers[0].Count)
}

func TestAcceptEndsByItsDuration(t *testing.T) {
	t.Parallel()
	_, rep, err := runBench(t, "none", "accept", "--shoppers", "2000", "--warmup", "0", "--rate", "100", "--duration", "1s")
	require.NoError(t, err)
	require.Less(t, rep.Answers[0].Count, int64(2000), "which would take twenty seconds")
}

func TestCompareBatchShowsBothAndTheRatio(t *testing.T) {
	t.Parallel()
	out, rep, err := runBench(t, "none", "compare-batch", "--shoppers", "200", "--warmup", "0")
	require.NoError(t, err, out)
	require.Len(t, rep.Runs, 2)
	require.InDelta(t, rep.Value("accepted, as configured")/rep.Value("accepted, batch.max 1"), rep.Value("ratio"), 1e-9)
}

func TestCompareBatchFailsWithEitherRun(t *testing.T) {
	t.Parallel()
	_, rep, err := runBench(t, "audit", "compare-batch", "--shoppers", "50", "--warmup", "0")
	require.ErrorIs(t, err, report.ErrBroken)
	require.Len(t, rep.Runs, 1)
	require.Empty(t, rep.Runs[0].Figures)
}

func TestADaemonThatStopsBadlyIsNoFigure(t *testing.T) {
	t.Parallel()
	_, rep, err := runBench(t, "bad-stop", "accept", "--shoppers", "50", "--warmup", "0")
	require.ErrorContains(t, err, "gateway-1 stopped badly")
	require.Empty(t, rep.Figures)
}

func TestAcceptOverManySales(t *testing.T) {
	t.Parallel()
	out, rep, err := runBench(t, "none", "many", "--shoppers", "100", "--warmup", "0", "--sales", "7")
	require.NoError(t, err, out)
	require.Contains(t, out, "140 of 100 orders", "each of seven audits compared twenty, the fake says")
	require.Positive(t, rep.Value(scenario.FigureAccepted))
}

func TestDuplicates(t *testing.T) {
	t.Parallel()
	out, rep, err := runBench(t, "none", "duplicates", "--shoppers", "60")
	require.NoError(t, err, out)
	require.Equal(t, []load.Count{{Kind: load.Kind{Status: 202}, Count: 300}}, rep.Answers)
	_, rep, err = runBench(t, "unmarked-replay", "duplicates", "--shoppers", "60", "--drain", "500ms")
	require.ErrorIs(t, err, report.ErrBroken)
	require.Equal(t, scenario.RuleReplayed, rep.Breaches[0].Rule)
}

func TestAnOpenLoopKeepsItsRate(t *testing.T) {
	t.Parallel()
	_, rep, err := runBench(t, "none", "duplicates", "--shoppers", "40", "--rate", "1000")
	require.NoError(t, err)
	require.LessOrEqual(t, rep.Value(scenario.FigureAnswers), 1020.0, "200 requests, the last due after 199 ms")
}

func TestMixed(t *testing.T) {
	t.Parallel()
	out, rep, err := runBench(t, "none", "mixed", "--peak", "400", "--lead", "5s", "--half", "200ms", "--tail", "500ms")
	require.NoError(t, err, out)
	require.Positive(t, rep.Value("opening second P99"))
	require.Contains(t, out, "409 NOT_STARTED")
	require.Contains(t, out, "409 SOLD_OUT")
}

// runWhole is runBench of a command that writes its report into a folder.
func runWhole(t *testing.T, fault string, args ...string) (out string, rep *report.Report, folder string, err error) {
	t.Helper()
	folder = t.TempDir()
	out, _, err = runBench(t, fault, append(args, "--out", folder)...)
	rep, failed := report.Read(filepath.Join(folder, map[string]string{"all": "report.json", "scale": "scale.json"}[args[0]]))
	require.NoError(t, failed, out)
	return out, rep, folder, err
}

func TestAllMakesRatiosOfItsRuns(t *testing.T) {
	t.Parallel()
	out, rep, folder, err := runWhole(t, "none", "all", "--size", "0.001", "--repeat", "2")
	require.NoError(t, err, out)
	require.Len(t, rep.Runs, 2*6+3+3)
	for _, ratio := range []string{"storm ÷ hello", "storm P99 ÷ hello P99", "accepted ÷ one half message an order",
		"accepted ÷ hello", "persisted ÷ bare bulk insert", "drain ÷ burst", "duplicates ÷ accept"} {
		require.Positive(t, rep.Value(ratio), ratio)
		require.Contains(t, out, ratio)
	}
	sheet := rep.Sheet()
	hello, _ := report.Of(sheet, "hello · answers")
	storm, _ := report.Of(sheet, "storm · answers")
	require.Len(t, hello.Values, 4, "before and after")
	ratio, _ := report.Of(sheet, "storm ÷ hello")
	require.Len(t, ratio.Values, 2)
	for n := range ratio.Values {
		require.InEpsilon(t, 2*storm.Values[n]/(hello.Values[2*n]+hello.Values[2*n+1]), ratio.Values[n], 1e-9)
	}
	require.Contains(t, out, "in 2 runs")
	page, err := os.ReadFile(filepath.Join(folder, "report.html"))
	require.NoError(t, err)
	require.True(t, bytes.Contains(page, []byte("storm: answers a second")))
}

func TestAllStopsAtARunThatBrokeARule(t *testing.T) {
	t.Parallel()
	out, rep, _, err := runWhole(t, "unmarked-replay", "all", "--size", "0.001", "--drain", "500ms")
	require.ErrorIs(t, err, report.ErrBroken)
	require.Contains(t, out, "BROKEN: "+scenario.RuleReplayed)
	require.Empty(t, rep.Figures)
	last := rep.Runs[len(rep.Runs)-1]
	require.Equal(t, "storm", last.Scenario)
	require.Empty(t, last.Figures)
	require.NotEmpty(t, rep.Runs[0].Figures, "a sound run keeps its own")
}

func TestCompareOfReports(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, value := range map[string]float64{"a.json": 100, "b.json": 150} {
		rep := report.New("all", "")
		for n := range 3 {
			run := report.New("storm", "")
			run.Figure("answers", value+float64(n), "/s")
			rep.Runs = append(rep.Runs, run)
		}
		require.NoError(t, rep.Write(filepath.Join(dir, name)))
	}
	cmd := newCommand()
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetArgs([]string{"compare", filepath.Join(dir, "a.json"), filepath.Join(dir, "b.json")})
	require.NoError(t, cmd.ExecuteContext(t.Context()))
	require.Regexp(t, `storm · answers +101 +151 +1\.495 +/s +every run`, out.String())
}

func TestCompareOfBuilds(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	require.NoError(t, err)
	folder := t.TempDir()
	out, _, err := runBench(t, "none", "compare", self, self, "--size", "0.002", "--repeat", "2", "--out", folder)
	require.NoError(t, err, out)
	require.Contains(t, out, "accept · accepted")
	b, err := report.Read(filepath.Join(folder, "b.json"))
	require.NoError(t, err)
	require.Len(t, b.Runs, 4)
}

func TestScaleChangesOneThingAtATime(t *testing.T) {
	t.Parallel()
	out, rep, _, err := runWhole(t, "none", "scale", "--orders", "60", "--gateway-counts", "1", "--worker-counts", "1,2", "--sales", "1,3",
		"--connection-counts", "2,8", "--stock", "10,1000", "--buyers", "100", "--slices", "2")
	require.NoError(t, err, out)
	var points []string
	for _, run := range rep.Runs {
		points = append(points, run.Scenario)
	}
	require.Equal(t, []string{"gateways: 1", "workers: 1", "workers: 2", "sales: 1", "sales: 3", "connections: 2", "connections: 8",
		"stock: 10", "stock: 1000", "buyers: 100"}, points)
	require.Positive(t, rep.Runs[9].Value("accepted, after 50"))
}

func TestScaleBeginsNothingAfterItsLimit(t *testing.T) {
	t.Parallel()
	out, rep, _, err := runWhole(t, "none", "scale", "--orders", "20", "--worker-counts", "", "--limit", "1ns")
	require.NoError(t, err, out)
	require.Empty(t, rep.Runs)
	require.Contains(t, out, "ended before: gateways: 1")
}

func TestHello(t *testing.T) {
	cmd := newCommand()
	cmd.SetArgs([]string{"hello", "--requests", "2000", "--connections", "8"})
	var out bytes.Buffer
	cmd.SetOut(&out)
	require.NoError(t, cmd.ExecuteContext(t.Context()))
	require.Contains(t, out.String(), "hello: good")
}

func TestAnEndedContextStopsALoad(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := (&scenario.Hello{Requests: 1_000_000}).Run(ctx, &system.Options{Connections: 4, Timeout: time.Second}, &load.Progress{})
	require.ErrorIs(t, err, context.Canceled)
}

func TestOptionsAreRefusedBeforeAnythingStarts(t *testing.T) {
	for _, args := range [][]string{
		{"hello", "--requests", "0"},
		{"storm", "--connections", "100000"},
		{"storm", "--start", "somehow"},
		{"storm", "--limits", "none"},
		{"storm", "--shoppers", "10", "--total", "10", "--flashgate", "x"},
		{"accept", "--shoppers", "999999999"},
		{"accept", "--start", "daemons", "--workers", "0"},
		{"accept", "--start", "embedded", "--mysql"},
		{"accept", "--gateway", "127.0.0.1:8080", "--flashgate", "x"},
		{"accept", "--gateway", "https://127.0.0.1:8080", "--flashgate", "x"},
		{"compare-batch", "--start", "none"},
		{"all", "--size", "0"},
		{"all", "--repeat", "100"},
		{"all", "--start", "none", "--flashgate", "x"},
		{"scale", "--stock", "0"},
		{"scale", "--limit", "0s"},
		{"many", "--shoppers", "10", "--sales", "11"},
		{"duplicates", "--sends", "1000"},
		{"mixed", "--peak", "10", "--quiet", "20"},
		{"compare", "no-such-file", "nor-this"},
		{"k6", "tempest"},
		{"k6", "storm", "--k6", "no-such-file"},
		{"vegeta", "--rate", "0"},
		{"targets"},
		{"rebuild"},
		{"rebuild", "--flushall", "x", "--start", "embedded"},
		{"rebuild", "--flushall", "x", "--orders", "0"},
	} {
		cmd := newCommand()
		cmd.SetArgs(args)
		require.Error(t, cmd.ExecuteContext(t.Context()), "%v", args)
	}
}
