package cli

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/stretchr/testify/require"

	"flashgate/internal/config"
)

// output is what a process prints, while it does.
type output struct {
	mu sync.Mutex
	bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.Buffer.Write(b)
}

func (o *output) text() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.String()
}

// running is flashgate in one process on embedded engines, in this one.
type running struct {
	t                   *testing.T
	shoppers, operators string
	out                 *output
	token               string
}

func startEmbedded(t *testing.T, edit ...string) *running {
	t.Helper()
	inFolder(t)
	text, err := os.ReadFile("configs/embedded.yaml")
	require.NoError(t, err)
	changed := strings.NewReplacer(append([]string{"127.0.0.1:8080", "127.0.0.1:0", "127.0.0.1:9090", "127.0.0.1:0"}, edit...)...).Replace(string(text))
	require.NoError(t, os.WriteFile("configs/embedded.yaml", []byte(changed), 0o600))
	c, err := config.Load("configs/embedded.yaml")
	require.NoError(t, err)
	r := &running{t: t, out: &output{}}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- runEmbedded(ctx, c, r.out) }()
	t.Cleanup(func() {
		stop()
		require.NoError(t, <-done)
	})
	printed := regexp.MustCompile(`(?s)shoppers +(http://\S+)/v1/sales.*operators +(http://\S+).*Authorization: Bearer (\S+)'`)
	require.Eventually(t, func() bool {
		select {
		case err := <-done:
			done <- err
			t.Error("ended", err)
			return true
		default:
		}
		m := printed.FindStringSubmatch(r.out.text())
		if m != nil {
			r.shoppers, r.operators, r.token = m[1], m[2], m[3]
		}
		return m != nil
	}, 30*time.Second, 5*time.Millisecond)
	require.Eventually(t, func() bool {
		answer, _ := r.ask("GET", r.operators+"/readyz")
		return answer.StatusCode == 200
	}, 30*time.Second, 10*time.Millisecond)
	return r
}

// ask sends a request with headers in pairs and reads the answer.
func (r *running) ask(method, url string, headers ...string) (*http.Response, string) {
	r.t.Helper()
	q, err := http.NewRequest(method, url, nil)
	require.NoError(r.t, err)
	for i := 0; i < len(headers); i += 2 {
		q.Header.Set(headers[i], headers[i+1])
	}
	answer, err := http.DefaultClient.Do(q)
	require.NoError(r.t, err)
	defer func() { _ = answer.Body.Close() }()
	body, err := io.ReadAll(answer.Body)
	require.NoError(r.t, err)
	return answer, string(body)
}

func (r *running) purchase(headers ...string) (*http.Response, string) {
	return r.ask("POST", r.shoppers+"/v1/sales/demo/purchases", append([]string{"Authorization", "Bearer " + r.token}, headers...)...)
}

func (r *running) scrape() map[string]*dto.MetricFamily {
	r.t.Helper()
	secrets, err := os.ReadFile("data/env")
	require.NoError(r.t, err)
	admin := regexp.MustCompile(`ADMIN_TOKEN='([^']+)'`).FindSubmatch(secrets)
	answer, body := r.ask("GET", r.operators+"/metrics", "Authorization", "Bearer "+string(admin[1]))
	require.Equal(r.t, 200, answer.StatusCode)
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
	r := startEmbedded(t)
	answer, body := r.purchase()
	require.Equal(t, 202, answer.StatusCode, body)
	var families map[string]*dto.MetricFamily
	require.Eventually(t, func() bool { // every loop has run once
		families = r.scrape()
		applied := families["flashgate_worker_transaction_duration_seconds"].GetMetric()[0].GetHistogram().GetSampleCount()
		return applied > 0 && families["flashgate_ledger_units"] != nil && families["flashgate_in_flight_oldest_seconds"] != nil &&
			families["flashgate_bus_consumer_lag_messages"].GetMetric()[0].GetGauge().GetValue() >= 0
	}, 30*time.Second, 50*time.Millisecond)

	for what, names := range wanted {
		for _, name := range names {
			require.NotEmpty(t, families[name].GetMetric(), "%s: %s", what, name)
		}
	}
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
