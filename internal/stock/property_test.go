package stock

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"flashgate/internal/sale"
)

// TestAgainstModel runs random sequences of all operations on an engine and on the
// model, and compares every answer and everything stored. Apart from the model it
// checks invariants 3, 4a, 6 and 8 on what is stored.
func TestAgainstModel(t *testing.T) {
	for _, e := range engines {
		t.Run(e.name, func(t *testing.T) {
			s := e.open(t)
			rapid.Check(t, func(rt *rapid.T) {
				r := newRun(t, rt, s)
				r.load(rt)
				rt.Repeat(map[string]func(*rapid.T){
					"":        r.check,
					"reserve": r.reserve,
					"confirm": r.confirm,
					"release": r.release,
					"adopt":   r.adopt,
					"settle":  r.settle,
					"restore": r.restore,
					"amend":   r.amend,
					"adjust":  r.adjust,
					"forget":  r.forget,
					"load":    r.load,
					"purge":   r.purge,
					"due":     r.due,
				})
			})
		})
	}
}

// run is one sequence: an engine's sale, the model's, and all that ever travelled.
type run struct {
	ctx context.Context
	*fixture
	m    *model
	sent []*sale.Batch // every batch there was, won or not
	// forced are users to whom adoption or a load gave units, whatever they held: the
	// limit and one order a key are the ledger's to enforce then.
	forced map[string]bool
}

var (
	modelUsers = []string{"ann", "bob", "0190b3a0-7c1e-7d3a-9d0a-5b6f2f1e8c4d"}
	modelKeys  = []string{"", "k", "0190b3a0-7c1e-7d3a-9d0a-5b6f2f1e8c4e"}
)

func newRun(t *testing.T, rt *rapid.T, s *Store) *run {
	r := &run{ctx: t.Context(), fixture: newFixture(t, s), m: &model{}, forced: map[string]bool{}}
	r.sale.Total = rapid.Int64Range(1, 12).Draw(rt, "total")
	return r
}

func (r *run) drawOrder(t *rapid.T) sale.Order {
	return r.order(rapid.SampledFrom(modelUsers).Draw(t, "user"), rapid.SampledFrom(modelKeys).Draw(t, "key"), rapid.IntRange(1, 3).Draw(t, "quantity"))
}

// drawBatch is one that travelled before, or one nobody has seen.
func (r *run) drawBatch(t *rapid.T) *sale.Batch {
	if len(r.sent) == 0 || rapid.IntRange(0, 4).Draw(t, "new") == 0 {
		b := r.batch()
		for range rapid.IntRange(1, 4).Draw(t, "orders") {
			b.Orders = append(b.Orders, r.drawOrder(t))
		}
		r.sent = append(r.sent, b)
		return b
	}
	// Mostly one of the last few: older ones are at rest.
	back := rapid.IntRange(1, min(len(r.sent), 6)).Draw(t, "back")
	b := *r.sent[len(r.sent)-back]
	b.Epoch += int64(rapid.SampledFrom([]int{0, 0, 0, -1}).Draw(t, "epoch"))
	return &b
}

// ready checks that an unloaded sale says so; the answers count only otherwise.
func (r *run) ready(t *rapid.T, err error) bool {
	if !r.m.loaded {
		require.ErrorIs(t, err, ErrNotReady)
		return false
	}
	require.NoError(t, err)
	return true
}

func (r *run) reserve(t *rapid.T) {
	now := time.Now()
	terms := rapid.SampledFrom([]Terms{
		{StartsAt: now.Add(-time.Hour), EndsAt: now.Add(time.Hour)},
		{StartsAt: now.Add(-time.Hour), EndsAt: now.Add(time.Hour)},
		{StartsAt: now.Add(-time.Hour), EndsAt: now.Add(time.Hour)},
		{StartsAt: now.Add(-time.Hour), EndsAt: now.Add(time.Hour), Paused: true},
		{StartsAt: now.Add(time.Hour), EndsAt: now.Add(2 * time.Hour)},
		{StartsAt: now.Add(-2 * time.Hour), EndsAt: now.Add(-time.Hour)},
	}).Draw(t, "terms")
	terms.PerUserLimit = r.sale.PerUserLimit
	overdue := rapid.Bool().Draw(t, "overdue")
	hold := time.Hour
	if overdue {
		hold = -time.Hour
	}
	b := r.drawBatch(t)
	got := make([]Outcome, len(b.Orders))
	epoch, err := r.Reserve(r.ctx, b, terms, hold, got)
	want, wantErr := r.m.reserve(b, terms, now, overdue)
	if wantErr != nil {
		require.ErrorIs(t, err, wantErr)
		return
	}
	require.NoError(t, err)
	require.Equal(t, r.m.epoch, epoch)
	require.Equal(t, want, got)
}

func (r *run) confirm(t *rapid.T) {
	b := r.drawBatch(t)
	got, err := r.Confirm(r.ctx, b)
	if r.ready(t, err) {
		require.Equal(t, r.m.confirm(b).String(), got.String())
	}
}

func (r *run) release(t *rapid.T) {
	b := r.drawBatch(t)
	epoch, orders := b.Epoch, b.Orders
	if rapid.Bool().Draw(t, "any epoch") {
		epoch = 0
	}
	if rapid.Bool().Draw(t, "sweeper") {
		orders = nil
	}
	got, err := r.Release(r.ctx, r.sale.ID, b.ID, epoch, orders)
	if r.ready(t, err) {
		require.Equal(t, r.m.release(b.ID, epoch, orders).String(), got.String())
	}
}

func (r *run) force(orders []sale.Order) {
	for i := range orders {
		r.forced[orders[i].UserID] = true
	}
}

func (r *run) adopt(t *rapid.T) {
	b := r.drawBatch(t)
	got, err := r.Adopt(r.ctx, b)
	r.force(b.Orders)
	if r.ready(t, err) {
		require.Equal(t, r.m.adopt(b).String(), got.String())
	}
}

func (r *run) settle(t *rapid.T) {
	active := map[sale.ID][]sale.Order{}
	var ids []sale.ID
	for range rapid.IntRange(1, 3).Draw(t, "batches") {
		b := r.drawBatch(t)
		if _, twice := active[b.ID]; twice {
			continue
		}
		ids = append(ids, b.ID)
		active[b.ID] = nil
		for _, o := range b.Orders {
			if rapid.Bool().Draw(t, "active") {
				active[b.ID] = append(active[b.ID], o)
			}
		}
		r.force(active[b.ID])
	}
	var asked []sale.ID
	settled, err := r.Settle(r.ctx, r.sale.ID, ids, func(_ context.Context, ids []sale.ID) (map[sale.ID][]sale.Order, error) {
		asked = append(asked, ids...)
		return active, nil
	})
	if !r.ready(t, err) {
		require.Empty(t, settled)
		return
	}
	require.ElementsMatch(t, ids, settled)
	var wantAsked []sale.ID
	for _, id := range ids {
		if r.m.settle(id, active[id]) {
			wantAsked = append(wantAsked, id)
		}
	}
	require.Equal(t, wantAsked, asked)
}

func (r *run) restore(t *rapid.T) {
	b := r.drawBatch(t)
	o := rapid.SampledFrom(b.Orders).Draw(t, "order")
	got, err := r.Restore(r.ctx, &o, b.ID)
	if r.ready(t, err) {
		require.Equal(t, r.m.restore(&o, b.ID), got)
	}
}

// amend sets a record that is as it was seen, or, mostly, is not any more.
func (r *run) amend(t *rapid.T) {
	user := rapid.SampledFrom(modelUsers).Draw(t, "user")
	if len(r.m.buyers[user]) == 0 {
		return
	}
	seen := rapid.SampledFrom(r.m.buyers[user]).Draw(t, "seen")
	if rapid.Bool().Draw(t, "stale") {
		seen.Returned = !seen.Returned
	}
	quantity, returned := rapid.IntRange(1, 3).Draw(t, "quantity"), rapid.Bool().Draw(t, "returned")
	got, err := r.Amend(r.ctx, r.sale.ID, &seen, quantity, returned)
	if r.ready(t, err) {
		require.Equal(t, r.m.amend(&seen, quantity, returned), got)
		r.forced[user] = true
	}
}

func (r *run) adjust(t *rapid.T) {
	total := rapid.Int64Range(1, 15).Draw(t, "total")
	version := r.m.version + rapid.Int64Range(-1, 2).Draw(t, "version step")
	got, err := r.Adjust(r.ctx, r.sale.ID, total, version)
	if r.ready(t, err) {
		require.Equal(t, r.m.adjust(total, version), got)
	}
}

// forget is a Redis that loses the stock key; the rest may still be there.
func (r *run) forget(t *rapid.T) {
	if rapid.IntRange(0, 3).Draw(t, "really") > 0 {
		return
	}
	keys := keysOf(r.sale.ID, wholeSale, allKeys...)
	if rapid.Bool().Draw(t, "stock only") {
		keys = keys[:1]
	} else {
		r.m.epoch = 0
	}
	for _, k := range keys {
		require.NoError(t, r.client.Do(r.ctx, r.client.B().Del().Key(k).Build()).Error())
	}
	r.m.loaded = false
}

// load loads from a ledger and a bus that know some of what travelled.
func (r *run) load(t *rapid.T) {
	s := r.sale
	s.Epoch = r.sale.Epoch + int64(rapid.SampledFrom([]int{1, 1, 0}).Draw(t, "epoch step"))
	s.Version = rapid.Int64Range(1, 3).Draw(t, "version")
	var orders, owed []LoadedOrder
	var undelivered []sale.Batch
	for _, b := range r.sent {
		persisted, onTheBus, isOwed := rapid.Bool().Draw(t, "persisted"), rapid.Bool().Draw(t, "on the bus"), rapid.Bool().Draw(t, "owed")
		if onTheBus {
			undelivered = append(undelivered, *b)
		}
		if persisted {
			for _, o := range b.Orders {
				orders = append(orders, LoadedOrder{Order: o, BatchID: b.ID, Returned: rapid.Bool().Draw(t, "cancelled")})
			}
		}
		if isOwed {
			for _, o := range b.Orders {
				owed = append(owed, LoadedOrder{Order: o, BatchID: b.ID})
			}
		}
	}
	got, err := r.Load(r.ctx, &s, LoadSource{Orders: loadOrdersOf(orders...), Batches: loadBatchesOf(undelivered...), Owed: loadOrdersOf(owed...)})
	require.NoError(t, err)
	require.Equal(t, r.m.load(&s, orders, undelivered, owed), got)
	if got {
		r.sale.Epoch = s.Epoch // new batches are reserved under it
		for _, b := range r.sent {
			r.force(b.Orders)
		}
	}
}

func (r *run) purge(t *rapid.T) {
	got, err := r.PurgeVoids(r.ctx, r.sale.ID, 0)
	if r.ready(t, err) {
		require.Equal(t, r.m.purge(), got)
	}
}

func (r *run) due(t *rapid.T) {
	got, err := r.Due(r.ctx, r.sale.ID, 1_000)
	if !r.ready(t, err) {
		return
	}
	want := []sale.ID{}
	for id, overdue := range r.m.pending {
		if overdue {
			want = append(want, id)
		}
	}
	require.ElementsMatch(t, want, got)
}

// check compares all that is stored, and the invariants on it.
func (r *run) check(t *rapid.T) {
	snapshot, err := r.Snapshot(r.ctx, r.sale.ID)
	require.NoError(t, err)
	require.Equal(t, r.m.loaded, snapshot.Loaded)
	if !r.m.loaded {
		return
	}
	snapshot.Now, snapshot.moves = time.Time{}, 0
	require.Equal(t, Snapshot{
		Loaded: true, Stock: r.m.stock, Held: r.m.held(), Total: r.m.total, Version: r.m.version, Epoch: r.m.epoch,
		Pending: int64(len(r.m.pending)), Batches: int64(len(r.m.batches)), Buyers: int64(len(r.m.buyers)),
	}, snapshot)

	batches := map[sale.ID]BatchRecord{}
	require.NoError(t, r.Batches(r.ctx, r.sale.ID, func(slice []BatchRecord) error {
		for _, b := range slice {
			b.VoidedAt = time.Time{}
			batches[b.ID] = b
		}
		return nil
	}))
	require.Equal(t, r.m.batches, batches)

	var held int64
	for _, user := range modelUsers {
		records, err := r.Lookup(r.ctx, r.sale.ID, user)
		require.NoError(t, err)
		var want []Record
		for i := range r.m.buyers[user] {
			record := r.m.buyers[user][i]
			record.Batch = r.m.standing(&record)
			want = append(want, record)
		}
		require.Equal(t, want, records)
		together, err := r.Records(r.ctx, r.sale.ID, []string{"nobody", user})
		require.NoError(t, err)
		require.Equal(t, want, together[user])

		units, byKey, byOrder := 0, map[string]int{}, map[sale.ID]int{}
		for _, record := range records {
			byOrder[record.OrderID]++
			require.Equal(t, 1, byOrder[record.OrderID], "an order has one record (invariant 6)")
			if record.Returned {
				continue
			}
			units += record.Quantity
			byKey[record.RequestKey]++
			if !r.forced[user] {
				require.Equal(t, 1, byKey[record.RequestKey], "a key has one order (invariant 3)")
			}
		}
		if !r.forced[user] {
			require.LessOrEqual(t, units, r.sale.PerUserLimit, "invariant 8")
		}
		held += int64(units)
	}
	require.Equal(t, snapshot.Total, snapshot.Stock+held, "stock + the units of held records = total (invariant 4a)")

	drift, ok, err := r.Recount(r.ctx, r.sale.ID)
	require.NoError(t, err)
	require.True(t, ok)
	require.Zero(t, drift)
}
