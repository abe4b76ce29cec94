package reconciler

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"flashgate/internal/audit"
	"flashgate/internal/ledger"
	"flashgate/internal/stock"
)

// metrics. Those whose help ends in "The leader's." are gone from a process that does not lead.
type metrics struct {
	leader     prometheus.Gauge
	failures   *prometheus.CounterVec
	swept      prometheus.Counter
	rounds     prometheus.Histogram
	purged     prometheus.Counter
	settled    prometheus.Counter
	owed       prometheus.Gauge
	owedOldest prometheus.Gauge
	tasks      prometheus.Counter
	loads      prometheus.Counter

	waitingTasks *prometheus.GaugeVec
	oldestTask   *prometheus.GaugeVec
	deadBatches  prometheus.Gauge

	loading     prometheus.Gauge
	loadOrders  prometheus.Counter
	loadBatches prometheus.Counter
	loadSeconds prometheus.Histogram

	units       *prometheus.GaugeVec
	drift       *prometheus.GaugeVec
	pending     *prometheus.GaugeVec
	ledgerUnits *prometheus.GaugeVec
	ledgerDrift *prometheus.GaugeVec
	ordersDrift *prometheus.GaugeVec
	breach      *prometheus.GaugeVec
	breaches    *prometheus.CounterVec
	hidden      prometheus.Gauge

	inFlight *prometheus.GaugeVec
	oldest   *prometheus.GaugeVec
	bound    prometheus.Gauge

	runs      *prometheus.CounterVec
	found     *prometheus.CounterVec
	left      *prometheus.GaugeVec
	took      prometheus.Histogram
	scheduled prometheus.Gauge
	asked     *prometheus.CounterVec
	waiting   prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	counters := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
	}
	gauges := func(name, help string, labels ...string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, labels)
	}
	m := metrics{
		leader:     gauge("flashgate_reconciler_leader", "1 if this reconciler held the lease in its last round."),
		failures:   counters("flashgate_reconciler_step_failures_total", "Steps of a reconciler round, and reconciles, that failed; they are tried again.", "step"),
		swept:      counter("flashgate_reconciler_released_batches_total", "Dead reservations that the sweeper released."),
		purged:     counter("flashgate_reconciler_purged_voids_total", "Tombstones removed after their time."),
		settled:    counter("flashgate_reconciler_settled_batches_total", "Persisted batches that the reconciler settled in a worker's place."),
		owed:       gauge("flashgate_reconciler_owed_batches", "Persisted batches that could not be settled in the last round, up to 2,000 a sale. The leader's."),
		owedOldest: gauge("flashgate_reconciler_owed_oldest_seconds", "How long ago the oldest batch was persisted that the last round found unsettled. The leader's."),
		rounds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "flashgate_reconciler_round_duration_seconds", Help: "Time of one round: the sweep of every sale, and the leader's work.",
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 9), // 1 ms to 65 s
		}),
		tasks: counter("flashgate_reconciler_tasks_done_total", "stock_sync_tasks done: orders whose units were given back in Redis."),
		loads: counter("flashgate_reconciler_loads_total", "Sales loaded into Redis."),

		waitingTasks: gauges("flashgate_tasks", "stock_sync_tasks that are not done: OPEN ones wait for their next try, STUCK ones for an operator, ABANDONED ones for nothing. The leader's.", "state"),
		oldestTask:   gauges("flashgate_task_oldest_seconds", "Age of the oldest task in a state. The leader's.", "state"),
		deadBatches:  gauge("flashgate_dead_batches", "Messages that failed by their own fault and wait for an operator. The leader's."),

		units:       gauges("flashgate_redis_units", "Invariant 4a, term by term: units of a sale in Redis that are free (stock), held by buyers (held), and in all (total).", "sale", "term"),
		drift:       gauges("flashgate_redis_conservation_difference_units", "Invariant 4a: total - (stock + held), which must be 0. By Redis's own counts: a buyer's record that is lost shows in the reconcile only.", "sale"),
		pending:     gauges("flashgate_redis_batches", "Batches of a sale in Redis: reserved (no outcome yet), unsettled (all that are not settled, tombstones included).", "sale", "state"),
		ledgerUnits: gauges("flashgate_ledger_units", "Invariant 4b, term by term: units of a sale in the ledger that are available, locked by unpaid orders, sold, and in all (total). The leader's.", "sale", "term"),
		ledgerDrift: gauges("flashgate_ledger_conservation_difference_units", "Invariant 4b: total - (available + locked + sold), which must be 0. The leader's.", "sale"),
		ordersDrift: gauges("flashgate_ledger_orders_difference_units", "Invariant 4b: by how much locked and sold miss the units of the orders, which must be 0; of sales with up to 20,000 units ordered, as last counted. The leader's.", "sale"),
		breach:      gauges("flashgate_conservation_breached", "1 while an equation of invariant 4 is broken, seen twice in a row: 4a (Redis), 4b (the ledger's row), 4b-orders (that row against its orders). The leader's.", "sale", "equation"),
		breaches:    counters("flashgate_conservation_breaches_total", "Breaches of conservation that were confirmed.", "equation"),
		hidden:      gauge("flashgate_conservation_hidden_sales", "Sales that are watched without series of their own, beyond the first 1,000."),

		inFlight: gauges("flashgate_in_flight_units", "Units on their way between the stores: held in Redis - locked and sold in the ledger. The two are read one after the other: what is persisted in between shows as less, even below zero. The leader's.", "sale"),
		oldest:   gauges("flashgate_in_flight_oldest_seconds", "Age of the oldest batch that Redis has open: reserved, or promised and not both persisted and settled. Of a sale with over 5,000 batches, of the part seen so far. The leader's.", "sale"),
		bound:    gauge("flashgate_in_flight_bound_seconds", "The watermark: what is older should stand in both stores, and the next reconcile sees to it."),

		runs:  counters("flashgate_reconcile_runs_total", "Reconciles of one sale that finished, by what triggered them.", "trigger"),
		found: counters("flashgate_reconcile_differences_total", "Differences between the stores by kind and by what became of them: repaired, left to an operator, or helped (applied ahead of a lagging worker: no difference).", "kind", "outcome"),
		left:  gauges("flashgate_reconcile_left", "Differences that the last reconcile of a sale left to an operator; absent when it left none.", "sale"),
		took: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "flashgate_reconcile_seconds", Help: "How long the reconcile of one sale took.",
			Buckets: prometheus.ExponentialBuckets(0.01, 4, 10), // 10 ms to 44 min
		}),
		scheduled:   gauge("flashgate_reconcile_scheduled_timestamp_seconds", "When the scheduled reconcile began that every sale has had since: 0 when one has had none. The leader's."),
		loading:     gauge("flashgate_rebuild_running", "Sales being loaded into Redis by this process, or waiting for their turn."),
		loadOrders:  counter("flashgate_rebuild_orders_total", "Orders of the ledger read by loads of sales into Redis, failed ones too."),
		loadBatches: counter("flashgate_rebuild_undelivered_batches_total", "Batches that loads found on the bus, or dead, and not in the ledger."),
		loadSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "flashgate_rebuild_duration_seconds", Help: "Time from when a load into Redis began until the sale was ready.",
			Buckets: prometheus.ExponentialBuckets(0.01, 2.5, 12),
		}),
		asked:   counters("flashgate_reconcile_requests_total", "Early reconciles that were asked for, by cause.", "cause"),
		waiting: gauge("flashgate_reconcile_requests", "Sales with an early reconcile to come, at once or when the watermark has passed. The leader's."),
	}
	// From 0 on, or an alert on an increase misses the first.
	m.failures.WithLabelValues("reconcile")
	for _, kind := range append(audit.Kinds(), NotDone) {
		for _, outcome := range []string{"repaired", "left", "helped"} {
			m.found.WithLabelValues(string(kind), outcome)
		}
	}
	for _, e := range equations {
		m.breaches.WithLabelValues(string(e))
	}
	for _, why := range []Reason{AfterRefusal, AfterFailover, AfterLoad, AfterBreach} {
		m.asked.WithLabelValues(string(why))
	}
	if reg != nil {
		reg.MustRegister(m.leader, m.rounds, m.failures, m.swept, m.purged, m.settled, m.owed, m.owedOldest, m.tasks, m.loads,
			m.loading, m.loadOrders, m.loadBatches, m.loadSeconds,
			m.waitingTasks, m.oldestTask, m.deadBatches, m.units, m.drift, m.pending, m.ledgerUnits, m.ledgerDrift, m.ordersDrift,
			m.breach, m.breaches, m.hidden, m.inFlight, m.oldest, m.bound, m.runs, m.found, m.left, m.took, m.scheduled, m.asked, m.waiting)
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

func (m *metrics) observeLedger(i ledger.Inventory) {
	m.ledgerUnits.WithLabelValues(i.SaleID, "available").Set(float64(i.Available))
	m.ledgerUnits.WithLabelValues(i.SaleID, "locked").Set(float64(i.Locked))
	m.ledgerUnits.WithLabelValues(i.SaleID, "sold").Set(float64(i.Sold))
	m.ledgerUnits.WithLabelValues(i.SaleID, "total").Set(float64(i.Total))
	m.ledgerDrift.WithLabelValues(i.SaleID).Set(float64(i.Total - i.Available - i.Locked - i.Sold))
}

func (m *metrics) observeFlight(saleID string, units int64, oldest time.Duration) {
	m.inFlight.WithLabelValues(saleID).Set(float64(units))
	m.oldest.WithLabelValues(saleID).Set(oldest.Seconds())
}

// breached shows an equation: as broken whatever the sale, as whole only where the sale
// has series.
func (m *metrics) breached(saleID string, of Equation, yes, shown bool) {
	switch {
	case yes:
		m.breach.WithLabelValues(saleID, string(of)).Set(1)
	case shown:
		m.breach.WithLabelValues(saleID, string(of)).Set(0)
	default:
		m.breach.DeleteLabelValues(saleID, string(of))
	}
}

func (m *metrics) unfinished(counts []ledger.Unfinished, dead int64, now time.Time) {
	m.oldestTask.Reset()
	for _, state := range []ledger.TaskState{ledger.TaskOpen, ledger.TaskStuck, ledger.TaskAbandoned} {
		m.waitingTasks.WithLabelValues(string(state)).Set(0)
	}
	for _, c := range counts {
		m.waitingTasks.WithLabelValues(string(c.State)).Set(float64(c.Tasks))
		m.oldestTask.WithLabelValues(string(c.State)).Set(now.Sub(c.Oldest).Seconds())
	}
	m.deadBatches.Set(float64(dead))
}

// reconciled shows what one run of one sale found and did.
func (m *metrics) reconciled(r *ledger.ReconcileReport) {
	m.runs.WithLabelValues(triggerKind(r.Trigger)).Inc()
	m.took.Observe(r.Took().Seconds())
	for _, k := range r.Kinds {
		for outcome, n := range map[string]int64{"repaired": k.Repaired, "left": k.Left, "helped": k.Helped} {
			if n > 0 {
				m.found.WithLabelValues(k.Kind, outcome).Add(float64(n))
			}
		}
	}
	if r.Left == 0 {
		m.left.DeleteLabelValues(r.SaleID)
		return
	}
	m.left.WithLabelValues(r.SaleID).Set(float64(r.Left))
}

// perSale are the series of sales that are shown; of leaders alone, those after the first three.
func (m *metrics) perSale() []*prometheus.GaugeVec {
	return []*prometheus.GaugeVec{m.units, m.drift, m.pending, m.ledgerUnits, m.ledgerDrift, m.ordersDrift, m.inFlight, m.oldest}
}

// forget drops the series of a sale that is over, but for a breach.
func (m *metrics) forget(saleID string) {
	for _, v := range m.perSale() {
		v.DeletePartialMatch(prometheus.Labels{"sale": saleID})
	}
}

// forgetBreaches drops those of a sale that nobody looks at any more.
func (m *metrics) forgetBreaches(saleID string) {
	of := prometheus.Labels{"sale": saleID}
	m.breach.DeletePartialMatch(of)
	m.left.DeletePartialMatch(of)
}

// forgetLeaders drops what only a leader knows.
func (m *metrics) forgetLeaders() {
	for _, v := range m.perSale()[3:] {
		v.Reset()
	}
	for _, v := range []*prometheus.GaugeVec{m.breach, m.left, m.waitingTasks, m.oldestTask} {
		v.Reset()
	}
	for _, g := range []prometheus.Gauge{m.owed, m.owedOldest, m.deadBatches, m.scheduled, m.waiting} {
		g.Set(0)
	}
}
