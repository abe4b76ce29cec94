package ledger

import (
	"database/sql"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// Why a transaction of Apply was run again.
const (
	retryKnownBatch = "known_batch" // some batches were consumed already
	retryUncommon   = "uncommon"    // an order did not fit: the careful way
	retryContention = "contention"  // a deadlock or a lock wait
)

type metrics struct {
	apply   *prometheus.HistogramVec
	orders  *prometheus.CounterVec
	retries *prometheus.CounterVec
}

func newMetrics(registerer prometheus.Registerer, pool *sql.DB) (*metrics, error) {
	m := &metrics{
		apply: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "flashgate_ledger_apply_seconds",
			Help:    "Time of the worker's transaction, its retries included.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 15), // 1 ms to 16 s
		}, []string{"result"}),
		orders: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "flashgate_ledger_orders_total",
			Help: "Orders inserted, active ones and those cancelled by the ledger's guards.",
		}, []string{"status"}),
		retries: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "flashgate_ledger_apply_retries_total",
			Help: "Transactions of the worker that were run again, by cause.",
		}, []string{"cause"}),
	}
	for _, cause := range []string{retryKnownBatch, retryUncommon, retryContention} {
		m.retries.WithLabelValues(cause)
	}
	if registerer == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.apply, m.orders, m.retries, collectors.NewDBStatsCollector(pool, "ledger")} {
		if err := registerer.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *metrics) retried(cause string) { m.retries.WithLabelValues(cause).Inc() }

func (m *metrics) applied(took time.Duration, a Applied, err error) {
	result := "ok"
	switch {
	case err == nil:
	case Poison(err):
		result = "poison"
	default:
		result = "error"
	}
	m.apply.WithLabelValues(result).Observe(took.Seconds())
	m.orders.WithLabelValues("active").Add(float64(a.Orders))
	m.orders.WithLabelValues("cancelled").Add(float64(a.Cancelled))
}
