package reconciler

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"flashgate/internal/ledger"
	"flashgate/internal/sale"
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

	loading     prometheus.Gauge
	loadOrders  prometheus.Counter
	loadBatches prometheus.Counter
	loadSeconds prometheus.Histogram

	units   *prometheus.GaugeVec
	drift   *prometheus.GaugeVec
	pending *prometheus.GaugeVec

	ledgerUnits *prometheus.GaugeVec
	ledgerDrift *prometheus.GaugeVec
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
		loading: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "flashgate_rebuild_running", Help: "Sales being loaded into Redis by this process, or waiting for their turn.",
		}),
		loadOrders:  counter("flashgate_rebuild_orders_total", "Orders of the ledger read by loads of sales into Redis, failed ones too."),
		loadBatches: counter("flashgate_rebuild_undelivered_batches_total", "Batches that loads found on the bus, or dead, and not in the ledger."),
		loadSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "flashgate_rebuild_duration_seconds", Help: "Time from when a load into Redis began until the sale was ready.",
			Buckets: prometheus.ExponentialBuckets(0.01, 2.5, 12),
		}),
		units: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "flashgate_redis_units", Help: "Invariant 4a, term by term: units of a sale in Redis that are free (stock), held by buyers (held), and in all (total).",
		}, []string{"sale", "term"}),
		drift: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "flashgate_redis_conservation_difference_units", Help: "Invariant 4a: total - (stock + held), which must be 0.",
		}, []string{"sale"}),
		pending: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "flashgate_redis_batches", Help: "Batches of a sale in Redis: reserved (no outcome yet), unsettled (all that are not settled, tombstones included).",
		}, []string{"sale", "state"}),
		ledgerUnits: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "flashgate_ledger_units", Help: "Invariant 4b, term by term: units of a sale in the ledger that are available, locked by unpaid orders, sold, and in all (total). The leader's.",
		}, []string{"sale", "term"}),
		ledgerDrift: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "flashgate_ledger_conservation_difference_units", Help: "Invariant 4b: total - (available + locked + sold), which must be 0. The leader's.",
		}, []string{"sale"}),
	}
	if reg != nil {
		reg.MustRegister(m.ledgerUnits, m.ledgerDrift, m.leader, m.failures, m.swept, m.purged, m.settled, m.owed, m.tasks, m.loads, m.loading, m.loadOrders, m.loadBatches, m.loadSeconds, m.units, m.drift, m.pending)
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

// observeLedger shows the sales that are still tended.
func (m *metrics) observeLedger(inventories []ledger.Inventory, sales []sale.Sale, now time.Time) {
	tended := make(map[string]bool, len(sales))
	for i := range sales {
		tended[sales[i].ID] = !now.After(sales[i].EndsAt.Add(sale.Retention))
	}
	for _, i := range inventories {
		if !tended[i.SaleID] {
			continue
		}
		m.ledgerUnits.WithLabelValues(i.SaleID, "available").Set(float64(i.Available))
		m.ledgerUnits.WithLabelValues(i.SaleID, "locked").Set(float64(i.Locked))
		m.ledgerUnits.WithLabelValues(i.SaleID, "sold").Set(float64(i.Sold))
		m.ledgerUnits.WithLabelValues(i.SaleID, "total").Set(float64(i.Total))
		m.ledgerDrift.WithLabelValues(i.SaleID).Set(float64(i.Total - i.Available - i.Locked - i.Sold))
	}
}

// forget drops the series of a sale that is over.
func (m *metrics) forget(saleID string) {
	of := prometheus.Labels{"sale": saleID}
	for _, v := range []*prometheus.GaugeVec{m.units, m.drift, m.pending, m.ledgerUnits, m.ledgerDrift} {
		v.DeletePartialMatch(of)
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
