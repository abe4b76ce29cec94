package stock

import (
	"testing"

	"github.com/stretchr/testify/require"
)

var restoreCases = []testCase{
	{"held becomes returned, and the units go back once", func(t *testing.T, f *fixture) {
		b := f.sell(t, "ann", "k", 2)
		f.mustRestore(t, &b.Orders[0], b.ID, true)
		f.mustRestore(t, &b.Orders[0], b.ID, false)
		f.counts(t, 10, 0)
		require.Equal(t, []Record{{OrderID: b.Orders[0].ID, BatchID: b.ID, UserID: "ann", RequestKey: "k", Quantity: 2, Returned: true, Batch: StateAbsent}}, f.lookup(t, "ann"))
	}},
	{"the units are those of the record", func(t *testing.T, f *fixture) {
		b := f.sell(t, "ann", "k", 2)
		o := b.Orders[0]
		o.Quantity = 3
		f.mustRestore(t, &o, b.ID, true)
		f.counts(t, 10, 0)
	}},
	{"absent is written returned, and gives nothing back", func(t *testing.T, f *fixture) {
		o := f.order("ann", "k", 2)
		batch := f.ids.Next(0)
		f.mustRestore(t, &o, batch, false)
		f.mustRestore(t, &o, batch, false)
		f.counts(t, 10, 0)
		require.Equal(t, []Record{{OrderID: o.ID, BatchID: batch, UserID: "ann", RequestKey: "k", Quantity: 2, Returned: true, Batch: StateAbsent}}, f.lookup(t, "ann"))
	}},
	{"other orders of the user stay", func(t *testing.T, f *fixture) {
		first, second, third := f.sell(t, "ann", "k1", 1), f.sell(t, "ann", "k2", 1), f.sell(t, "ann", "k3", 1)
		f.mustRestore(t, &second.Orders[0], second.ID, true)
		f.counts(t, 8, 2)
		records := f.lookup(t, "ann")
		require.Len(t, records, 3)
		require.Equal(t, first.Orders[0].ID, records[0].OrderID)
		require.False(t, records[0].Returned)
		require.True(t, records[1].Returned)
		require.Equal(t, third.Orders[0].ID, records[2].OrderID)
		require.False(t, records[2].Returned)
	}},
}

var lookupCases = []testCase{
	{"a stranger has no records", func(t *testing.T, f *fixture) {
		require.Empty(t, f.lookup(t, "nobody"))
	}},
	{"each record comes with its batch's state", func(t *testing.T, f *fixture) {
		settled := f.sell(t, "ann", "s", 1)
		confirmed := f.win(t, "ann", "c", 1)
		f.mustConfirm(t, confirmed, StateConfirmed)
		const uuid = "0190b3a0-7c1e-7d3a-9d0a-5b6f2f1e8c4d"
		reserved := f.win(t, "ann", uuid, 1)
		require.Equal(t, []Record{
			{OrderID: settled.Orders[0].ID, BatchID: settled.ID, UserID: "ann", RequestKey: "s", Quantity: 1, Batch: StateSettled},
			{OrderID: confirmed.Orders[0].ID, BatchID: confirmed.ID, UserID: "ann", RequestKey: "c", Quantity: 1, Batch: StateConfirmed},
			{OrderID: reserved.Orders[0].ID, BatchID: reserved.ID, UserID: "ann", RequestKey: uuid, Quantity: 1, Batch: StateReserved},
		}, f.lookup(t, "ann"))
	}},
}
