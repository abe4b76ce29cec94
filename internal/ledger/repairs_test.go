package ledger

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"flashgate/internal/sale"
)

// fence takes a lease that nobody takes over.
func (r *rig) fence(t *testing.T, name string) Fence {
	t.Helper()
	token, ok, err := r.Acquire(t.Context(), name, "me", time.Hour)
	require.NoError(t, err)
	require.True(t, ok)
	return Fence{Lease: name, Holder: "me", Token: token}
}

// TestRepairsAreFenced: who stood still, and whose lease went to another meanwhile,
// changes nothing when he wakes up.
func TestRepairsAreFenced(t *testing.T) {
	onEngines(t, func(t *testing.T, r *rig) {
		ctx := t.Context()
		id := r.newSale(t, 10, 3)
		r.apply(t, batch(order(id, "u", "1", 1)), batch(order(id, "u", "2", 1)))
		r.exec(t, "UPDATE sales SET per_user_limit = 1 WHERE id = ?", id)
		r.exec(t, "UPDATE inventory SET locked = 3, available = 7 WHERE sale_id = ?", id)
		lost := batch(order(id, "v", "", 1))
		repairs := map[string]func(f Fence) error{
			"log": func(f Fence) error {
				return r.LogRepairs(ctx, f, []Repair{{SaleID: id, Kind: "STOCK_DRIFT", Units: 1}})
			},
			"recount": func(f Fence) error {
				_, err := r.RecountInventory(ctx, f, id, Repair{Kind: "LEDGER_COUNTS_DRIFT"})
				return err
			},
			"limit": func(f Fence) error {
				_, err := r.CancelOverLimit(ctx, f, id, 1, map[string]Repair{"u": {Kind: "LIMIT_EXCEEDED"}})
				return err
			},
			"lost orders": func(f Fence) error {
				_, err := r.AddLostOrders(ctx, f, []sale.Batch{lost}, Repair{Kind: "HELD_WITHOUT_ORDER"})
				return err
			},
		}
		state := func() [4]int64 {
			return [4]int64{
				r.count(t, "SELECT COUNT(*) FROM inventory_log WHERE sale_id = ?", id),
				r.count(t, "SELECT available FROM inventory WHERE sale_id = ?", id),
				r.count(t, "SELECT COUNT(*) FROM orders WHERE sale_id = ? AND status = 'CANCELLED'", id),
				r.count(t, "SELECT COUNT(*) FROM orders WHERE sale_id = ?", id),
			}
		}
		before := state()
		old := r.fence(t, "reconcile/"+id)
		r.exec(t, "UPDATE leases SET expires_at = '2020-01-01 00:00:00.000' WHERE name = ?", old.Lease)
		token, ok, err := r.Acquire(ctx, old.Lease, "another", time.Hour)
		require.NoError(t, err)
		require.True(t, ok)
		require.Greater(t, token, old.Token)
		for name, repair := range repairs {
			require.ErrorIs(t, repair(old), ErrFenced, name)
			require.Equal(t, before, state(), name)
		}
		holder, until, err := r.LeaseHolder(ctx, old.Lease)
		require.NoError(t, err)
		require.Equal(t, "another", holder)
		require.WithinDuration(t, time.Now().Add(time.Hour), until, time.Minute)

		// The same holder again is another life of his: the token has grown.
		require.NoError(t, r.Release(ctx, old.Lease, "another"))
		now := r.fence(t, old.Lease)
		require.ErrorIs(t, repairs["log"](old), ErrFenced)
		for name, repair := range repairs {
			require.NoError(t, repair(now), name)
		}
	})
}

func TestRecountInventory(t *testing.T) {
	onEngines(t, func(t *testing.T, r *rig) {
		ctx := t.Context()
		id := r.newSale(t, 10, 9)
		r.apply(t, batch(order(id, "u", "1", 2)), batch(order(id, "v", "1", 1)), batch(order(id, "w", "1", 4)))
		f := r.fence(t, "reconcile/"+id)
		recount := func() (bool, error) {
			return r.RecountInventory(ctx, f, id, Repair{Kind: "LEDGER_COUNTS_DRIFT", Reason: "why"})
		}
		changed, err := recount()
		require.NoError(t, err)
		require.False(t, changed, "nothing is wrong")
		r.exec(t, "UPDATE orders SET status = 'PAID' WHERE sale_id = ? AND user_id = 'v'", id)
		r.exec(t, "UPDATE orders SET status = 'CANCELLED' WHERE sale_id = ? AND user_id = 'w'", id)
		for range 2 {
			changed, err = recount()
			require.NoError(t, err)
		}
		require.False(t, changed, "once")
		inv, err := r.Inventory(ctx, id)
		require.NoError(t, err)
		require.Equal(t, Inventory{SaleID: id, Total: 10, Available: 7, Locked: 2, Sold: 1, Version: 1}, inv)
		require.EqualValues(t, 1, r.count(t, "SELECT COUNT(*) FROM inventory_log WHERE sale_id = ? AND kind = 'LEDGER_COUNTS_DRIFT'"+
			" AND units = 4 AND before_state = 'available 3, locked 7, sold 0' AND after_state = 'available 7, locked 2, sold 1' AND reason = 'why'", id))
		r.exec(t, "UPDATE orders SET quantity = 10 WHERE sale_id = ? AND user_id = 'u'", id)
		_, err = recount()
		require.Equal(t, sale.CodeConflict, sale.CodeOf(err), "more than the total")
		_, err = r.RecountInventory(ctx, f, "none", Repair{})
		require.Equal(t, sale.CodeSaleNotFound, sale.CodeOf(err))
		balance, err := r.Balance(ctx, id, nil)
		require.NoError(t, err)
		require.Equal(t, int64(10), balance.LockedOrders)
		require.Equal(t, int64(1), balance.SoldOrders)
		_, err = r.Balance(ctx, "none", nil)
		require.Equal(t, sale.CodeSaleNotFound, sale.CodeOf(err))
	})
}

func TestCancelOverLimit(t *testing.T) {
	onEngines(t, func(t *testing.T, r *rig) {
		ctx := t.Context()
		id := r.newSale(t, 20, 9)
		first, second, third := order(id, "u", "1", 2), order(id, "u", "2", 1), order(id, "u", "3", 2)
		r.apply(t, batch(first, second, third), batch(order(id, "v", "", 5)))
		f := r.fence(t, "reconcile/"+id)
		cancel := func(limit int) ([]sale.Order, int64) {
			done, err := r.CancelOverLimit(ctx, f, id, limit, map[string]Repair{"u": {Kind: "LIMIT_EXCEEDED"}, "nobody": {}})
			require.NoError(t, err)
			require.Len(t, done, 2)
			require.Zero(t, done["nobody"])
			return done["u"].Cancelled, done["u"].Left
		}
		cancelled, over := cancel(5)
		require.Empty(t, cancelled)
		require.Zero(t, over)
		for i := range 2 {
			cancelled, over = cancel(3)
			require.Zero(t, over)
			if i == 0 {
				require.Equal(t, []sale.Order{third}, cancelled, "the newest, and no more than is needed")
			} else {
				require.Empty(t, cancelled, "once")
			}
		}
		stored, err := r.Order(ctx, third.ID)
		require.NoError(t, err)
		require.Equal(t, sale.Cancelled, stored.Status)
		require.Equal(t, sale.ReasonLimitExceeded, stored.Reason)
		tasks, err := r.TasksOf(ctx, []sale.ID{first.ID, second.ID, third.ID})
		require.NoError(t, err)
		require.Len(t, tasks, 1)
		require.Equal(t, third, tasks[third.ID].Order)
		require.Equal(t, TaskOpen, tasks[third.ID].State)
		require.EqualValues(t, 1, r.count(t, "SELECT COUNT(*) FROM order_status_log WHERE order_id = ? AND from_status = 'PENDING_PAYMENT' AND to_status = 'CANCELLED'", int64(third.ID)))
		r.exec(t, "UPDATE orders SET status = 'PAID' WHERE id = ?", int64(first.ID))
		r.exec(t, "UPDATE inventory SET locked = locked - 2, sold = sold + 2 WHERE sale_id = ?", id)
		cancelled, over = cancel(1)
		require.Equal(t, []sale.Order{second}, cancelled)
		require.Equal(t, int64(1), over, "paid for")
		inv, err := r.Inventory(ctx, id)
		require.NoError(t, err)
		require.Equal(t, Inventory{SaleID: id, Total: 20, Available: 13, Locked: 5, Sold: 2, Version: 1}, inv)
		require.EqualValues(t, 2, r.count(t, "SELECT COUNT(*) FROM inventory_log WHERE sale_id = ? AND kind = 'LIMIT_EXCEEDED'", id))
	})
}

func TestAddLostOrders(t *testing.T) {
	onEngines(t, func(t *testing.T, r *rig) {
		ctx := t.Context()
		id := r.newSale(t, 5, 2)
		there := batch(order(id, "a", "k", 1))
		r.apply(t, there)
		f := r.fence(t, "reconcile/"+id)
		add := func(batches ...sale.Batch) (Applied, error) {
			return r.AddLostOrders(ctx, f, batches, Repair{Kind: "HELD_WITHOUT_ORDER"})
		}
		lost, copied, over, tooMany := batch(order(id, "b", "k", 2)), batch(order(id, "a", "k", 1)), batch(order(id, "b", "l", 1)), batch(order(id, "c", "k", 2))
		full := batch(order(id, "d", "k", 2))
		for i := range 2 {
			applied, err := add(lost, there, copied, over, full, tooMany)
			require.NoError(t, err)
			require.Equal(t, 2*(1-i), applied.Orders)
			require.Equal(t, 3*(1-i), applied.Cancelled)
		}
		for o, want := range map[sale.ID]string{
			lost.Orders[0].ID: "", full.Orders[0].ID: "", copied.Orders[0].ID: sale.ReasonDuplicate + " of " + there.Orders[0].ID.String(),
			over.Orders[0].ID: sale.ReasonLimitExceeded, tooMany.Orders[0].ID: sale.ReasonStockRefused,
		} {
			stored, err := r.Order(ctx, o)
			require.NoError(t, err)
			require.Equal(t, want, stored.Reason)
			require.Equal(t, want == "", stored.Status.Active())
		}
		inv, err := r.Inventory(ctx, id)
		require.NoError(t, err)
		require.Equal(t, int64(5), inv.Locked)
		require.EqualValues(t, 5, r.count(t, "SELECT COUNT(*) FROM inventory_log WHERE sale_id = ? AND kind = 'HELD_WITHOUT_ORDER'", id))
		// A batch that is redelivered late still brings its other orders.
		late := lost
		late.Orders = append(late.Orders[:1:1], order(id, "e", "k", 1))
		applied, err := r.Apply(context.Background(), []sale.Batch{late})
		require.NoError(t, err)
		require.Equal(t, 1, applied.Batches)
		require.Equal(t, 1, applied.Cancelled, "the stock is gone")

		wrong := batch(order(id, "f", "k", 1))
		wrong.Orders[0].AmountCents++
		_, err = add(wrong)
		require.True(t, Poison(err), "%v", err)
	})
}

func TestEachUser(t *testing.T) {
	onEngines(t, func(t *testing.T, r *rig) {
		id := r.newSale(t, 50, 9)
		r.apply(t, batch(order(id, "a", "1", 2), order(id, "a", "2", 1)), batch(order(id, "b", "1", 1)), batch(order(id, "c", "1", 4)), batch(order(id, "d", "1", 1)))
		r.exec(t, "UPDATE orders SET status = 'CANCELLED' WHERE sale_id = ? AND user_id = 'b'", id)
		r.exec(t, "UPDATE orders SET request_key = '1' WHERE sale_id = ? AND user_id = 'a'", id)
		want := []UserUnits{{"a", 3, 2, 2, 1}, {"c", 4, 4, 1, 1}, {"d", 1, 1, 1, 1}}
		for size := 1; size < 5; size++ {
			var got []UserUnits
			require.NoError(t, r.EachUser(t.Context(), id, size, func(users []UserUnits) error {
				got = append(got, users...)
				return nil
			}))
			require.Equal(t, want, got)
		}
		one, err := r.UserUnits(t.Context(), id, "c")
		require.NoError(t, err)
		require.Equal(t, want[1], one)
		one, err = r.UserUnits(t.Context(), id, "b")
		require.NoError(t, err)
		require.Equal(t, UserUnits{UserID: "b"}, one)
	})
}
