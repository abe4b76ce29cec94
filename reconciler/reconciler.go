// Package reconciler gives back what died and settles what is owed: every second it
// releases dead reservations, settles persisted batches, runs the tasks that return
// units to Redis, brings totals together, loads sales that Redis has not, and looks
// whether units are conserved. On a schedule, and early when there is cause, the leader
// compares the two stores order by order.
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
	"github.com/robfig/cron/v3"
	"golang.org/x/sync/errgroup"

	"flashgate/internal/audit"
	"flashgate/internal/bus"
	"flashgate/internal/failpoint"
	"flashgate/internal/ledger"
	"flashgate/internal/sale"
	"flashgate/internal/stock"
)

// Options are a reconciler's parts and bounds.
type Options struct {
	Ledger  *ledger.Ledger
	Stock   *stock.Store
	Lister  bus.Lister     // of the batches that the bus has not delivered
	Auditor *audit.Auditor // finds what Reconcile repairs

	Holder      string        // this process, in the lease
	LeaseTTL    time.Duration // how long a leader that died keeps others waiting
	Interval    time.Duration // between two rounds
	StepTimeout time.Duration // of one step for one sale
	LoadTimeout time.Duration // of loading one sale into Redis
	// RebuildWait is how long after a published sale was found gone from Redis the bus is read: longer
	// than a gateway takes to send the half message of what it reserved before, and a broker to note
	// an end. 0 where no gateway can be running.
	RebuildWait time.Duration
	VoidAge     time.Duration // how long a VOID batch is kept as a tombstone
	SettleAge   time.Duration // how long a worker is given to settle what it persisted
	TaskTries   int           // of a task, before it waits for an operator
	TaskBackoff time.Duration // after a task's first failure; doubles
	FusePercent float64       // of a sale's units, and
	FuseUnits   int64         // units: repairs that move more than both wait for an operator

	Pace            int           // records a second that a reconcile reads; 0 = no bound
	ReportRetention time.Duration // how long reports are kept; 0 = for ever
	RunWait         time.Duration // for another reconcile of the same sale; 0 = 2 min

	// Schedule is when every sale is reconciled, in UTC; nil: this process runs no schedule.
	Schedule cron.Schedule
	Now      func() time.Time // what the schedule goes by; nil = time.Now

	Log        *slog.Logger
	Registerer prometheus.Registerer
}

// Reconciler is one candidate for leadership. What only Redis decides (releasing
// dead reservations) every reconciler does: it is idempotent and must not wait for
// the ledger. The rest is the leader's.
type Reconciler struct {
	o        Options
	metrics  metrics
	sales    atomic.Pointer[[]sale.Sale] // the last list the ledger gave; kept while it is away
	round    int
	leading  atomic.Bool
	rebuilds *rebuilds

	term     atomic.Pointer[term] // nil while another leads
	early    early
	plan     plan     // of the goroutine of the runs alone
	refusals refusals // of the rounds alone
	watch    watch
	wake     chan struct{} // tells that goroutine to look what is due
	// runSale is one run; tests put another in its place.
	runSale func(ctx context.Context, saleID, trigger string) (ledger.ReconcileReport, error)
}

// term is one time of leadership. What is done under it ends with it.
type term struct {
	ctx context.Context
	end context.CancelFunc
}

// Bounds of one step of one round; what is left over is for the next round.
const (
	maxSweepBatches  = 1000
	maxSettleBatches = 2000
	maxTasks         = 500

	// A slow step runs once in so many rounds.
	slowEveryRounds = 30
	// What counts for people to look at, and not for the next step, is counted once in
	// so many.
	countEveryRounds = 5

	// besides is how many sales are tended at once: those of a Redis master that is away
	// take their whole time-out each, and the others must not wait for all of it.
	besides = 8
)

// New makes a reconciler; Run starts it.
func New(o Options) *Reconciler {
	if o.Ledger == nil || o.Stock == nil || o.Lister == nil || o.Interval <= 0 {
		panic("BUG: reconciler.New wants a ledger, a stock, a lister and an interval")
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.RunWait == 0 {
		o.RunWait = defaultRunWaitSeconds * time.Second
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	r := &Reconciler{o: o, metrics: newMetrics(o.Registerer), rebuilds: newRebuilds(), wake: make(chan struct{}, 1)}
	r.metrics.bound.Set(r.watermark().Seconds())
	r.runSale = r.reconcileOne
	return r
}

// watermark is the age from which an order must stand in both stores.
func (r *Reconciler) watermark() time.Duration {
	if r.o.Auditor == nil {
		return 0
	}
	return r.o.Auditor.Watermark
}

// leaseName names the leader's lease in the ledger.
const leaseName = "reconciler"

// Run works a round at a time until ctx ends, and gives up its lease then.
func (r *Reconciler) Run(ctx context.Context) error {
	tick := time.NewTicker(r.o.Interval)
	defer tick.Stop()
	var runs sync.WaitGroup
	runs.Go(func() { r.runs(ctx) })
	for {
		r.Round(ctx)
		select {
		case r.wake <- struct{}{}:
		default: // a run is under way; it looks again when it is done
		}
		select {
		case <-ctx.Done():
			runs.Wait()
			r.rebuilds.under.Wait() // they end with ctx
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
	r.endTerm()
	return r.o.Ledger.Release(ctx, leaseName, r.o.Holder)
}

// Leading reports whether this reconciler was the leader in its last round.
func (r *Reconciler) Leading() bool { return r.leading.Load() }

// Round is one round of work. Errors are logged and counted by step, and dropped here: each step is
// tried again in the next round.
func (r *Reconciler) Round(ctx context.Context) {
	began := time.Now()
	defer func() { r.metrics.rounds.Observe(time.Since(began).Seconds()) }()
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
	sales := r.tended(now)
	leads := r.leading.Load()
	r.watch.begin()
	var tending errgroup.Group
	tending.SetLimit(besides)
	for i := range sales {
		s := &sales[i]
		tending.Go(func() error {
			// What failed was logged and counted; the next round tries again.
			if r.tend(ctx, s, slow, leads) == nil && leads {
				r.look(ctx, s)
			}
			return nil
		})
	}
	_ = tending.Wait() // returns nothing: see above
	r.show(sales, now)
	if leads {
		_ = r.step(ctx, "inventory", func(ctx context.Context) error { return r.conserve(ctx, sales, now) })
		_ = r.step(ctx, "owed", func(ctx context.Context) error { return r.settleOwed(ctx, "") })
		_ = r.step(ctx, "tasks", func(ctx context.Context) error { return r.runDueTasks(ctx) })
		_ = r.step(ctx, "refusals", r.lookForRefusals)
		if r.round%countEveryRounds == 1 {
			_ = r.step(ctx, "count", r.countTasks)
		}
	}
}

// tended are the sales that Redis still keeps.
func (r *Reconciler) tended(now time.Time) []sale.Sale {
	known := r.known()
	tended := make([]sale.Sale, 0, len(known))
	for i := range known {
		if !now.After(known[i].EndsAt.Add(sale.Retention)) {
			tended = append(tended, known[i])
		}
	}
	return tended
}

func (r *Reconciler) known() []sale.Sale {
	if sales := r.sales.Load(); sales != nil {
		return *sales
	}
	return nil
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
		if leads {
			t := &term{}
			t.ctx, t.end = context.WithCancel(ctx)
			r.term.Store(t)
		} else {
			r.endTerm()
		}
	}
	r.metrics.leading(leads)
}

// endTerm stops what only a leader does, and forgets what only a leader knows.
func (r *Reconciler) endTerm() {
	if t := r.term.Swap(nil); t != nil {
		t.end()
	}
	r.early.clear()
	r.refusals = refusals{}
	r.watch.forgetAll()
	r.metrics.forgetLeaders()
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
		if lead {
			r.rebuild(ctx, s.ID)
		}
		return nil
	}
	r.rebuilds.forget(s.ID)
	r.watch.saw(s.ID, snap)
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
