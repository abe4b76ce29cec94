package stock

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"flashgate/internal/sale"
)

var confirmCases = []testCase{
	{"reserved becomes confirmed and leaves pending", func(t *testing.T, f *fixture) {
		b := f.win(t, "ann", "k", 2)
		f.mustConfirm(t, b, StateConfirmed)
		require.Equal(t, BatchRecord{ID: b.ID, State: StateConfirmed, Orders: b.Orders}, f.batches(t)[b.ID])
		require.Zero(t, f.counts(t, 8, 2).Pending)
		f.mustConfirm(t, b, StateConfirmed)
		f.counts(t, 8, 2)
	}},
	{"absent while a held record names it is settled", func(t *testing.T, f *fixture) {
		b := f.sell(t, "ann", "k", 2)
		f.mustConfirm(t, b, StateSettled)
		f.mustState(t, b.ID, StateAbsent)
	}},
	{"absent while a returned record names it is settled", func(t *testing.T, f *fixture) {
		b := f.sell(t, "ann", "k", 2)
		f.mustRestore(t, &b.Orders[0], b.ID, true)
		f.mustConfirm(t, b, StateSettled)
	}},
	{"a record of the user that names another batch does not count", func(t *testing.T, f *fixture) {
		f.sell(t, "ann", "k", 1)
		f.mustConfirm(t, f.batch(f.order("ann", "other", 1)), StateVoid)
	}},
	{"void is gone", func(t *testing.T, f *fixture) {
		b := f.win(t, "ann", "k", 2)
		f.mustRelease(t, b, StateVoid)
		f.mustConfirm(t, b, StateVoid)
		f.counts(t, 10, 0)
	}},
	{"absent, unnamed and of this epoch writes void", func(t *testing.T, f *fixture) {
		b := f.batch(f.order("ann", "k", 1))
		f.mustConfirm(t, b, StateVoid)
		f.mustState(t, b.ID, StateVoid)
		_, err := f.Reserve(t.Context(), b, f.terms, time.Hour, make([]Outcome, 1))
		require.ErrorIs(t, err, ErrBatchKnown, "a reserve that arrives late must find it")
		f.counts(t, 10, 0)
	}},
	{"absent, unnamed and of another epoch is unknown, and writes nothing", func(t *testing.T, f *fixture) {
		b := f.batch(f.order("ann", "k", 1))
		for _, epoch := range []int64{f.sale.Epoch - 1, f.sale.Epoch + 1} {
			b.Epoch = epoch
			f.mustConfirm(t, b, StateOtherEpoch)
		}
		f.mustState(t, b.ID, StateAbsent)
	}},
	{"of another epoch but named is settled", func(t *testing.T, f *fixture) {
		b := f.sell(t, "ann", "k", 1)
		b.Epoch--
		f.mustConfirm(t, b, StateSettled)
	}},
}

var releaseCases = []testCase{
	{"reserved becomes void, its units go back and its records disappear", func(t *testing.T, f *fixture) {
		kept := f.win(t, "ann", "before", 1)
		b := f.batch(f.order("ann", "k", 2), f.order("bob", "", 3))
		f.reserve(t, b)
		f.counts(t, 4, 6)
		f.mustRelease(t, b, StateVoid)
		snapshot := f.counts(t, 9, 1)
		require.Equal(t, int64(1), snapshot.Pending)
		require.Equal(t, int64(1), snapshot.Buyers)
		require.Len(t, f.lookup(t, "ann"), 1)
		require.Equal(t, kept.Orders[0].ID, f.lookup(t, "ann")[0].OrderID)
		void := f.batches(t)[b.ID]
		require.Equal(t, StateVoid, void.State)
		require.WithinDuration(t, snapshot.Now, void.VoidedAt, time.Minute)
	}},
	{"units go back once", func(t *testing.T, f *fixture) {
		b := f.win(t, "ann", "k", 2)
		f.mustRelease(t, b, StateVoid)
		f.mustRelease(t, b, StateVoid)
		f.counts(t, 10, 0)
	}},
	{"the key may buy again, under a new order id", func(t *testing.T, f *fixture) {
		f.mustRelease(t, f.win(t, "ann", "k", 2), StateVoid)
		f.win(t, "ann", "k", 1)
		f.counts(t, 9, 1)
	}},
	{"two orders of one user in one batch both go", func(t *testing.T, f *fixture) {
		b := f.batch(f.order("ann", "k1", 1), f.order("ann", "k2", 2))
		f.reserve(t, b)
		f.mustRelease(t, b, StateVoid)
		require.Empty(t, f.lookup(t, "ann"))
		f.counts(t, 10, 0)
	}},
	{"a record returned before stays, and gives nothing more", func(t *testing.T, f *fixture) {
		b := f.batch(f.order("ann", "k", 2), f.order("bob", "k", 1))
		f.reserve(t, b)
		f.mustRestore(t, &b.Orders[0], b.ID, true)
		f.mustRelease(t, b, StateVoid)
		f.counts(t, 10, 0)
		require.Equal(t, []Record{{OrderID: b.Orders[0].ID, BatchID: b.ID, UserID: "ann", RequestKey: "k", Quantity: 2, Returned: true, Batch: StateVoid}}, f.lookup(t, "ann"))
	}},
	{"of a batch whose orders were all returned nothing goes back", func(t *testing.T, f *fixture) {
		b := f.win(t, "ann", "k", 2)
		f.mustRestore(t, &b.Orders[0], b.ID, true)
		f.mustRelease(t, b, StateVoid)
		f.counts(t, 10, 0)
	}},
	{"confirmed and settled stay", func(t *testing.T, f *fixture) {
		b := f.win(t, "ann", "k", 2)
		f.mustConfirm(t, b, StateConfirmed)
		f.mustRelease(t, b, StateConfirmed)
		settled := f.sell(t, "bob", "k", 1)
		f.mustRelease(t, settled, StateSettled)
		f.mustState(t, settled.ID, StateAbsent)
		f.counts(t, 7, 3)
	}},
	{"absent and unnamed writes void, of this epoch or when none is given", func(t *testing.T, f *fixture) {
		for _, epoch := range []int64{0, f.sale.Epoch} {
			b := f.batch(f.order("ann", "k", 1))
			b.Epoch = epoch
			f.mustRelease(t, b, StateVoid)
			f.mustState(t, b.ID, StateVoid)
		}
	}},
	{"absent and unnamed of another epoch writes nothing", func(t *testing.T, f *fixture) {
		b := f.batch(f.order("ann", "k", 1))
		b.Epoch--
		f.mustRelease(t, b, StateOtherEpoch)
		f.mustState(t, b.ID, StateAbsent)
	}},
	{"without orders an absent batch is left alone, and leaves pending", func(t *testing.T, f *fixture) {
		b := f.batch(f.order("ann", "k", 1))
		state, err := f.Release(t.Context(), f.sale.ID, b.ID, 0, nil)
		require.NoError(t, err)
		require.Equal(t, StateAbsent, state)
		f.mustState(t, b.ID, StateAbsent)

		b = f.win(t, "ann", "k", 1)
		batchesKey := keysOf(f.sale.ID, wholeSale, keyBatches)[0]
		require.NoError(t, f.client.Do(t.Context(), f.client.B().Hdel().Key(batchesKey).Field(packID(b.ID)).Build()).Error())
		state, err = f.Release(t.Context(), f.sale.ID, b.ID, 0, nil)
		require.NoError(t, err)
		require.Equal(t, StateAbsent, state)
		require.Zero(t, f.counts(t, 9, 1).Pending)
	}},
	{"without orders a reserved batch is released", func(t *testing.T, f *fixture) {
		b := f.win(t, "ann", "k", 1)
		state, err := f.Release(t.Context(), f.sale.ID, b.ID, 0, nil)
		require.NoError(t, err)
		require.Equal(t, StateVoid, state)
		f.counts(t, 10, 0)
	}},
}

var adoptCases = []testCase{
	{"a batch that a rebuilt Redis does not know is confirmed, and its orders hold", func(t *testing.T, f *fixture) {
		b := f.batch(f.order("ann", "k", 2), f.order("bob", "k", 1))
		b.Epoch--
		for range 2 {
			state, err := f.Adopt(t.Context(), b)
			require.NoError(t, err)
			require.Equal(t, StateConfirmed, state)
			require.Equal(t, BatchRecord{ID: b.ID, State: StateConfirmed, Orders: b.Orders}, f.batches(t)[b.ID])
			f.counts(t, 7, 3)
		}
	}},
	{"one that is named is left as it is", func(t *testing.T, f *fixture) {
		b := f.sell(t, "ann", "k", 2)
		b.Epoch--
		state, err := f.Adopt(t.Context(), b)
		require.NoError(t, err)
		require.Equal(t, StateSettled, state)
		f.counts(t, 8, 2)
		f.mustState(t, b.ID, StateAbsent)
	}},
	{"void stays void", func(t *testing.T, f *fixture) {
		b := f.win(t, "ann", "k", 2)
		f.mustRelease(t, b, StateVoid)
		b.Epoch--
		state, err := f.Adopt(t.Context(), b)
		require.NoError(t, err)
		require.Equal(t, StateVoid, state)
		f.counts(t, 10, 0)
	}},
	{"of this epoch it is voided: Redis forgot nothing", func(t *testing.T, f *fixture) {
		b := f.batch(f.order("ann", "k", 2))
		state, err := f.Adopt(t.Context(), b)
		require.NoError(t, err)
		require.Equal(t, StateVoid, state)
		f.counts(t, 10, 0)
	}},
}

var settleCases = []testCase{
	{"confirmed and reserved are removed without asking the ledger", func(t *testing.T, f *fixture) {
		confirmed, reserved := f.win(t, "ann", "k", 2), f.win(t, "bob", "k", 1)
		f.mustConfirm(t, confirmed, StateConfirmed)
		ids := []sale.ID{confirmed.ID, reserved.ID}
		settled, err := f.Settle(t.Context(), f.sale.ID, ids, f.noneActive(t))
		require.NoError(t, err)
		require.ElementsMatch(t, ids, settled)
		snapshot := f.counts(t, 7, 3)
		require.Zero(t, snapshot.Batches+snapshot.Pending)
		require.Equal(t, StateSettled, f.lookup(t, "bob")[0].Batch)
	}},
	{"absent with its records there changes nothing", func(t *testing.T, f *fixture) {
		b := f.sell(t, "ann", "k", 2)
		settled, err := f.Settle(t.Context(), f.sale.ID, []sale.ID{b.ID}, active(b))
		require.NoError(t, err)
		require.Equal(t, []sale.ID{b.ID}, settled)
		f.counts(t, 8, 2)
	}},
	{"void is removed and its active orders are adopted", func(t *testing.T, f *fixture) {
		b := f.batch(f.order("ann", "k", 2), f.order("bob", "k", 1))
		f.reserve(t, b)
		f.mustRelease(t, b, StateVoid)
		settled, err := f.Settle(t.Context(), f.sale.ID, []sale.ID{b.ID}, active(b))
		require.NoError(t, err)
		require.Equal(t, []sale.ID{b.ID}, settled)
		f.counts(t, 7, 3)
		f.mustState(t, b.ID, StateAbsent)
		require.Equal(t, StateSettled, f.lookup(t, "bob")[0].Batch)
	}},
	{"void whose orders are all cancelled is removed, and nothing is adopted", func(t *testing.T, f *fixture) {
		b := f.win(t, "ann", "k", 2)
		f.mustRelease(t, b, StateVoid)
		settled, err := f.Settle(t.Context(), f.sale.ID, []sale.ID{b.ID}, active())
		require.NoError(t, err)
		require.Equal(t, []sale.ID{b.ID}, settled)
		f.counts(t, 10, 0)
		f.mustState(t, b.ID, StateAbsent)
	}},
	{"orders that Redis forgot are adopted, below zero if need be", func(t *testing.T, f *fixture) {
		b := f.batch(f.order("ann", "k", 9), f.order("bob", "k", 3))
		for range 2 {
			settled, err := f.Settle(t.Context(), f.sale.ID, []sale.ID{b.ID}, active(b))
			require.NoError(t, err)
			require.Equal(t, []sale.ID{b.ID}, settled)
			f.counts(t, -2, 12)
		}
	}},
	{"an order restored before its adoption takes nothing", func(t *testing.T, f *fixture) {
		b := f.batch(f.order("ann", "k", 2), f.order("bob", "k", 1))
		f.mustRestore(t, &b.Orders[0], b.ID, false)
		_, err := f.Settle(t.Context(), f.sale.ID, []sale.ID{b.ID}, active(b))
		require.NoError(t, err)
		f.counts(t, 9, 1)
	}},
	{"many at once, and the ledger is asked for those that need it", func(t *testing.T, f *fixture) {
		_, err := f.Adjust(t.Context(), f.sale.ID, 1_000, 2)
		require.NoError(t, err)
		var ids, forgotten []sale.ID
		var lost []*sale.Batch
		for i := range 300 {
			b := f.batch(f.order(fmt.Sprint("u", i), "", 1))
			if i%3 == 0 {
				lost, forgotten = append(lost, b), append(forgotten, b.ID)
			} else {
				f.reserve(t, b)
			}
			ids = append(ids, b.ID)
		}
		var asked []sale.ID
		settled, err := f.Settle(t.Context(), f.sale.ID, ids, func(ctx context.Context, ids []sale.ID) (map[sale.ID][]sale.Order, error) {
			asked = append(asked, ids...)
			return active(lost...)(ctx, ids)
		})
		require.NoError(t, err)
		require.ElementsMatch(t, ids, settled)
		require.Equal(t, forgotten, asked)
		require.Zero(t, f.counts(t, 700, 300).Batches)
	}},
	{"when the ledger fails, what was settled is still said", func(t *testing.T, f *fixture) {
		b, lost := f.win(t, "ann", "k", 1), f.batch(f.order("bob", "k", 1))
		away := errors.New("away")
		settled, err := f.Settle(t.Context(), f.sale.ID, []sale.ID{lost.ID, b.ID}, func(context.Context, []sale.ID) (map[sale.ID][]sale.Order, error) {
			return nil, away
		})
		require.ErrorIs(t, err, away)
		require.Equal(t, []sale.ID{b.ID}, settled)
		f.counts(t, 9, 1)
	}},
}
