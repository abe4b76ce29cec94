package audit

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/time/rate"

	"flashgate/internal/ledger"
	"flashgate/internal/sale"
	"flashgate/internal/stock"
)

// Sizes of the slices in which the ledger is read, and what bounds a comparison.
const (
	sliceOrders = 500
	sliceUsers  = 500
	sliceTasks  = 1000
	// paceBurst is the largest slice that anything is read in.
	paceBurst = 1000
	// maxRemembered bounds the findings that are told apart from a second sight of the
	// same: a scan of Redis may show a record twice.
	maxRemembered = 100_000
	// sweepGrace is what invariant 7 allows beyond a reservation's deadline.
	sweepGrace = 30 * time.Second
	// restockGrace is how long the two sides of a restock may be apart: two calls.
	restockGrace = time.Second
	restockLook  = 50 * time.Millisecond
)

// Compare finds what differs in one sale, and calls each with it; an error of each ends
// it. Memory is bounded whatever the sale's size: both stores are read in slices.
//
// An order on its way is never a difference. What is younger than the watermark is left
// out, and each suspect is looked at again before it is one, the stores in the order in
// which the protocol writes them: what Redis must have after the ledger (a settle, a
// give-back) is read from the ledger first, and what the ledger must have before Redis
// (a settled order) from Redis first, batch and record in one script.
func (a *Auditor) Compare(ctx context.Context, s *sale.Sale, each func(Finding) error) (Compared, error) {
	c := &comparison{Auditor: a, sale: s, each: each, told: make(map[identity]struct{})}
	if a.Pace > 0 {
		c.limit = rate.NewLimiter(rate.Limit(a.Pace), paceBurst)
	}
	if err := c.ledgerAlone(ctx); err != nil {
		return c.compared, err
	}
	snap, err := a.Stock.Snapshot(ctx, s.ID)
	if err != nil {
		return c.compared, err
	}
	if !snap.Loaded {
		c.compared.NotLoaded = true
		if s.Status == sale.Draft || !time.Now().Before(s.EndsAt.Add(sale.Retention)) {
			return c.compared, nil
		}
		return c.compared, c.found(Finding{Kind: NotLoaded, Detail: "published, and its stock key is absent: it answers 503"})
	}
	c.bound = sale.FirstIDAt(snap.Now.Add(-a.Watermark))
	for _, part := range []func(context.Context) error{c.redisAlone, c.batches, c.records, c.orders} {
		if err := part(ctx); err != nil {
			return c.compared, err
		}
	}
	return c.compared, nil
}

// comparison is one Compare under way.
type comparison struct {
	*Auditor
	sale     *sale.Sale
	each     func(Finding) error
	limit    *rate.Limiter // nil = none
	bound    sale.ID       // ids below it are older than the watermark
	told     map[identity]struct{}
	compared Compared
}

// identity is what tells one finding from another.
type identity struct {
	kind         Kind
	order, batch sale.ID
}

func (c *comparison) found(f Finding) error {
	f.SaleID = c.sale.ID
	if f.OrderID != 0 || f.BatchID != 0 {
		id := identity{f.Kind, f.OrderID, f.BatchID}
		if _, twice := c.told[id]; twice {
			return nil
		}
		if len(c.told) < maxRemembered {
			c.told[id] = struct{}{}
		}
	}
	return c.each(f)
}

// rest waits until n more records may be read.
func (c *comparison) rest(ctx context.Context, n int) error {
	if c.limit == nil || n == 0 {
		return ctx.Err()
	}
	return c.limit.WaitN(ctx, min(n, paceBurst))
}

// old reports whether an order, or a batch, must stand in both stores.
func (c *comparison) old(id sale.ID) bool { return id < c.bound }

// lagging reports whether the ledger has had a batch for so short a time that settling
// it in Redis is still its worker's business.
func (c *comparison) lagging(of ledger.Consumption) bool {
	return of.SettledAt.IsZero() && time.Since(of.ConsumedAt) < c.Watermark
}

// ledgerAlone checks the ledger against itself: invariants 1, 3, 4b, 7, 8.
func (c *comparison) ledgerAlone(ctx context.Context) error {
	b, err := c.Ledger.Balance(ctx, c.sale.ID, c.rest)
	if err != nil {
		return err
	}
	c.compared.Balance = b
	if active := b.Active(); active > b.Total {
		if err := c.found(Finding{Kind: Oversold, Units: active - b.Total, Detail: fmt.Sprintf("%d active units of %d", active, b.Total)}); err != nil {
			return err
		}
	}
	if b.Available+b.Locked+b.Sold != b.Total || b.Locked != b.LockedOrders || b.Sold != b.SoldOrders {
		units := b.Total - b.Active() - b.Available
		if units == 0 {
			units = b.LockedOrders - b.Locked
		}
		err := c.found(Finding{
			Kind: LedgerCountsDrift, Units: units,
			Detail: fmt.Sprintf("available %d + locked %d + sold %d of total %d; the orders say locked %d, sold %d",
				b.Available, b.Locked, b.Sold, b.Total, b.LockedOrders, b.SoldOrders),
			After: fmt.Sprintf("available %d, locked %d, sold %d", b.Total-b.Active(), b.LockedOrders, b.SoldOrders),
		})
		if err != nil {
			return err
		}
	}
	if err := c.users(ctx); err != nil {
		return err
	}
	return c.tasks(ctx)
}

// users looks for whom the ledger's guards let through: invariants 3 and 8.
func (c *comparison) users(ctx context.Context) error {
	return c.Ledger.EachUser(ctx, c.sale.ID, sliceUsers, func(users []ledger.UserUnits) error {
		for i := range users {
			u := &users[i]
			if over := u.Units - int64(c.sale.PerUserLimit); over > 0 {
				// Whole orders are cancelled until the rest is within the limit: the last of
				// them may be most of its units over it.
				err := c.found(Finding{Kind: LimitExceeded, UserID: u.UserID, Units: min(u.Units, over+u.Largest-1),
					Detail: fmt.Sprintf("%d active units, the limit is %d", u.Units, c.sale.PerUserLimit)})
				if err != nil {
					return err
				}
			}
			if u.Orders > u.Keys {
				err := c.found(Finding{Kind: DoubleOrder, UserID: u.UserID, Units: u.Units, Detail: "several active orders of one request key"})
				if err != nil {
					return err
				}
			}
		}
		return c.rest(ctx, len(users))
	})
}

func (c *comparison) tasks(ctx context.Context) error {
	for after := int64(0); ; {
		stuck, err := c.Ledger.StuckTasks(ctx, c.sale.ID, after, sliceTasks)
		if err != nil {
			return err
		}
		for i := range stuck {
			t := &stuck[i]
			err := c.found(Finding{Kind: StuckTask, OrderID: t.Order.ID, BatchID: t.BatchID, UserID: t.Order.UserID, Units: int64(t.Order.Quantity),
				Detail: fmt.Sprintf("task %d is out of tries: %s", t.ID, t.LastErr), Before: string(ledger.TaskStuck), After: string(ledger.TaskDone)})
			if err != nil {
				return err
			}
		}
		if len(stuck) < sliceTasks {
			return nil
		}
		after = stuck[len(stuck)-1].ID
	}
}

// redisAlone checks Redis against itself, in one script: invariant 4a.
func (c *comparison) redisAlone(ctx context.Context) error {
	if err := c.totals(ctx); err != nil {
		return err
	}
	snap, err := c.Stock.Snapshot(ctx, c.sale.ID)
	if err != nil || !snap.Loaded {
		return err
	}
	// By how much the sums miss says nothing of how much the records do: a repair goes by
	// the records, and so must what the fuse is told.
	drift, counted, err := c.Stock.Recount(ctx, c.sale.ID)
	if err != nil {
		return err
	}
	c.compared.NotRecounted = !counted
	bySums := snap.Total - snap.Stock - snap.Held
	f := Finding{Kind: StockDrift, Units: drift, Detail: "held units are not what the buyers' records say",
		Before: fmt.Sprintf("stock %d, held %d", snap.Stock, snap.Held)}
	if bySums != 0 {
		f.Detail = fmt.Sprintf("stock %d + held %d is not total %d", snap.Stock, snap.Held, snap.Total)
	}
	if !counted {
		f.Units = bySums
	}
	if f.Units == 0 {
		return nil
	}
	return c.found(f)
}

// totals holds the two totals against each other. A restock changes one side after the
// other, so they have a moment to agree.
func (c *comparison) totals(ctx context.Context) error {
	tick := time.NewTicker(restockLook)
	defer tick.Stop()
	for began := time.Now(); ; {
		snap, err := c.Stock.Snapshot(ctx, c.sale.ID)
		if err != nil || !snap.Loaded {
			return err
		}
		inv, err := c.Ledger.Inventory(ctx, c.sale.ID)
		if err != nil || snap.Total == inv.Total {
			return err
		}
		if time.Since(began) > restockGrace {
			return c.found(Finding{Kind: TotalDiffers, Units: inv.Total - snap.Total,
				Detail: fmt.Sprintf("total %d at version %d in Redis, %d at %d in the ledger: one side missed a restock",
					snap.Total, snap.Version, inv.Total, inv.Version)})
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func units(orders []sale.Order) int64 {
	b := sale.Batch{Orders: orders}
	return b.Units()
}

func recordOf(records []stock.Record, id sale.ID) *stock.Record {
	for i := range records {
		if records[i].OrderID == id {
			return &records[i]
		}
	}
	return nil
}
