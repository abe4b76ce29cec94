package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"flashgate/bench/report"
	"flashgate/bench/tool"
)

// fakeTool is a program that stands in for k6 or vegeta.
func fakeTool(t *testing.T, script string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "tool")
	require.NoError(t, os.WriteFile(file, []byte("#!/bin/sh\n"+script), 0o700))
	return file
}

// fakeK6 writes a summary where it is told to, and exits.
func fakeK6(t *testing.T, summary string, exit int) string {
	t.Helper()
	return fakeTool(t, fmt.Sprintf(`while [ "$1" != --summary-export ]; do shift; done
cat > "$2" <<'END'
%s
END
test -n "$SALE" && test -n "$GATEWAYS" && test "$FLASHGATE_JWT_SECRET" = a-secret && exit %d
exit 1
`, summary, exit))
}

func TestK6IsHeldToTheLedger(t *testing.T) {
	t.Parallel()
	const nothing = `{"metrics": {"purchases_sold_out": {"count": 9}, "purchase_ms": {"med": 1, "p(99)": 2}}}`
	out, rep, err := runBench(t, "none", "k6", "storm", "--k6", fakeK6(t, nothing, 0))
	require.NoError(t, err, out)
	require.InDelta(t, 9, rep.Value("purchases sold out"), 0)
	require.InDelta(t, 2, rep.Value("purchase P99"), 0)
	require.NotEmpty(t, rep.Audit)

	for rule, k6 := range map[string]string{
		tool.RuleKept:            fakeK6(t, `{"metrics": {"purchases_accepted": {"count": 3}}}`, 0),
		"k6's thresholds hold":   fakeK6(t, nothing, 99),
		"flashgate audit finds ": fakeK6(t, nothing, 0),
	} {
		fault := map[bool]string{true: "audit", false: "none"}[strings.Contains(rule, "audit")]
		out, rep, err := runBench(t, fault, "k6", "soak", "--k6", k6)
		require.ErrorIs(t, err, report.ErrBroken, out)
		require.Contains(t, rep.Breaches[0].Rule, rule)
		require.Empty(t, rep.Figures)
	}
}

// fakeVegeta attacks nobody, and reports what it is told to.
func fakeVegeta(t *testing.T, results string) string {
	t.Helper()
	return fakeTool(t, fmt.Sprintf("case $1 in report) echo '%s' ;; plot) echo a plot ;; esac\n", results))
}

func TestVegetaIsHeldToTheLedger(t *testing.T) {
	t.Parallel()
	run := func(results string) (*report.Report, string, error) {
		plot := filepath.Join(t.TempDir(), "plot.html")
		_, rep, err := runBench(t, "none", "vegeta", "--rate", "10", "--duration", "1s", "--vegeta", fakeVegeta(t, results), "--plot", plot)
		return rep, plot, err
	}
	rep, plot, err := run(`{"requests": 0, "status_codes": {}}`)
	require.NoError(t, err)
	require.NotEmpty(t, rep.Audit)
	text, err := os.ReadFile(plot)
	require.NoError(t, err)
	require.Equal(t, "a plot\n", string(text))

	for results, rule := range map[string]string{
		`{"requests": 9, "status_codes": {"202": 9}}`:                    tool.RuleKept,
		`{"requests": 9, "status_codes": {"202": 3, "409": 6}}`:          "as many are told 202",
		`{"requests": 3000, "status_codes": {"202": 2000, "500": 1000}}`: "everyone is told",
	} {
		rep, _, err := run(results)
		require.ErrorIs(t, err, report.ErrBroken)
		require.Contains(t, rep.Breaches[0].Rule, rule)
	}
}
