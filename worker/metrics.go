package worker

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"flashgate/internal/ledger"
)

type metrics struct {
	batches   *prometheus.CounterVec
	orders    *prometheus.CounterVec
	duration  prometheus.Histogram
	size      prometheus.Histogram
	retries   *prometheus.CounterVec
	dead      prometheus.Counter
	unsettled prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) metrics {
	m := metrics{
		batches: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "flashgate_worker_batches_total",
			Help: "Batches by what the ledger did with them: applied, or skipped because it had them.",
		}, []string{"result"}),
		orders: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "flashgate_worker_orders_total",
			Help: "Orders written to the ledger: active, or cancelled by its guards.",
		}, []string{"result"}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "flashgate_worker_transaction_duration_seconds",
			Help:    "Time of one ledger transaction of the worker.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 14),
		}),
		size: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "flashgate_worker_transaction_orders",
			Help:    "Orders written in one ledger transaction of the worker.",
			Buckets: prometheus.ExponentialBuckets(1, 2, 15),
		}),
		retries: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "flashgate_worker_retries_total",
			Help: "Steps tried again because the ledger did not take them.",
		}, []string{"step"}),
		dead: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "flashgate_worker_dead_batches_total",
			Help: "Messages that failed by their own fault and were put into dead_batches.",
		}),
		unsettled: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "flashgate_worker_unsettled_batches_total",
			Help: "Persisted batches that this worker left to the reconciler to settle.",
		}),
	}
	// From 0 on, or an alert on an increase misses the first.
	for _, result := range []string{"active", "cancelled"} {
		m.orders.WithLabelValues(result)
	}
	if reg != nil {
		reg.MustRegister(m.batches, m.orders, m.duration, m.size, m.retries, m.dead, m.unsettled)
	}
	return m
}

func (m *metrics) applied(a ledger.Applied, took time.Duration, err error) {
	if err != nil {
		return
	}
	m.duration.Observe(took.Seconds())
	m.size.Observe(float64(a.Orders + a.Cancelled))
	m.batches.WithLabelValues("applied").Add(float64(a.Batches))
	m.batches.WithLabelValues("skipped").Add(float64(a.Skipped))
	m.orders.WithLabelValues("active").Add(float64(a.Orders))
	m.orders.WithLabelValues("cancelled").Add(float64(a.Cancelled))
}
