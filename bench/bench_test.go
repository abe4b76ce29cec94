package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flashgate/bench/load"
	"flashgate/bench/report"
	"flashgate/bench/scenario"
	"flashgate/bench/system"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const testTimeout = time.Minute

// runBench runs a command of the driver against a fake with one fault and returns
// what it printed and its JSON report.
func runBench(t *testing.T, fault string, args ...string) (string, *report.Report, error) {
	t.Helper()
	dir := t.TempDir()
	limits, config := filepath.Join(dir, "limits.yaml"), filepath.Join(dir, "config.yaml")
	require.NoError(t, os.WriteFile(limits, []byte("address:\n  rate: 200 # a second\n"), 0o600))
	require.NoError(t, os.WriteFile(config, []byte(
		"listen: 127.0.0.1:1\noperators_listen: 127.0.0.1:2\nlimits: "+limits+"\nfault: "+fault+"\n"), 0o600))
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
	require.Less(t, rep.Value("burst"), 1.0, "the pause before asking again is no part of the burst")
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
	_, rep, err := runBench(t, "none", "accept", "--shoppers", "20000", "--warmup", "0", "--duration", "20ms")
	require.NoError(t, err)
	require.Less(t, rep.Answers[0].Count, int64(20_000))
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
	} {
		cmd := newCommand()
		cmd.SetArgs(args)
		require.Error(t, cmd.ExecuteContext(t.Context()), "%v", args)
	}
}
