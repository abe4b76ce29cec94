package stock

import (
	"context"
	"fmt"
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"flashgate/internal/sale"
)

// spoil changes the sums of the sale behind the scripts' backs.
func (f *fixture) spoil(t *testing.T, stockDelta, heldDelta int64) {
	t.Helper()
	keys := keysOf(f.sale.ID, wholeSale, keyStock, keyMeta)
	require.NoError(t, f.client.Do(t.Context(), f.client.B().Incrby().Key(keys[0]).Increment(stockDelta).Build()).Error())
	require.NoError(t, f.client.Do(t.Context(), f.client.B().Hincrby().Key(keys[1]).Field("held").Increment(heldDelta).Build()).Error())
}

var upkeepCases = []testCase{
	{"adjust raises and cuts once a version", func(t *testing.T, f *fixture) {
		f.win(t, "ann", "k", 3)
		for range 2 {
			done, err := f.Adjust(t.Context(), f.sale.ID, 15, 2)
			require.NoError(t, err)
			require.True(t, done)
			f.counts(t, 12, 3)
		}
		done, err := f.Adjust(t.Context(), f.sale.ID, 3, 4)
		require.NoError(t, err)
		require.True(t, done)
		f.counts(t, 0, 3)
		for _, version := range []int64{3, 4} {
			done, err = f.Adjust(t.Context(), f.sale.ID, 99, version)
			require.NoError(t, err)
			require.True(t, done, "at or past it")
			require.Equal(t, int64(4), f.counts(t, 0, 3).Version)
		}
	}},
	{"adjust refuses a cut that the free stock does not cover", func(t *testing.T, f *fixture) {
		f.win(t, "ann", "k", 3)
		done, err := f.Adjust(t.Context(), f.sale.ID, 2, 2)
		require.NoError(t, err)
		require.False(t, done)
		require.Equal(t, int64(1), f.counts(t, 7, 3).Version)
	}},
	{"adjust raises a stock that is below zero, and does not cut it", func(t *testing.T, f *fixture) {
		b := f.batch(f.order("ann", "", 12))
		b.Epoch--
		_, err := f.Adopt(t.Context(), b)
		require.NoError(t, err)
		done, err := f.Adjust(t.Context(), f.sale.ID, 9, 2)
		require.NoError(t, err)
		require.False(t, done)
		done, err = f.Adjust(t.Context(), f.sale.ID, 11, 2)
		require.NoError(t, err)
		require.True(t, done)
		f.counts(t, -1, 12)
	}},
	{"stocks reads many sales, loaded or not", func(t *testing.T, f *fixture) {
		f.win(t, "ann", "k", 3)
		other := loadedFixture(t, f.Store, 4)
		ids := []string{f.sale.ID, newSaleID(t), other.sale.ID}
		units, ok := make([]int64, 3), make([]bool, 3)
		require.NoError(t, f.Stocks(t.Context(), ids, units, ok))
		require.Equal(t, []int64{7, 0, 4}, units)
		require.Equal(t, []bool{true, false, true}, ok)
	}},
	{"due lists what is past its deadline, the oldest first", func(t *testing.T, f *fixture) {
		f.win(t, "later", "k", 1)
		var want []sale.ID
		for i, hold := range []time.Duration{-3 * time.Minute, -2 * time.Minute, -time.Minute} {
			b := f.batch(f.order(fmt.Sprint("u", i), "", 1))
			_, err := f.Reserve(t.Context(), b, f.terms, hold, make([]Outcome, 1))
			require.NoError(t, err)
			want = append(want, b.ID)
		}
		due, err := f.Due(t.Context(), f.sale.ID, 100)
		require.NoError(t, err)
		require.Equal(t, want, due)
		due, err = f.Due(t.Context(), f.sale.ID, 2)
		require.NoError(t, err)
		require.Equal(t, want[:2], due)
	}},
	{"buyers lists every record", func(t *testing.T, f *fixture) {
		b := f.batch(f.order("ann", "k1", 1), f.order("ann", "k2", 1), f.order("bob", "", 2))
		f.reserve(t, b)
		f.mustRestore(t, &b.Orders[1], b.ID, true)
		var records []Record
		require.NoError(t, f.Buyers(t.Context(), f.sale.ID, func(slice []Record) error {
			records = append(records, slice...)
			return nil
		}))
		require.ElementsMatch(t, []Record{
			{OrderID: b.Orders[0].ID, BatchID: b.ID, UserID: "ann", RequestKey: "k1", Quantity: 1},
			{OrderID: b.Orders[1].ID, BatchID: b.ID, UserID: "ann", RequestKey: "k2", Quantity: 1, Returned: true},
			{OrderID: b.Orders[2].ID, BatchID: b.ID, UserID: "bob", Quantity: 2},
		}, records)
	}},
	{"records of many users are read at once", func(t *testing.T, f *fixture) {
		b := f.batch(f.order("ann", "k1", 1), f.order("ann", "k2", 1), f.order("bob", "", 2))
		f.reserve(t, b)
		users := []string{"ann", "nobody", "bob"}
		for i := range 2 * maxUsersPerRead {
			users = append(users, fmt.Sprint("stranger", i))
		}
		records, err := f.RecordsOf(t.Context(), f.sale.ID, users)
		require.NoError(t, err)
		require.Equal(t, map[string][]Record{
			"ann": {
				{OrderID: b.Orders[0].ID, BatchID: b.ID, UserID: "ann", RequestKey: "k1", Quantity: 1},
				{OrderID: b.Orders[1].ID, BatchID: b.ID, UserID: "ann", RequestKey: "k2", Quantity: 1},
			},
			"bob": {{OrderID: b.Orders[2].ID, BatchID: b.ID, UserID: "bob", Quantity: 2}},
		}, records)
	}},
	{"purge removes old voids only", func(t *testing.T, f *fixture) {
		reserved, void := f.win(t, "ann", "", 1), f.win(t, "bob", "", 1)
		f.mustRelease(t, void, StateVoid)
		purged, err := f.PurgeVoids(t.Context(), f.sale.ID, time.Hour)
		require.NoError(t, err)
		require.Zero(t, purged)
		purged, err = f.PurgeVoids(t.Context(), f.sale.ID, 0)
		require.NoError(t, err)
		require.Equal(t, 1, purged)
		f.mustState(t, void.ID, StateAbsent)
		// Whatever it is asked for: the caller read the state before.
		n, err := f.runCode(t.Context(), upkeepTimeout, purgeScript, f.sale.ID, "0", packID(reserved.ID))
		require.NoError(t, err)
		require.Zero(t, n)
		f.mustState(t, reserved.ID, StateReserved)
	}},
	{"recount finds nothing wrong where nothing is", func(t *testing.T, f *fixture) {
		b := f.batch(f.order("ann", "k1", 2), f.order("ann", "k2", 1), f.order("bob", "", 2))
		f.reserve(t, b)
		f.mustRestore(t, &b.Orders[1], b.ID, true)
		for _, maxBuyers := range []int64{recountMax, 0} {
			drift, ok, err := f.recount(t.Context(), f.sale.ID, recountRepair, maxBuyers)
			require.NoError(t, err)
			require.True(t, ok)
			require.Zero(t, drift)
		}
		f.counts(t, 6, 4)
	}},
	{"recount finds and repairs drift, in one script and in slices", func(t *testing.T, f *fixture) {
		f.win(t, "ann", "k", 3)
		for _, maxBuyers := range []int64{recountMax, 0} {
			for _, c := range []struct{ stock, held, drift int64 }{{-2, 0, 2}, {5, 0, -5}, {0, 2, -2}, {-1, 1, 1}} {
				f.spoil(t, c.stock, c.held)
				for _, mode := range []string{recountOnly, recountRepair} {
					drift, ok, err := f.recount(t.Context(), f.sale.ID, mode, maxBuyers)
					require.NoError(t, err)
					require.True(t, ok)
					require.Equal(t, c.drift, drift)
				}
				f.counts(t, 7, 3)
			}
		}
	}},
	{"recount in slices does not count when a record moved meanwhile", func(t *testing.T, f *fixture) {
		b := f.win(t, "ann", "k", 3)
		before, err := f.Snapshot(t.Context(), f.sale.ID)
		require.NoError(t, err)
		f.mustRelease(t, b, StateVoid)
		f.win(t, "bob", "k", 3) // the sums are what they were
		_, reply, err := f.runReady(t.Context(), upkeepTimeout, recountScript, f.sale.ID, "1", "0", "9", formatInt(before.Buyers), formatInt(before.moves))
		require.NoError(t, err)
		require.Empty(t, reply)
		f.counts(t, 7, 3)
	}},
	{"recount in slices does not count what a load has replaced", func(t *testing.T, f *fixture) {
		f.win(t, "ann", "k", 3)
		before, err := f.Snapshot(t.Context(), f.sale.ID)
		require.NoError(t, err)
		f.forget(t)
		b := f.batch(f.order("bob", "k", 1))
		f.sale.Epoch++
		f.mustLoad(t, LoadSource{Orders: func(_ context.Context, each func([]LoadedOrder) error) error {
			return each([]LoadedOrder{{Order: b.Orders[0], BatchID: b.ID}})
		}})
		f.mustRestore(t, &b.Orders[0], b.ID, true) // as many changes as before the count
		_, reply, err := f.runReady(t.Context(), upkeepTimeout, recountScript, f.sale.ID, "1", "0", "3", formatInt(before.Buyers), formatInt(before.moves))
		require.NoError(t, err)
		require.Empty(t, reply)
		f.counts(t, 10, 0)
	}},
	{"recount in slices does not count a field twice", func(t *testing.T, f *fixture) {
		f.win(t, "ann", "k", 3)
		before, err := f.Snapshot(t.Context(), f.sale.ID)
		require.NoError(t, err)
		_, reply, err := f.runReady(t.Context(), upkeepTimeout, recountScript, f.sale.ID, "1", "0", "6", "2", formatInt(before.moves))
		require.NoError(t, err)
		require.Empty(t, reply)
		f.counts(t, 7, 3)
	}},
	{"a busy sale is recounted whole, and where it is too large only lowered", func(t *testing.T, f *fixture) {
		f.win(t, "ann", "k", 3)
		for _, c := range []struct {
			drift, whole int64
			left         int64
			ok           bool
		}{{4, 1, 7, true}, {-4, 1, 7, true}, {4, 0, 7, false}, {-4, 0, 3, false}} {
			f.spoil(t, c.drift, 0)
			// What a pass in slices answers of a busy sale.
			drift, ok, err := f.recountScript(t.Context(), f.sale.ID, recountRepair, 0, "3", 1, 0)
			require.NoError(t, err)
			require.False(t, ok)
			require.Zero(t, drift)
			if drift, ok, err = f.repairBusy(t.Context(), f.sale.ID, c.whole); !ok {
				require.Equal(t, -c.drift, drift)
			}
			require.NoError(t, err)
			require.Equal(t, c.ok, ok)
			snapshot, err := f.Snapshot(t.Context(), f.sale.ID)
			require.NoError(t, err)
			require.Equal(t, c.left, snapshot.Stock)
			require.Equal(t, int64(3), snapshot.Held)
		}
	}},
	{"unsettled batches by id, and how long they are overdue", func(t *testing.T, f *fixture) {
		reserved, void := f.win(t, "ann", "k", 1), f.win(t, "bob", "k", 1)
		f.mustRelease(t, void, StateVoid)
		found, err := f.BatchesByID(t.Context(), f.sale.ID, []sale.ID{reserved.ID, void.ID, 99})
		require.NoError(t, err)
		require.Len(t, found, 2)
		require.Equal(t, StateReserved, found[reserved.ID].State)
		require.Equal(t, reserved.Orders, found[reserved.ID].Orders)
		require.Equal(t, StateVoid, found[void.ID].State)
		overdue, err := f.Overdue(t.Context(), f.sale.ID, reserved.ID)
		require.NoError(t, err)
		require.InDelta(t, -time.Hour.Seconds(), overdue.Seconds(), time.Minute.Seconds())
		overdue, err = f.Overdue(t.Context(), f.sale.ID, void.ID)
		require.NoError(t, err)
		require.EqualValues(t, math.MaxInt64, overdue)
	}},
	{"all keys expire together", func(t *testing.T, f *fixture) {
		f.win(t, "ann", "k", 3)
		require.NoError(t, f.ExpireAt(t.Context(), f.sale.ID, time.Now().Add(time.Hour)))
		for _, k := range keysOf(f.sale.ID, wholeSale, allKeys...) {
			left, err := f.client.Do(t.Context(), f.client.B().Pttl().Key(k).Build()).AsInt64()
			require.NoError(t, err)
			require.InDelta(t, time.Hour.Milliseconds(), left, float64(time.Minute.Milliseconds()), k)
		}
		require.NoError(t, f.ExpireAt(t.Context(), f.sale.ID, time.Now().Add(-time.Second)))
		snapshot, err := f.Snapshot(t.Context(), f.sale.ID)
		require.NoError(t, err)
		require.False(t, snapshot.Loaded)
	}},
}
