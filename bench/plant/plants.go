package plant

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
)

// Plant makes one kind of difference.
type Plant struct {
	Name    string
	Kind    string // as reconciles call it
	Takes   Takes
	Units   int  // that a repair moves, an order; the fuse adds them up
	Cancels bool // the orders it takes end CANCELLED
	Batches bool // it is found batch by batch
	Once    bool // it is found as one, of so many units
	Round   bool // the reconciler's next round mends it, so a reconcile may find nothing left
	Help    bool // promised and not persisted: a reconcile helps, and does not call it found

	// Make makes it: of these orders, or of n units if it takes none.
	Make func(ctx context.Context, s *Sale, orders []Order, n int) error
}

// Takes is what a plant needs.
type Takes int

// What plants take.
const (
	Nothing Takes = iota
	SomeOrders
	WholeBatches
)

// Plants are all of them. Each may be made while the sale sells, since what one needs is
// not touched by shoppers; the sums are moved, not set.
var Plants = []Plant{
	{Name: "promised batches that never came", Kind: "CONFIRMED_NOT_PERSISTED", Takes: WholeBatches, Batches: true, Help: true, Make: neverCame},
	{Name: "records deleted in Redis", Kind: "PERSISTED_UNKNOWN_TO_REDIS", Takes: SomeOrders, Units: 1, Make: deleteRecords},
	{Name: "orders cancelled in the ledger", Kind: "CANCELLED_STILL_HELD", Takes: SomeOrders, Units: 1, Cancels: true, Make: cancel},
	{Name: "orders deleted in the ledger", Kind: "HELD_WITHOUT_ORDER", Takes: SomeOrders, Units: 1, Make: deleteOrders},
	{Name: "units given back in Redis", Kind: "RETURNED_BUT_ACTIVE", Takes: SomeOrders, Units: 1, Make: giveBack},
	{Name: "batches opened again in Redis", Kind: "CONSUMED_NOT_SETTLED", Takes: WholeBatches, Batches: true, Make: openAgain},
	{Name: "quantities raised in Redis", Kind: "QUANTITY_DIFFERS", Takes: SomeOrders, Units: 1, Make: raiseInRedis},
	{Name: "quantities above the limit in both stores", Kind: "LIMIT_EXCEEDED", Takes: SomeOrders, Units: 2, Cancels: true, Make: raiseInBoth},
	{Name: "tasks out of tries", Kind: "STUCK_TASK", Takes: SomeOrders, Cancels: true, Make: stuckTasks},
	{Name: "reservations nobody sweeps", Kind: "STUCK_RESERVATION", Batches: true, Make: stuckReservations},
	{Name: "stock moved in Redis", Kind: "STOCK_DRIFT", Units: 1, Once: true, Make: moveStock},
	{Name: "locked units moved in the ledger", Kind: "LEDGER_COUNTS_DRIFT", Units: 1, Once: true, Make: moveLocked},
	{Name: "a restock that Redis missed", Kind: "TOTAL_DIFFERS", Units: 1, Once: true, Round: true, Make: restock},
}

// neverCame: as if the message of a promised batch had been lost.
func neverCame(ctx context.Context, s *Sale, orders []Order, _ int) error {
	if err := deleteOrders(ctx, s, orders, 0); err != nil {
		return err
	}
	if err := s.execOf(ctx, orders, `DELETE FROM consumed_batches WHERE batch_id IN `, inBatches); err != nil {
		return err
	}
	return s.reopen(ctx, orders)
}

// deleteRecords: whoever deletes by hand may well put the sums right.
func deleteRecords(ctx context.Context, s *Sale, orders []Order, _ int) error {
	err := eachOf(orders, func(some []Order) error {
		return s.redis.Do(ctx, s.redis.B().Hdel().Key(s.key("buyers")).Field(users(some)...).Build()).Error()
	})
	return errors.Join(err, s.free(ctx, len(orders)))
}

func cancel(ctx context.Context, s *Sale, orders []Order, _ int) error {
	if err := s.execOf(ctx, orders, `UPDATE orders SET status = 'CANCELLED' WHERE id IN `, in); err != nil {
		return err
	}
	return s.lock(ctx, -len(orders))
}

func deleteOrders(ctx context.Context, s *Sale, orders []Order, _ int) error {
	if err := s.execOf(ctx, orders, `DELETE FROM orders WHERE id IN `, in); err != nil {
		return err
	}
	return s.lock(ctx, -len(orders))
}

func giveBack(ctx context.Context, s *Sale, orders []Order, _ int) error {
	if err := s.rewrite(ctx, orders, func(record []byte) { record[0] = returned }); err != nil {
		return err
	}
	return s.free(ctx, len(orders))
}

func openAgain(ctx context.Context, s *Sale, orders []Order, _ int) error {
	return s.reopen(ctx, orders)
}

func raiseInRedis(ctx context.Context, s *Sale, orders []Order, _ int) error {
	err := s.rewrite(ctx, orders, func(record []byte) { binary.BigEndian.PutUint16(record[unitsAt:], 2) })
	if err != nil {
		return err
	}
	return s.free(ctx, -len(orders))
}

func raiseInBoth(ctx context.Context, s *Sale, orders []Order, _ int) error {
	if err := raiseInRedis(ctx, s, orders, 0); err != nil {
		return err
	}
	err := s.execOf(ctx, orders, `UPDATE orders SET quantity = 2, amount_cents = 2 * amount_cents WHERE id IN `, in)
	if err != nil {
		return err
	}
	return s.lock(ctx, len(orders))
}

func stuckTasks(ctx context.Context, s *Sale, orders []Order, _ int) error {
	err := s.execOf(ctx, orders, `INSERT INTO stock_sync_tasks
		(order_id, batch_id, sale_id, user_id, request_key, quantity, amount_cents, tries, next_try, state, created_at)
		SELECT id, batch_id, sale_id, user_id, request_key, quantity, amount_cents, 20, created_at, 'STUCK', created_at
		FROM orders WHERE id IN `, in)
	if err != nil {
		return err
	}
	return cancel(ctx, s, orders, 0)
}

// reservedTogether is how many orders a stuck reservation has.
const reservedTogether = 100

// stuckReservations: reserved long ago by new shoppers, and not on the sweeper's list.
func stuckReservations(ctx context.Context, s *Sale, _ []Order, n int) error {
	if s.lowest == 0 {
		return errors.New("BUG: Orders is called first")
	}
	for left := n; left > 0; {
		size := min(left, reservedTogether)
		left -= size
		batch := idBytes(s.newID())
		buyers, reserved := make(map[string]string, size), []byte{'R'}
		for i := range size {
			user := fmt.Sprintf("stuck-%d-%x", i, batch)
			entry := "\x00\x01" + idBytes(s.newID()) + "\x01k"
			buyers[user] = string(held) + entry + batch
			reserved = append(reserved, inBatch(user, entry)...)
		}
		err := errors.Join(s.free(ctx, -size), s.set(ctx, "buyers", buyers), s.set(ctx, "batches", map[string]string{batch: string(reserved)}))
		if err != nil {
			return err
		}
	}
	return nil
}

func moveStock(ctx context.Context, s *Sale, _ []Order, n int) error { return s.addStock(ctx, n) }

func moveLocked(ctx context.Context, s *Sale, _ []Order, n int) error { return s.lock(ctx, n) }

func restock(ctx context.Context, s *Sale, _ []Order, n int) error {
	return s.exec(ctx, `UPDATE inventory SET total = total + ?, available = available + ? WHERE sale_id = ?`, n, n, s.ID)
}

// Found is how many differences a reconcile finds of those that were planted.
func (p *Plant) Found(orders []Order, n int) int64 {
	switch {
	case p.Once:
		return 1
	case p.Takes == Nothing && p.Batches:
		return int64((n + reservedTogether - 1) / reservedTogether)
	case p.Batches:
		batches := make(map[int64]bool)
		for i := range orders {
			batches[orders[i].Batch] = true
		}
		return int64(len(batches))
	}
	return int64(len(orders))
}
