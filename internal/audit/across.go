package audit

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"flashgate/internal/ledger"
	"flashgate/internal/sale"
	"flashgate/internal/stock"
)

// The three passes across the stores, for what is older than the watermark.

// batches looks at what is open in Redis: invariants 2 and 7.
func (c *comparison) batches(ctx context.Context) error {
	return c.Stock.Batches(ctx, c.sale.ID, func(records []stock.BatchRecord) error {
		ids := make([]sale.ID, 0, len(records))
		orders := 0
		for i := range records {
			b := &records[i]
			orders += len(b.Orders)
			if b.State == stock.StateVoid {
				continue
			}
			c.compared.OpenBatches++
			if c.old(b.ID) {
				ids = append(ids, b.ID)
			}
		}
		consumed, err := c.Ledger.Consumptions(ctx, ids)
		if err != nil {
			return err
		}
		var suspects []Finding
		for i := range records {
			b := &records[i]
			if b.State == stock.StateVoid || !c.old(b.ID) {
				continue
			}
			f := Finding{BatchID: b.ID, Units: units(b.Orders), Before: b.State.String()}
			in, known := consumed[b.ID]
			switch {
			case known && c.lagging(in):
				continue // its worker is about to settle it
			case known:
				f.Kind, f.Detail, f.After = ConsumedNotSettled, "the ledger has it, Redis has it open", stock.StateSettled.String()
			case b.State == stock.StateConfirmed:
				f.Kind, f.Detail, f.After = ConfirmedNotPersisted, "promised before the watermark and not in the ledger: workers are behind, or the message is lost", stock.StateSettled.String()
			default:
				f.Kind, f.Detail, f.After = StuckReservation, "reserved long past its deadline: no reconciler is sweeping", stock.StateVoid.String()
			}
			suspects = append(suspects, f)
		}
		if err := c.openStill(ctx, suspects); err != nil {
			return err
		}
		return c.rest(ctx, orders)
	})
}

// openStill reports those of the batches that are in Redis what they were suspected to
// be, now that the ledger, and the sweeper's list, have been read.
func (c *comparison) openStill(ctx context.Context, suspects []Finding) error {
	ids := make([]sale.ID, 0, len(suspects))
	left := suspects[:0]
	for _, f := range suspects {
		if f.Kind == StuckReservation {
			// By Redis time, and not by the id's: a gateway's clock may be behind.
			overdue, err := c.Stock.Overdue(ctx, c.sale.ID, f.BatchID)
			if err != nil {
				return err
			}
			if overdue <= sweepGrace {
				continue
			}
		}
		left = append(left, f)
		ids = append(ids, f.BatchID)
	}
	suspects = left
	now, err := c.Stock.BatchesByID(ctx, c.sale.ID, ids)
	if err != nil {
		return err
	}
	for i := range suspects {
		f := &suspects[i]
		b, there := now[f.BatchID]
		if !there || b.State.String() != f.Before {
			continue
		}
		if err := c.found(*f); err != nil {
			return err
		}
	}
	return nil
}

// records holds every buyer's record older than the watermark against the ledger.
func (c *comparison) records(ctx context.Context) error {
	return c.Stock.Buyers(ctx, c.sale.ID, func(records []stock.Record) error {
		n := len(records)
		ids := make([]sale.ID, 0, n)
		old := records[:0]
		for _, r := range records {
			if !c.old(r.OrderID) || !c.old(r.BatchID) {
				c.compared.Younger++
				continue
			}
			ids = append(ids, r.OrderID)
			old = append(old, r)
		}
		c.compared.RedisRecords += int64(len(old))
		stored, err := c.Ledger.OrdersByID(ctx, ids)
		if err != nil {
			return err
		}
		suspects := slices.DeleteFunc(old, func(r stock.Record) bool {
			kind, _ := Judge(&r, stored[r.OrderID])
			return kind == ""
		})
		if err := c.judgeAgain(ctx, suspects); err != nil {
			return err
		}
		return c.rest(ctx, n)
	})
}

// judgeAgain reports those of the records that still differ: Redis first, with the state
// of each batch, since a settled order must be in the ledger; then the ledger; and of the
// cancelled ones, which Redis learns of after the ledger, Redis once more.
func (c *comparison) judgeAgain(ctx context.Context, suspects []stock.Record) error {
	if len(suspects) == 0 {
		return nil
	}
	ids, users := make([]sale.ID, len(suspects)), make([]string, len(suspects))
	for i := range suspects {
		ids[i], users[i] = suspects[i].OrderID, suspects[i].UserID
	}
	users = distinct(users)
	now, err := c.Stock.Records(ctx, c.sale.ID, users)
	if err != nil {
		return err
	}
	stored, err := c.Ledger.OrdersByID(ctx, ids)
	if err != nil {
		return err
	}
	tasks, err := c.Ledger.TasksOf(ctx, ids)
	if err != nil {
		return err
	}
	after, err := c.Stock.RecordsOf(ctx, c.sale.ID, users)
	if err != nil {
		return err
	}
	for i := range suspects {
		was := &suspects[i]
		r, o := recordOf(now[was.UserID], was.OrderID), stored[was.OrderID]
		if r == nil || r.Batch == stock.StateReserved || r.Batch == stock.StateConfirmed {
			continue // released, or judged as a batch
		}
		kind, detail := Judge(r, o)
		if kind == CancelledStillHeld {
			last := recordOf(after[was.UserID], was.OrderID)
			if last == nil || last.Returned {
				continue
			}
			if t, has := tasks[was.OrderID]; has && t.State != ledger.TaskDone {
				c.accept(last, &t)
				continue // the task's business
			}
		}
		if kind == "" {
			continue
		}
		err := c.found(Finding{Kind: kind, OrderID: r.OrderID, BatchID: r.BatchID, UserID: r.UserID, Units: int64(r.Quantity),
			Detail: detail, Before: describeRecord(r), After: describeOrder(o)})
		if err != nil {
			return err
		}
	}
	return nil
}

// accept notes what an operator has decided to leave: the units of an abandoned task.
func (c *comparison) accept(r *stock.Record, t *ledger.Task) {
	id := identity{kind: CancelledStillHeld, order: r.OrderID}
	if _, twice := c.told[id]; twice || t.State != ledger.TaskAbandoned {
		return
	}
	if len(c.told) < maxRemembered {
		c.told[id] = struct{}{}
	}
	c.compared.AcceptedUnits += int64(r.Quantity)
	if len(c.compared.Accepted) == maxAccepted {
		return
	}
	a := Accepted{SaleID: c.sale.ID, OrderID: r.OrderID, UserID: r.UserID, Units: int64(r.Quantity), TaskID: t.ID}
	if d := t.Abandoned; d != nil {
		a.By, a.Reason, a.At = d.Who, d.Why, d.At
	}
	c.compared.Accepted = append(c.compared.Accepted, a)
}

func distinct(users []string) []string {
	users = slices.Clone(users)
	slices.Sort(users)
	return slices.Compact(users)
}

func describeRecord(r *stock.Record) string {
	state := "HELD"
	if r.Returned {
		state = "RETURNED"
	}
	return fmt.Sprintf("%s, %d units", state, r.Quantity)
}

func describeOrder(o *ledger.Order) string {
	if o == nil {
		return "no order"
	}
	return fmt.Sprintf("%s, %d units", o.Status, o.Quantity)
}

// Judge says how one settled record differs from its order; o is nil when the ledger has
// none. "": it does not.
func Judge(r *stock.Record, o *ledger.Order) (Kind, string) {
	switch {
	case o == nil && r.Returned:
		return "", "" // a cancelled order that was never persisted: nobody holds it
	case o == nil && r.Batch == stock.StateVoid:
		return HeldWithoutOrder, "its batch is VOID in Redis, and the ledger does not know it"
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

// errPastBound ends a pass over the orders: ids are in time order.
var errPastBound = errors.New("audit: past the watermark")

// orders holds every active order older than the watermark against Redis.
func (c *comparison) orders(ctx context.Context) error {
	err := c.Ledger.EachOrder(ctx, c.sale.ID, 0, sliceOrders, func(stored []ledger.Order) error {
		var past error
		n := len(stored)
		users := make([]string, 0, n)
		for i := range stored {
			if !c.old(stored[i].ID) {
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
		var suspects []ledger.Order
		for _, o := range stored {
			if o.Status.Active() && c.old(o.BatchID) && recordOf(records[o.UserID], o.ID) == nil {
				suspects = append(suspects, o)
			}
		}
		if err := c.unknownStill(ctx, suspects); err != nil {
			return err
		}
		if err := c.rest(ctx, n); err != nil {
			return err
		}
		return past
	})
	if errors.Is(err, errPastBound) {
		return nil
	}
	return err
}

// unknownStill reports those of the orders that Redis has no record of, although their
// batch was settled, or is owed for too long: the ledger first, and then Redis.
func (c *comparison) unknownStill(ctx context.Context, suspects []ledger.Order) error {
	if len(suspects) == 0 {
		return nil
	}
	ids, batches, users := make([]sale.ID, len(suspects)), make([]sale.ID, len(suspects)), make([]string, len(suspects))
	for i := range suspects {
		ids[i], batches[i], users[i] = suspects[i].ID, suspects[i].BatchID, suspects[i].UserID
	}
	slices.Sort(batches)
	consumed, err := c.Ledger.Consumptions(ctx, slices.Compact(batches))
	if err != nil {
		return err
	}
	stored, err := c.Ledger.OrdersByID(ctx, ids)
	if err != nil {
		return err
	}
	records, err := c.Stock.RecordsOf(ctx, c.sale.ID, distinct(users))
	if err != nil {
		return err
	}
	for i := range suspects {
		o := stored[suspects[i].ID]
		if o == nil || !o.Status.Active() || recordOf(records[o.UserID], o.ID) != nil {
			continue
		}
		if in, known := consumed[o.BatchID]; known && c.lagging(in) {
			continue // settling adopts it
		}
		err := c.found(Finding{Kind: PersistedUnknownToRedis, OrderID: o.ID, BatchID: o.BatchID, UserID: o.UserID, Units: int64(o.Quantity),
			Detail: "active in the ledger, without a buyer's record", Before: "no record", After: describeOrder(o)})
		if err != nil {
			return err
		}
	}
	return nil
}
