// Package reconciler gives back what died and settles what is owed: every second it
// releases dead reservations, settles persisted batches, runs the tasks that return
// units to Redis, brings totals together, and loads sales that Redis has not.
package reconciler

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"flashgate/internal/audit"
	"flashgate/internal/bus"
	"flashgate/internal/failpoint"
	"flashgate/internal/ledger"
	"flashgate/internal/sale"
	"flashgate/internal/stock"
)

// Options are a reconciler's parts and bounds.
type Options struct {
	Ledger *ledger.Ledger
	Stock  *stock.Store
	// Lister lists the batches a bus has not delivered; nil when the bus cannot.
	Lister  bus.Lister
	Auditor *audit.Auditor // finds what Once repairs

	Holder      string        // this process, in the lease
	LeaseTTL    time.Duration // how long a leader that died keeps others waiting
	Interval    time.Duration // between two rounds
	StepTimeout time.Duration // of one step for one sale
	LoadTimeout time.Duration // of loading one sale into Redis
	VoidAge     time.Duration // how long a VOID batch is kept as a tombstone
	SettleAge   time.Duration // how long a worker is given to settle what it persisted
	TaskTries   int           // of a task, before it waits for an operator
	TaskBackoff time.Duration // after a task's first failure; doubles
	FusePercent float64       // of a sale's units, and
	FuseUnits   int64         // units: repairs that move more than both wait for an operator
	Log         *slog.Logger
	Registerer  prometheus.Registerer
}

// Reconciler is one candidate for leadership. What only Redis decides (releasing
// dead reservations) every reconciler does: it is idempotent and must not wait for
// the ledger. The rest is the leader's.
type Reconciler struct {
	o       Options
	metrics metrics
	sales   atomic.Pointer[[]sale.Sale] // the last list the ledger gave; kept while it is away
	round   int
	leading atomic.Bool
	loading sync.Mutex // one load at a time in a process; more do no harm
}

// Bounds of one step of one round; what is left over is for the next round.
const (
	maxSweepBatches  = 1000
	maxSettleBatches = 2000
	maxTasks         = 500

	// A slow step runs once in so many rounds.
	slowEveryRounds = 30
)

// New makes a reconciler; Run starts it.
func New(o Options) *Reconciler {
	if o.Ledger == nil || o.Stock == nil || o.Interval <= 0 {
		panic("BUG: reconciler.New wants a ledger, a stock and an interval")
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	return &Reconciler{o: o, metrics: newMetrics(o.Registerer)}
}

// leaseName names the leader's lease in the ledger.
const leaseName = "reconciler"

// Run works a round at a time until ctx ends, and gives up its lease then.
func (r *Reconciler) Run(ctx context.Context) error {
	tick := time.NewTicker(r.o.Interval)
	defer tick.Stop()
	for {
		r.Round(ctx)
		select {
		case <-ctx.Done():
			return r.resign()
		case <-tick.C:
		}
	}
}

func (r *Reconciler) resign() error {
	if !r.leading.Load() {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), r.o.StepTimeout)
	defer cancel()
	r.leading.Store(false)
	return r.o.Ledger.Release(ctx, leaseName, r.o.Holder)
}

// Leading reports whether this reconciler was the leader in its last round.
func (r *Reconciler) Leading() bool { return r.leading.Load() }

// Round is one round of work. Errors are logged and counted by step, and dropped here: each step is
// tried again in the next round.
func (r *Reconciler) Round(ctx context.Context) {
	r.lead(ctx)
	slow := r.round%slowEveryRounds == 0
	r.round++
	_ = r.step(ctx, "sales", func(ctx context.Context) error {
		sales, err := r.o.Ledger.Sales(ctx)
		if err == nil {
			r.sales.Store(&sales)
		}
		return err
	})
	now := time.Now()
	sales := r.known()
	for i := range sales {
		s := &sales[i]
		if now.After(s.EndsAt.Add(sale.Retention)) {
			r.metrics.forget(s.ID)
			continue
		}
		// What failed was logged and counted; the next round tries again.
		_ = r.tend(ctx, s, slow, r.leading.Load())
	}
	if r.leading.Load() {
		_ = r.step(ctx, "inventory", func(ctx context.Context) error {
			inventories, err := r.o.Ledger.Inventories(ctx)
			r.metrics.observeLedger(inventories, sales, now)
			return err
		})
		_ = r.step(ctx, "settle", func(ctx context.Context) error { return r.settleOwed(ctx, "") })
		_ = r.step(ctx, "tasks", func(ctx context.Context) error { return r.runTasks(ctx, "") })
	}
}

// lead takes or keeps the lease.
func (r *Reconciler) lead(ctx context.Context) {
	leads := false
	_ = r.step(ctx, "lease", func(ctx context.Context) error {
		_, ok, err := r.o.Ledger.Acquire(ctx, leaseName, r.o.Holder, r.o.LeaseTTL)
		leads = ok && err == nil
		return err
	})
	if ctx.Err() != nil {
		return // told to stop: to resign, a leader must know that it is one
	}
	if r.leading.Swap(leads) != leads {
		r.o.Log.Info("reconciler leadership changed", "leading", leads, "holder", r.o.Holder)
	}
	r.metrics.leading(leads)
}

// tend looks after one sale's Redis side; lead: the leader's part of it too. It
// returns what failed.
func (r *Reconciler) tend(ctx context.Context, s *sale.Sale, slow, lead bool) error {
	var snap stock.Snapshot
	if err := r.step(ctx, "snapshot", func(ctx context.Context) (err error) {
		snap, err = r.o.Stock.Snapshot(ctx, s.ID)
		return err
	}); err != nil {
		return err
	}
	if !snap.Loaded {
		if !lead {
			return nil
		}
		return r.stepWithin(ctx, "load", r.o.LoadTimeout, func(ctx context.Context) error {
			_, err := r.Load(ctx, s.ID)
			return err
		})
	}
	r.metrics.observe(s.ID, snap)
	var failed []error
	if snap.Pending > 0 {
		failed = append(failed, r.step(ctx, "sweep", func(ctx context.Context) error { return r.sweep(ctx, s.ID) }))
	}
	if lead && (snap.Version != s.Version || snap.Total != s.Total) {
		failed = append(failed, r.step(ctx, "total", func(ctx context.Context) error { return r.LevelTotal(ctx, s.ID) }))
	}
	if lead && slow {
		failed = append(failed, r.step(ctx, "purge", func(ctx context.Context) error {
			n, err := r.o.Stock.PurgeVoids(ctx, s.ID, r.o.VoidAge)
			r.metrics.purged.Add(float64(n))
			return err
		}))
		if time.Now().After(s.EndsAt) {
			failed = append(failed, r.step(ctx, "expire", func(ctx context.Context) error {
				return r.o.Stock.ExpireAt(ctx, s.ID, s.EndsAt.Add(sale.Retention))
			}))
		}
	}
	return errors.Join(failed...)
}

// step runs do within the step's time-out. Its error is logged and counted here.
func (r *Reconciler) step(ctx context.Context, name string, do func(context.Context) error) error {
	return r.stepWithin(ctx, name, r.o.StepTimeout, do)
}

func (r *Reconciler) stepWithin(ctx context.Context, name string, timeout time.Duration, do func(context.Context) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	err := do(ctx)
	failpoint.Hit(failpoint.AfterStep)
	if err != nil {
		r.metrics.failures.WithLabelValues(name).Inc()
		r.o.Log.Warn("reconciler step failed; the next round tries again", "step", name, "err", err)
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// sweep releases reservations whose deadline has passed: their gateway died, or
// could not reach Redis to release them itself.
func (r *Reconciler) sweep(ctx context.Context, saleID string) error {
	due, err := r.o.Stock.Due(ctx, saleID, maxSweepBatches)
	if err != nil {
		return err
	}
	for _, id := range due {
		state, err := r.o.Stock.Release(ctx, saleID, id, 0, nil)
		if err != nil {
			return err
		}
		if state == stock.StateVoid {
			r.metrics.swept.Inc()
			r.o.Log.Info("released a dead reservation", "sale", saleID, "batch", id)
		}
	}
	return nil
}

// settleOwed settles batches that a worker persisted and did not settle, of one sale
// or ("") all.
func (r *Reconciler) settleOwed(ctx context.Context, only string) error {
	owed, err := r.o.Ledger.Owed(ctx, time.Now().Add(-r.o.SettleAge), maxSettleBatches)
	if err != nil {
		return err
	}
	r.metrics.owed.Set(float64(len(owed)))
	bySale := make(map[string][]sale.ID)
	for _, o := range owed {
		if only != "" && o.SaleID != only {
			continue
		}
		bySale[o.SaleID] = append(bySale[o.SaleID], o.BatchID)
	}
	var failed []error
	for saleID, ids := range bySale {
		settled, err := r.o.Stock.Settle(ctx, saleID, ids, r.o.Ledger.ActiveOrders)
		if err != nil && !r.isOver(saleID, err) {
			failed = append(failed, err)
		} else if err != nil {
			// Its Redis data has expired with it: nothing is left to settle there.
			settled = ids
		}
		if len(settled) > 0 {
			if err := r.o.Ledger.MarkSettled(ctx, settled); err != nil {
				failed = append(failed, err)
			} else {
				r.metrics.settled.Add(float64(len(settled)))
			}
		}
	}
	return errors.Join(failed...)
}

// isOver reports whether err says that Redis has forgotten a sale it need not know
// any more.
func (r *Reconciler) isOver(saleID string, err error) bool {
	if !errors.Is(err, stock.ErrNotReady) {
		return false
	}
	for _, s := range r.known() {
		if s.ID == saleID {
			return time.Now().After(s.EndsAt.Add(sale.Retention))
		}
	}
	return false
}

func (r *Reconciler) known() []sale.Sale {
	if sales := r.sales.Load(); sales != nil {
		return *sales
	}
	return nil
}

// runTasks gives back to Redis the units of orders that the ledger cancelled, of one
// sale or ("") all. Its error says how many are left.
func (r *Reconciler) runTasks(ctx context.Context, only string) error {
	tasks, err := r.o.Ledger.DueTasks(ctx, time.Now(), maxTasks)
	if err != nil {
		return err
	}
	left := 0
	var last error
	for i := range tasks {
		t := &tasks[i]
		if only != "" && t.Order.SaleID != only {
			continue
		}
		_, err := r.o.Stock.Restore(ctx, &t.Order, t.BatchID)
		if err != nil && !r.isOver(t.Order.SaleID, err) {
			// The exponent is bounded so that the shift cannot overflow.
			next := time.Now().Add(r.o.TaskBackoff << min(t.Tries, 10))
			if failed := r.o.Ledger.TaskFailed(ctx, t.ID, err.Error(), next, r.o.TaskTries); failed != nil {
				return failed
			}
			left++
			last = err
			continue
		}
		if err := r.o.Ledger.TaskDone(ctx, t.ID); err != nil {
			return err
		}
		r.metrics.tasks.Inc()
	}
	if left > 0 {
		return fmt.Errorf("%d tasks are left for their next try: %w", left, last)
	}
	return nil
}

// LevelTotal brings the side whose total is behind to the other's version. A cut
// that the ledger can no longer cover is taken back on both sides. Two totals of one
// version are a cut and a raise at the same moment: the raise was promised, the cut
// was refused, so the larger one stays.
func (r *Reconciler) LevelTotal(ctx context.Context, saleID string) error {
	// Read both afresh: the list of sales may be older than the snapshot.
	inv, err := r.o.Ledger.Inventory(ctx, saleID)
	if err != nil {
		return err
	}
	snap, err := r.o.Stock.Snapshot(ctx, saleID)
	if err != nil || !snap.Loaded {
		return err
	}
	switch {
	case snap.Version < inv.Version:
		ok, err := r.o.Stock.Adjust(ctx, saleID, inv.Total, inv.Version)
		if err == nil && !ok {
			err = errors.New("fewer units are free in Redis than the cut takes")
		}
		return err
	case snap.Version > inv.Version:
		_, err := r.o.Ledger.SetTotal(ctx, saleID, snap.Total, snap.Version, "levelled with Redis")
		if sale.CodeOf(err) == sale.CodeConflict {
			return r.takeBackCut(ctx, inv, snap.Version)
		}
		return err
	case snap.Total != inv.Total:
		total, version := max(snap.Total, inv.Total), inv.Version+1
		if _, err := r.o.Ledger.SetTotal(ctx, saleID, total, version, "a cut and a raise at one moment"); err != nil {
			return err
		}
		_, err := r.o.Stock.Adjust(ctx, saleID, total, version)
		return err
	}
	return nil
}

// takeBackCut ends a cut that Redis took and the ledger cannot: the units are sold.
func (r *Reconciler) takeBackCut(ctx context.Context, inv ledger.Inventory, cut int64) error {
	r.o.Log.Warn("a cut is taken back: the ledger has sold the units", "sale", inv.SaleID, "total", inv.Total)
	for _, version := range []int64{cut, cut + 1} {
		if _, err := r.o.Ledger.SetTotal(ctx, inv.SaleID, inv.Total, version, "cut taken back: the units are sold"); err != nil {
			return err
		}
	}
	_, err := r.o.Stock.Adjust(ctx, inv.SaleID, inv.Total, cut+1)
	return err
}
