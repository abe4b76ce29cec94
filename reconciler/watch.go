package reconciler

import (
	"context"
	"errors"
	"sync"
	"time"

	"flashgate/internal/ledger"
	"flashgate/internal/sale"
	"flashgate/internal/stock"
)

// Equation is one that a look at one store alone proves or breaks. What crosses the
// stores (4c) is the reconcile's to compare.
type Equation string

// The equations of invariant 4 that are watched.
const (
	RedisUnits   Equation = "4a"        // Redis, by its own counts: stock + held = total
	LedgerUnits  Equation = "4b"        // the ledger, in one row: available + locked + sold = total
	LedgerOrders Equation = "4b-orders" // that row against its orders: locked and sold are theirs
)

var equations = []Equation{RedisUnits, LedgerUnits, LedgerOrders}

// Bounds of watching.
const (
	// confirmLooks is how often in a row a difference must be seen to be a breach.
	confirmLooks = 2
	// maxShownSales bounds the sales with series of their own; breaches are seen of all.
	maxShownSales = 1000
	// A sale has its series until so long after its end.
	shownAfterEndHours = 1

	// One sale a round has its orders counted, if it has no more of them than this, which
	// takes the ledger some 20 ms; larger ones are left to the reconcile.
	maxCountedUnits   = 20_000
	countEverySeconds = 10

	// The oldest open batch is looked for once in so many rounds, through at most so many
	// slices of 200 batches; of more, several looks make a pass.
	oldestEveryRounds = 5
	maxOldestSlices   = 25
)

// watched is what is known of one sale between two rounds.
type watched struct {
	snap  stock.Snapshot
	fresh bool // snap is of this round

	differs  map[Equation]int // looks in a row that saw a difference
	breached map[Equation]bool
	counted  time.Time // when its orders were last counted

	cursor     uint64  // where the next look for the oldest batch goes on
	oldest     sale.ID // of the last pass; 0 = none was open
	passOldest sale.ID // of the pass so far
}

// watch holds the sales that are watched. It is written by the rounds, and by runs, which
// tend a sale too.
type watch struct {
	mu    sync.Mutex
	sales map[string]*watched
	shown map[string]bool // those with series
}

// of is a sale's entry. mu is held.
func (w *watch) of(saleID string) *watched {
	e := w.sales[saleID]
	if e == nil {
		if w.sales == nil {
			w.sales = make(map[string]*watched)
		}
		e = &watched{differs: make(map[Equation]int), breached: make(map[Equation]bool)}
		w.sales[saleID] = e
	}
	return e
}

func (w *watch) saw(saleID string, snap stock.Snapshot) {
	w.mu.Lock()
	defer w.mu.Unlock()
	e := w.of(saleID)
	e.snap, e.fresh = snap, true
}

// begin starts a round: no snapshot is of it yet.
func (w *watch) begin() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, e := range w.sales {
		e.fresh = false
	}
}

func (w *watch) forgetAll() {
	w.mu.Lock()
	defer w.mu.Unlock()
	clear(w.sales)
}

// show moves the series of Redis's side to what this round saw, and drops those of sales
// that are over.
func (r *Reconciler) show(sales []sale.Sale, now time.Time) {
	w := &r.watch
	w.mu.Lock()
	defer w.mu.Unlock()
	shown := make(map[string]bool, min(len(sales), maxShownSales))
	tended := make(map[string]bool, len(sales))
	hidden := 0
	for i := range sales {
		s := &sales[i]
		tended[s.ID] = true
		switch e := w.sales[s.ID]; {
		case e == nil || now.After(s.EndsAt.Add(shownAfterEndHours*time.Hour)):
		case len(shown) == maxShownSales:
			hidden++
		default:
			shown[s.ID] = true
			if e.fresh {
				r.metrics.observe(s.ID, e.snap)
			}
		}
	}
	for id := range w.shown {
		if !shown[id] {
			r.metrics.forget(id)
		}
	}
	for id := range w.sales {
		if !tended[id] {
			delete(w.sales, id)
			r.metrics.forgetBreaches(id)
		}
	}
	w.shown = shown
	r.metrics.hidden.Set(float64(hidden))
}

// look is what the leader looks at in Redis beyond the counts.
func (r *Reconciler) look(ctx context.Context, s *sale.Sale) {
	loaded := func(err error) error {
		if errors.Is(err, stock.ErrNotReady) {
			return nil // a round loads it
		}
		return err
	}
	_ = r.step(ctx, "server", func(ctx context.Context) error { return loaded(r.lookAtServer(ctx, s.ID)) })
	if r.round%oldestEveryRounds == 1 {
		_ = r.step(ctx, "oldest", func(ctx context.Context) error { return loaded(r.lookForOldest(ctx, s.ID)) })
	}
}

// lookForOldest looks for the oldest batch that is open in Redis. It reads bounded slices,
// and with more than these a pass takes several looks.
func (r *Reconciler) lookForOldest(ctx context.Context, saleID string) error {
	r.watch.mu.Lock()
	e := r.watch.of(saleID)
	cursor, passOldest, none := e.cursor, e.passOldest, e.snap.Batches == 0
	r.watch.mu.Unlock()
	if none {
		cursor, passOldest = 0, 0
	} else {
		found, next, err := r.o.Stock.OldestOpen(ctx, saleID, cursor, maxOldestSlices)
		if err != nil {
			return err
		}
		if found != 0 && (passOldest == 0 || found < passOldest) {
			passOldest = found
		}
		cursor = next
	}
	r.watch.mu.Lock()
	defer r.watch.mu.Unlock()
	e.cursor, e.passOldest = cursor, passOldest
	if cursor == 0 || passOldest != 0 {
		e.oldest = passOldest
	}
	if cursor == 0 {
		e.passOldest = 0
	}
	return nil
}

// conserve proves or breaks what each store must conserve by itself, and shows what is in
// flight between the two.
func (r *Reconciler) conserve(ctx context.Context, sales []sale.Sale, now time.Time) error {
	inventories, err := r.o.Ledger.Inventories(ctx)
	if err != nil {
		return err
	}
	rows := make(map[string]ledger.Inventory, len(inventories))
	for _, row := range inventories {
		rows[row.SaleID] = row
	}
	r.watch.mu.Lock()
	for i := range sales {
		row, there := rows[sales[i].ID]
		if !there {
			continue
		}
		e := r.watch.of(row.SaleID)
		if e.fresh {
			s := e.snap
			r.judge(row.SaleID, e, RedisUnits, s.Total-s.Stock-s.Held, "stock", s.Stock, "held", s.Held, "total", s.Total)
		}
		r.judge(row.SaleID, e, LedgerUnits, row.Total-row.Available-row.Locked-row.Sold,
			"available", row.Available, "locked", row.Locked, "sold", row.Sold, "total", row.Total)
		if r.watch.shown[row.SaleID] {
			r.metrics.observeLedger(row)
			if e.fresh {
				// Redis was read before the ledger: what was persisted in between shows as less
				// in flight than there is.
				r.metrics.observeFlight(row.SaleID, e.snap.Held-row.Locked-row.Sold, age(e.oldest, e.snap.Now))
			}
		}
	}
	saleID, count := r.toCount(sales, rows, now)
	r.watch.mu.Unlock()
	if !count {
		return nil
	}
	return r.countOrders(ctx, saleID, now)
}

// age is how old a batch is; 0 without one.
func age(id sale.ID, now time.Time) time.Duration {
	if id == 0 {
		return 0
	}
	return max(0, now.Sub(id.Time()))
}

// toCount picks the sale whose orders are counted next: one that differed the last time
// before all others, then the one whose count is longest ago. r.watch.mu is held.
func (r *Reconciler) toCount(sales []sale.Sale, rows map[string]ledger.Inventory, now time.Time) (saleID string, ok bool) {
	var last time.Time
	for i := range sales {
		row, there := rows[sales[i].ID]
		if !there || row.Locked+row.Sold > maxCountedUnits {
			continue
		}
		e := r.watch.of(row.SaleID)
		if n := e.differs[LedgerOrders]; n > 0 && n < confirmLooks {
			return row.SaleID, true
		}
		if now.Sub(e.counted) >= countEverySeconds*time.Second && (!ok || e.counted.Before(last)) {
			saleID, last, ok = row.SaleID, e.counted, true
		}
	}
	return saleID, ok
}

// countOrders holds a sale's row in the ledger against its orders, read in one statement.
func (r *Reconciler) countOrders(ctx context.Context, saleID string, now time.Time) error {
	b, err := r.o.Ledger.Balance(ctx, saleID, nil)
	if err != nil {
		return err
	}
	r.watch.mu.Lock()
	defer r.watch.mu.Unlock()
	e := r.watch.of(saleID)
	e.counted = now
	// Signs apart, or a unit too many in one would hide one too few in the other.
	differs := abs(b.Locked-b.LockedOrders) + abs(b.Sold-b.SoldOrders)
	r.judge(saleID, e, LedgerOrders, differs, "locked", b.Locked, "locked_by_orders", b.LockedOrders,
		"sold", b.Sold, "sold_by_orders", b.SoldOrders)
	if r.watch.shown[saleID] {
		r.metrics.ordersDrift.WithLabelValues(saleID).Set(float64(differs))
	}
	return nil
}

func abs(n int64) int64 { return max(n, -n) }

// judge takes one look at an equation. A difference that a second look confirms is a
// breach: a metric, an error with its figures, and an early reconcile of the sale. It is
// said once, until it is mended. r.watch.mu is held.
func (r *Reconciler) judge(saleID string, e *watched, of Equation, difference int64, terms ...any) {
	if difference == 0 {
		e.differs[of] = 0
		if e.breached[of] {
			e.breached[of] = false
			r.o.Log.Info("units are conserved again", "sale", saleID, "equation", of)
		}
		r.metrics.breached(saleID, of, false, r.watch.shown[saleID])
		return
	}
	e.differs[of]++
	if e.differs[of] < confirmLooks {
		return
	}
	r.metrics.breached(saleID, of, true, true)
	if e.breached[of] {
		return
	}
	e.breached[of] = true
	r.metrics.breaches.WithLabelValues(string(of)).Inc()
	r.o.Log.Error("units are not conserved; the sale is reconciled now",
		append([]any{"sale", saleID, "equation", of, "difference", difference}, terms...)...)
	r.askEarly(saleID, AfterBreach, "")
}
