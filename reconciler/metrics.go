package reconciler

import (
	"github.com/prometheus/client_golang/prometheus"

	"flashgate/internal/stock"
)

type metrics struct {
	leader   prometheus.Gauge
	failures *prometheus.CounterVec
	swept    prometheus.Counter
	purged   prometheus.Counter
	settled  prometheus.Counter
	owed     prometheus.Gauge
	tasks    prometheus.Counter
	loads    prometheus.Counter

	units   *prometheus.GaugeVec
	drift   *prometheus.GaugeVec
	pending *prometheus.GaugeVec
}

func newMetrics(reg prometheus.Registerer) metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	m := metrics{
		leader: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "flashgate_reconciler_leader", Help: "1 if this reconciler held the lease in its last round.",
		}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "flashgate_reconciler_step_failures_total", Help: "Steps of a reconciler round that failed; the next round tries again.",
		}, []string{"step"}),
		swept:   counter("flashgate_reconciler_released_batches_total", "Dead reservations that the sweeper released."),
		purged:  counter("flashgate_reconciler_purged_voids_total", "Tombstones removed after their time."),
		settled: counter("flashgate_reconciler_settled_batches_total", "Persisted batches that the reconciler settled in a worker's place."),
		owed: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "flashgate_reconciler_owed_batches", Help: "Persisted batches waiting to be settled, as last seen.",
		}),
		tasks: counter("flashgate_reconciler_tasks_done_total", "stock_sync_tasks done: orders whose units were given back in Redis."),
		loads: counter("flashgate_reconciler_loads_total", "Sales loaded into Redis."),
		units: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "flashgate_redis_units", Help: "Invariant 4a, term by term: units of a sale in Redis that are free (stock), held by buyers (held), and in all (total).",
		}, []string{"sale", "term"}),
		drift: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "flashgate_redis_conservation_difference_units", Help: "Invariant 4a: total - (stock + held), which must be 0.",
		}, []string{"sale"}),
		pending: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "flashgate_redis_batches", Help: "Batches of a sale in Redis: reserved (no outcome yet), unsettled (all that are not settled, tombstones included).",
		}, []string{"sale", "state"}),
	}
	if reg != nil {
		reg.MustRegister(m.leader, m.failures, m.swept, m.purged, m.settled, m.owed, m.tasks, m.loads, m.units, m.drift, m.pending)
	}
	return m
}

func (m *metrics) leading(yes bool) {
	if yes {
		m.leader.Set(1)
	} else {
		m.leader.Set(0)
	}
}

func (m *metrics) observe(saleID string, s stock.Snapshot) {
	m.units.WithLabelValues(saleID, "stock").Set(float64(s.Stock))
	m.units.WithLabelValues(saleID, "held").Set(float64(s.Held))
	m.units.WithLabelValues(saleID, "total").Set(float64(s.Total))
	m.drift.WithLabelValues(saleID).Set(float64(s.Total - s.Stock - s.Held))
	m.pending.WithLabelValues(saleID, "reserved").Set(float64(s.Pending))
	m.pending.WithLabelValues(saleID, "unsettled").Set(float64(s.Batches))
}
