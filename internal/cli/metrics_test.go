package cli

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/stretchr/testify/require"
)

func (r *running) scrape() map[string]*dto.MetricFamily {
	r.t.Helper()
	secrets, err := os.ReadFile("data/env")
	require.NoError(r.t, err)
	admin := regexp.MustCompile(`ADMIN_TOKEN='([^']+)'`).FindSubmatch(secrets)
	status, answer := r.ask("GET", r.operators, "/metrics", string(admin[1]))
	require.Equal(r.t, 200, status)
	body := bodyOf(r.t, answer)
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(body))
	require.NoError(r.t, err)
	problems, err := promlint.New(strings.NewReader(body)).Lint()
	require.NoError(r.t, err)
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, "flashgate_") {
			r.t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
	return families
}

// The labels there are, each of a set that the program or its operators bound: no user,
// address, order or key is one.
var labels = []string{
	"answer", "cause", "code", "engine", "equation", "kind", "limit", "outcome", "query", "result", "route", "sale",
	"script", "state", "status", "step", "term", "trigger", "verdict",
}

// seriesMax bounds what a family has without any sale: routes × codes is the most.
const seriesMax = 250

// What operators look at, by what it is for.
var wanted = map[string][]string{
	"rate, errors, duration":        {"flashgate_http_requests_total", "flashgate_http_request_duration_seconds", "flashgate_http_requests_in_flight"},
	"batches and the queue":         {"flashgate_batch_requests", "flashgate_purchase_queue_depth"},
	"each step":                     {"flashgate_step_duration_seconds", "flashgate_redis_script_duration_seconds", "flashgate_bus_half_send_seconds", "flashgate_worker_transaction_duration_seconds"},
	"half messages, check-backs":    {"flashgate_bus_half_messages_total", "flashgate_bus_check_backs_total"},
	"tombstones and sweeps":         {"flashgate_batches_released_total", "flashgate_reconciler_released_batches_total", "flashgate_reconciler_purged_voids_total", "flashgate_reconciler_round_duration_seconds"},
	"tasks and dead batches":        {"flashgate_tasks", "flashgate_reconciler_tasks_done_total", "flashgate_dead_batches"},
	"lag":                           {"flashgate_bus_consumer_lag_messages", "flashgate_in_flight_oldest_seconds"},
	"conservation":                  {"flashgate_redis_units", "flashgate_redis_conservation_difference_units", "flashgate_ledger_units", "flashgate_ledger_conservation_difference_units", "flashgate_conservation_breaches_total"},
	"limits":                        {"flashgate_limits_refusals_total", "flashgate_limits_reload_failures_total", "flashgate_limits_tracked_buckets"},
	"Sentinel":                      {"flashgate_breaker_state", "flashgate_breaker_opened_total", "flashgate_breaker_refusals_total"},
	"pools of Redis and of MySQL":   {"flashgate_redis_wait_connections_in_use", "go_sql_open_connections", "go_sql_in_use_connections"},
	"the process and who it is":     {"go_goroutines", "go_memstats_heap_alloc_bytes", "process_resident_memory_bytes", "go_build_info"},
	"the reconciler and its leader": {"flashgate_reconciler_leader", "flashgate_reconcile_runs_total"},
}

func TestMetrics(t *testing.T) {
	inFolder(t)
	r := startEmbedded(t)
	status, answer := r.purchase()
	require.Equal(t, 202, status, answer)
	var families map[string]*dto.MetricFamily
	var missing []string
	require.Eventually(t, func() bool { // every loop has run once
		families, missing = r.scrape(), nil
		for what, names := range wanted {
			for _, name := range names {
				if len(families[name].GetMetric()) == 0 {
					missing = append(missing, what+": "+name)
				}
			}
		}
		applied, lag := families["flashgate_worker_transaction_duration_seconds"], families["flashgate_bus_consumer_lag_messages"]
		return len(missing) == 0 && applied.GetMetric()[0].GetHistogram().GetSampleCount() > 0 && lag.GetMetric()[0].GetGauge().GetValue() >= 0
	}, 30*time.Second, 50*time.Millisecond, "%s", &missing)

	for name, family := range families {
		if !strings.HasPrefix(name, "flashgate_") {
			require.Regexp(t, `^(go|process|promhttp)_`, name)
			continue
		}
		require.NotEmpty(t, family.GetHelp(), name)
		require.LessOrEqual(t, len(family.GetMetric()), seriesMax, name)
		for _, m := range family.GetMetric() {
			for _, l := range m.GetLabel() {
				require.True(t, slices.Contains(labels, l.GetName()), "%s{%s}", name, l.GetName())
			}
		}
		if family.GetType() == dto.MetricType_HISTOGRAM {
			require.Regexp(t, `_(seconds|requests|orders)$`, name, "a unit")
		}
	}
}
