package audit

import (
	"context"
	"errors"
	"fmt"
	"time"

	"flashgate/internal/ledger"
	"flashgate/internal/sale"
	"flashgate/internal/stock"
)

// Auditor compares the two stores.
type Auditor struct {
	Ledger *ledger.Ledger
	Stock  *stock.Store
	// Watermark is the age from which an order must stand in both stores. Younger
	// ones are in flight.
	Watermark time.Duration
	// Hold is how long a reservation may last (gateway's batch.hold).
	Hold time.Duration
}

// Sizes of the slices in which both stores are read.
const (
	ledgerSliceOrders = 1000
	// A finding is looked at again before it is reported; more than these in one
	// sale are not kept, and a second run finds the rest.
	maxFindings = 100_000
	// sweepGrace is what invariant 7 allows beyond a reservation's deadline.
	sweepGrace = 30 * time.Second
)

// Audit checks the invariants on what is stored, for one sale or ("") all.
func (a *Auditor) Audit(ctx context.Context, saleID string) (Report, error) {
	began := time.Now()
	r := Report{OK: true, CheckedAt: began.UTC(), Watermark: a.Watermark.String()}
	sales, err := a.sales(ctx, saleID)
	if err != nil {
		return r, err
	}
	for i := range sales {
		s := &sales[i]
		compared, err := a.Compare(ctx, s, func(f Finding) error {
			r.add(f)
			return nil
		})
		if err != nil {
			return r, fmt.Errorf("audit of sale %s: %w", s.ID, err)
		}
		sr, err := a.saleReport(ctx, s.ID, compared)
		if err != nil {
			return r, fmt.Errorf("audit of sale %s: %w", s.ID, err)
		}
		r.Sales = append(r.Sales, sr)
	}
	r.Took = time.Since(began).Round(time.Millisecond).String()
	return r, nil
}

func (a *Auditor) sales(ctx context.Context, saleID string) ([]sale.Sale, error) {
	if saleID == "" {
		return a.Ledger.Sales(ctx)
	}
	s, err := a.Ledger.Sale(ctx, saleID)
	return []sale.Sale{s}, err
}

func (a *Auditor) saleReport(ctx context.Context, saleID string, c Compared) (SaleReport, error) {
	balance, err := a.Ledger.Balance(ctx, saleID)
	if err != nil {
		return SaleReport{}, err
	}
	snap, err := a.Stock.Snapshot(ctx, saleID)
	if err != nil {
		return SaleReport{}, err
	}
	return SaleReport{
		SaleID: saleID, Total: balance.Total, Available: balance.Available, Locked: balance.Locked, Sold: balance.Sold,
		ActiveUnits: balance.Active(), Stock: snap.Stock, Held: snap.Held, Loaded: snap.Loaded,
		LedgerOrders: c.LedgerOrders, RedisRecords: c.RedisRecords, Younger: c.Younger, OpenBatches: c.OpenBatches,
		NotRecounted: c.NotRecounted,
	}, nil
}

// Compare finds what differs in one sale. Orders younger than the watermark are in
// flight between the stores and are left out; each difference found is looked at a
// second time, so that an order that moved during the comparison is not one.
func (a *Auditor) Compare(ctx context.Context, s *sale.Sale, each func(Finding) error) (Compared, error) {
	c := &comparison{Auditor: a, sale: s, open: make(map[sale.ID]bool)}
	if err := c.ledgerAlone(ctx); err != nil {
		return c.compared, err
	}
	snap, err := a.Stock.Snapshot(ctx, s.ID)
	if err != nil {
		return c.compared, err
	}
	if snap.Loaded {
		c.bound = sale.FirstIDAt(snap.Now.Add(-a.Watermark))
		for _, part := range []func(context.Context) error{c.redisAlone, c.batches, c.records, c.orders} {
			if err := part(ctx); err != nil {
				return c.compared, err
			}
		}
	} else {
		c.compared.NotLoaded = true
		if s.Status != sale.Draft && time.Now().Before(s.EndsAt.Add(sale.Retention)) {
			c.found(Finding{Kind: NotLoaded, Detail: "published, and its stock key is absent: it answers 503"})
		}
	}
	for i := range c.findings {
		f := &c.findings[i]
		still, err := c.again(ctx, f)
		if err != nil {
			return c.compared, err
		}
		if still {
			if err := each(*f); err != nil {
				return c.compared, err
			}
		}
	}
	return c.compared, nil
}

// comparison is one Compare under way.
type comparison struct {
	*Auditor
	sale     *sale.Sale
	bound    sale.ID          // ids below it are older than the watermark
	open     map[sale.ID]bool // batches RESERVED or CONFIRMED in Redis
	still    map[sale.ID]bool // those that were so when the passes were over; nil = not read yet
	findings []Finding
	compared Compared
}

func (c *comparison) found(f Finding) {
	f.SaleID = c.sale.ID
	if len(c.findings) < maxFindings {
		c.findings = append(c.findings, f)
	}
}

// ledgerAlone checks the ledger against itself: invariants 1, 3, 4b, 8.
func (c *comparison) ledgerAlone(ctx context.Context) error {
	b, err := c.Ledger.Balance(ctx, c.sale.ID)
	if err != nil {
		return err
	}
	if active := b.Active(); active > b.Total {
		c.found(Finding{Kind: Oversold, Units: active - b.Total, Detail: fmt.Sprintf("%d active units of %d", active, b.Total)})
	}
	if b.Available+b.Locked+b.Sold != b.Total || b.Locked != b.LockedOrders || b.Sold != b.SoldOrders {
		c.found(Finding{
			Kind: LedgerCountsDrift, Units: b.Locked + b.Sold - b.Active(),
			Detail: fmt.Sprintf("available %d + locked %d + sold %d of total %d; the orders say locked %d, sold %d",
				b.Available, b.Locked, b.Sold, b.Total, b.LockedOrders, b.SoldOrders),
		})
	}
	over, err := c.Ledger.OverLimit(ctx, c.sale.ID, c.sale.PerUserLimit, maxBreaches)
	if err != nil {
		return err
	}
	for _, u := range over {
		c.found(Finding{Kind: LimitExceeded, UserID: u.UserID, Units: u.Units, Detail: fmt.Sprintf("%d active units, the limit is %d", u.Units, c.sale.PerUserLimit)})
	}
	doubles, err := c.Ledger.DoubleOrders(ctx, c.sale.ID, maxBreaches)
	if err != nil {
		return err
	}
	for _, u := range doubles {
		c.found(Finding{Kind: DoubleOrder, UserID: u.UserID, Units: u.Units, Detail: "several active orders of one request key"})
	}
	stuck, err := c.Ledger.Tasks(ctx, ledger.TaskStuck, maxBreaches)
	if err != nil {
		return err
	}
	for i := range stuck {
		if t := &stuck[i]; t.Order.SaleID == c.sale.ID {
			c.found(Finding{Kind: StuckTask, OrderID: t.Order.ID, BatchID: t.BatchID, UserID: t.Order.UserID, Units: int64(t.Order.Quantity),
				Detail: fmt.Sprintf("task %d is out of tries: %s", t.ID, t.LastErr)})
		}
	}
	return nil
}

// redisAlone checks Redis against itself, in one script: invariant 4a.
func (c *comparison) redisAlone(ctx context.Context) error {
	snap, err := c.Stock.Snapshot(ctx, c.sale.ID)
	if err != nil || !snap.Loaded {
		return err
	}
	if d := snap.Total - snap.Stock - snap.Held; d != 0 {
		c.found(Finding{Kind: StockDrift, Units: d, Detail: fmt.Sprintf("stock %d + held %d is not total %d", snap.Stock, snap.Held, snap.Total)})
		return nil
	}
	if differs, err := c.totalsDiffer(ctx); err != nil {
		return err
	} else if differs {
		c.found(Finding{Kind: TotalDiffers, Detail: "a restock is under way, or one side missed it"})
	}
	drift, counted, err := c.Stock.Recount(ctx, c.sale.ID, false)
	if err != nil {
		return err
	}
	c.compared.NotRecounted = !counted
	if counted && drift != 0 {
		c.found(Finding{Kind: StockDrift, Units: drift, Detail: "held units are not what the buyers' records say"})
	}
	return nil
}

func (c *comparison) totalsDiffer(ctx context.Context) (bool, error) {
	snap, err := c.Stock.Snapshot(ctx, c.sale.ID)
	if err != nil || !snap.Loaded {
		return false, err
	}
	inv, err := c.Ledger.Inventory(ctx, c.sale.ID)
	return snap.Total != inv.Total, err
}

// stillOpen reports whether a batch is open in Redis after the passes.
func (c *comparison) stillOpen(ctx context.Context, id sale.ID) (bool, error) {
	if c.still == nil {
		still := make(map[sale.ID]bool)
		err := c.Stock.Batches(ctx, c.sale.ID, func(records []stock.BatchRecord) error {
			for i := range records {
				still[records[i].ID] = records[i].State != stock.StateVoid
			}
			return nil
		})
		if err != nil {
			return false, err
		}
		c.still = still
	}
	return c.still[id], nil
}

// batches looks at what is open in Redis: invariants 2 and 7.
func (c *comparison) batches(ctx context.Context) error {
	return c.Stock.Batches(ctx, c.sale.ID, func(records []stock.BatchRecord) error {
		ids := make([]sale.ID, 0, len(records))
		for i := range records {
			if b := &records[i]; b.State != stock.StateVoid && !c.open[b.ID] {
				c.open[b.ID] = true
				ids = append(ids, b.ID)
			}
		}
		c.compared.OpenBatches += int64(len(ids))
		consumed, err := c.Ledger.Consumed(ctx, ids)
		if err != nil {
			return err
		}
		for i := range records {
			b := &records[i]
			if b.State == stock.StateVoid {
				continue
			}
			f := Finding{BatchID: b.ID, Units: units(b.Orders)}
			switch {
			case consumed[b.ID]:
				if b.ID >= c.bound {
					continue // its worker is about to settle it
				}
				f.Kind, f.Detail = ConsumedNotSettled, "the ledger has it, Redis has it open"
			case b.State == stock.StateConfirmed && b.ID < c.bound:
				f.Kind, f.Detail = ConfirmedNotPersisted, "promised before the watermark and not in the ledger: workers are behind, or the message is lost"
			case b.State == stock.StateReserved && time.Since(b.ID.Time()) > c.Hold+sweepGrace:
				f.Kind, f.Detail = StuckReservation, "reserved long past its deadline: no reconciler is sweeping"
			default:
				continue
			}
			c.found(f)
		}
		return nil
	})
}

// records holds every buyer's record older than the watermark against the ledger.
func (c *comparison) records(ctx context.Context) error {
	return c.Stock.Buyers(ctx, c.sale.ID, func(records []stock.Record) error {
		ids := make([]sale.ID, 0, len(records))
		old := records[:0]
		for _, r := range records {
			switch {
			case r.OrderID >= c.bound:
				c.compared.Younger++
			case c.open[r.BatchID]: // judged as a batch
			default:
				ids = append(ids, r.OrderID)
				old = append(old, r)
			}
		}
		c.compared.RedisRecords += int64(len(old))
		stored, err := c.Ledger.OrdersByID(ctx, ids)
		if err != nil {
			return err
		}
		for i := range old {
			if kind, detail := judge(&old[i], stored[old[i].OrderID]); kind != "" {
				c.found(Finding{Kind: kind, OrderID: old[i].OrderID, BatchID: old[i].BatchID, UserID: old[i].UserID,
					Units: int64(old[i].Quantity), Detail: detail})
			}
		}
		return nil
	})
}

// judge says how one record differs from its order; o is nil when the ledger has none.
func judge(r *stock.Record, o *ledger.Order) (Kind, string) {
	switch {
	case o == nil && r.Returned:
		return "", "" // a cancelled order that was never persisted: nobody holds it
	case o == nil:
		return HeldWithoutOrder, "settled in Redis, unknown to the ledger"
	case o.Quantity != r.Quantity:
		return QuantityDiffers, fmt.Sprintf("%d units in Redis, %d in the ledger", r.Quantity, o.Quantity)
	case !r.Returned && !o.Status.Active():
		return CancelledStillHeld, "the ledger says " + string(o.Status)
	case r.Returned && o.Status.Active():
		return ReturnedButActive, "the ledger says " + string(o.Status)
	}
	return "", ""
}

// orders holds every active order older than the watermark against Redis.
func (c *comparison) orders(ctx context.Context) error {
	err := c.Ledger.EachOrder(ctx, c.sale.ID, 0, ledgerSliceOrders, func(stored []ledger.Order) error {
		var past error
		users := make([]string, 0, len(stored))
		for i := range stored {
			if stored[i].ID >= c.bound {
				stored, past = stored[:i], errPastBound
				break
			}
			if stored[i].Status.Active() {
				users = append(users, stored[i].UserID)
			}
		}
		c.compared.LedgerOrders += int64(len(stored))
		records, err := c.Stock.RecordsOf(ctx, c.sale.ID, users)
		if err != nil {
			return err
		}
		for i := range stored {
			o := &stored[i]
			// A batch that is open in Redis has its records; it is judged as a batch.
			if o.Status.Active() && !c.open[o.BatchID] && recordOf(records[o.UserID], o.ID) == nil {
				c.found(Finding{Kind: PersistedUnknownToRedis, OrderID: o.ID, BatchID: o.BatchID, UserID: o.UserID,
					Units: int64(o.Quantity), Detail: "active in the ledger, without a buyer's record"})
			}
		}
		return past
	})
	if errors.Is(err, errPastBound) {
		return nil
	}
	return err
}

// errPastBound ends a pass over the orders: ids are in time order.
var errPastBound = errors.New("audit: past the watermark")

func recordOf(records []stock.Record, id sale.ID) *stock.Record {
	for i := range records {
		if records[i].OrderID == id {
			return &records[i]
		}
	}
	return nil
}

func units(orders []sale.Order) int64 {
	b := sale.Batch{Orders: orders}
	return b.Units()
}

// again looks a second time at a difference that the passage of an order from one
// store to the other can feign. Redis is read before the ledger, as in the passes.
func (c *comparison) again(ctx context.Context, f *Finding) (bool, error) {
	switch f.Kind {
	case PersistedUnknownToRedis, CancelledStillHeld, HeldWithoutOrder, ReturnedButActive, QuantityDiffers:
		records, err := c.Stock.RecordsOf(ctx, c.sale.ID, []string{f.UserID})
		if err != nil {
			return false, err
		}
		stored, err := c.Ledger.OrdersByID(ctx, []sale.ID{f.OrderID})
		if err != nil {
			return false, err
		}
		o, r := stored[f.OrderID], recordOf(records[f.UserID], f.OrderID)
		if r == nil {
			return o != nil && o.Status.Active(), nil
		}
		kind, _ := judge(r, o)
		return kind != "", nil
	case ConfirmedNotPersisted:
		consumed, err := c.Ledger.Consumed(ctx, []sale.ID{f.BatchID})
		return !consumed[f.BatchID], err
	case ConsumedNotSettled:
		return c.stillOpen(ctx, f.BatchID)
	case TotalDiffers:
		return c.totalsDiffer(ctx)
	default:
		return true, nil
	}
}
