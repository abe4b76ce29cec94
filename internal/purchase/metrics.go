package purchase

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"flashgate/internal/stock"
)

type metrics struct {
	steps       *prometheus.HistogramVec
	failures    *prometheus.CounterVec
	outcomes    [int(stock.SoldOut) + 1]prometheus.Counter
	batchOrders prometheus.Histogram
	accepted    prometheus.Counter
	released    prometheus.Counter
}

var verdictNames = [...]string{
	stock.Reserved: "reserved", stock.KeyReused: "key_reused", stock.Replay: "replay", stock.Paused: "paused",
	stock.NotStarted: "not_started", stock.Ended: "ended", stock.LimitReached: "limit_reached", stock.SoldOut: "sold_out",
}

func newMetrics(reg prometheus.Registerer) metrics {
	m := metrics{
		steps: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "flashgate_step_duration_seconds",
			Help:    "Time of one step of the purchase protocol for a batch: reserve, half, confirm.",
			Buckets: prometheus.ExponentialBuckets(0.0002, 2, 15),
		}, []string{"step"}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "flashgate_step_failures_total",
			Help: "Steps of the purchase protocol that ended without a definite outcome.",
		}, []string{"step"}),
		batchOrders: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "flashgate_batch_requests",
			Help:    "Purchase requests in one reserve call.",
			Buckets: prometheus.ExponentialBuckets(1, 2, 11),
		}),
		accepted: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "flashgate_orders_accepted_total",
			Help: "Orders that were promised: confirmed on the replicas.",
		}),
		released: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "flashgate_batches_released_total",
			Help: "Batches voided by this gateway because a step failed.",
		}),
	}
	outcomes := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "flashgate_reserve_outcomes_total",
		Help: "What reserve answered to each purchase request.",
	}, []string{"outcome"})
	for v := range m.outcomes {
		m.outcomes[v] = outcomes.WithLabelValues(verdictNames[v])
	}
	if reg != nil {
		reg.MustRegister(m.steps, m.failures, m.batchOrders, m.accepted, m.released, outcomes)
	}
	return m
}

func (m *metrics) step(name string, began time.Time, err error) {
	m.steps.WithLabelValues(name).Observe(time.Since(began).Seconds())
	if err != nil {
		m.failures.WithLabelValues(name).Inc()
	}
}

func (m *metrics) outcome(v stock.Verdict) { m.outcomes[v].Inc() }
