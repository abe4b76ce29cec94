package stock

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"flashgate/internal/sale"
)

var reserveCases = []testCase{
	{"winners form a reserved batch and hold their units", func(t *testing.T, f *fixture) {
		b := f.batch(f.order("ann", "k1", 1), f.order("bob", "", 3))
		require.Equal(t, []Outcome{{Verdict: Reserved}, {Verdict: Reserved}}, f.reserve(t, b))
		snapshot := f.counts(t, 6, 4)
		require.Equal(t, int64(2), snapshot.Buyers)
		require.Equal(t, int64(1), snapshot.Batches)
		require.Equal(t, int64(1), snapshot.Pending)
		require.Equal(t, map[sale.ID]BatchRecord{b.ID: {ID: b.ID, State: StateReserved, Orders: b.Orders}}, f.batches(t))
	}},
	{"the batch holds the winners only", func(t *testing.T, f *fixture) {
		b := f.batch(f.order("ann", "k1", 3), f.order("ann", "k2", 1), f.order("bob", "k", 1))
		out := f.reserve(t, b)
		require.Equal(t, []Outcome{{Verdict: Reserved}, {Verdict: LimitReached}, {Verdict: Reserved}}, out)
		require.Equal(t, []sale.Order{b.Orders[0], b.Orders[2]}, f.batches(t)[b.ID].Orders)
	}},
	{"no winner, no batch", func(t *testing.T, f *fixture) {
		b := f.batch(f.order("ann", "k1", 4))
		require.Equal(t, LimitReached, f.reserve(t, b)[0].Verdict)
		snapshot := f.counts(t, 10, 0)
		require.Zero(t, snapshot.Batches+snapshot.Pending+snapshot.Buyers)
	}},
	{"the last unit goes once, and an order that does not fit leaves it to a smaller one", func(t *testing.T, f *fixture) {
		for i := range 3 {
			f.win(t, fmt.Sprint("u", i), "", 3)
		}
		out := f.reserve(t, f.batch(f.order("ann", "", 2), f.order("bob", "", 1), f.order("cy", "", 1)))
		require.Equal(t, []Outcome{{Verdict: SoldOut}, {Verdict: Reserved}, {Verdict: SoldOut}}, out)
		f.counts(t, 0, 10)
	}},
	{"a retry of a winner is a replay, whatever has become of the sale", func(t *testing.T, f *fixture) {
		f.sale.PerUserLimit, f.terms.PerUserLimit = 10, 10
		b := f.win(t, "ann", "k", 10) // sold out, and at the limit
		want := Outcome{Verdict: Replay, OrderID: b.Orders[0].ID, BatchID: b.ID, Quantity: 10, Batch: StateReserved}
		for name, terms := range map[string]Terms{
			"sold out and limit reached": f.terms,
			"paused":                     {StartsAt: f.sale.StartsAt, EndsAt: f.sale.EndsAt, PerUserLimit: 10, Paused: true},
			"not started":                {StartsAt: time.Now().Add(time.Hour), EndsAt: time.Now().Add(2 * time.Hour), PerUserLimit: 10},
			"ended":                      {StartsAt: f.sale.StartsAt, EndsAt: time.Now().Add(-time.Minute), PerUserLimit: 1},
		} {
			f.terms = terms
			require.Equal(t, []Outcome{want}, f.reserve(t, f.batch(f.order("ann", "k", 10))), name)
		}
		f.counts(t, 0, 10)
	}},
	{"a replay says how far the batch has come", func(t *testing.T, f *fixture) {
		b := f.win(t, "ann", "k", 1)
		retry := func() Outcome { return f.reserve(t, f.batch(f.order("ann", "k", 1)))[0] }
		want := Outcome{Verdict: Replay, OrderID: b.Orders[0].ID, BatchID: b.ID, Quantity: 1, Batch: StateReserved}
		require.Equal(t, want, retry())
		f.mustConfirm(t, b, StateConfirmed)
		want.Batch = StateConfirmed
		require.Equal(t, want, retry())
		_, err := f.Settle(t.Context(), f.sale.ID, []sale.ID{b.ID}, f.noneActive(t))
		require.NoError(t, err)
		want.Batch = StateSettled
		require.Equal(t, want, retry())
		f.mustRestore(t, &b.Orders[0], b.ID, true)
		want.Batch, want.Returned = StateAbsent, true
		require.Equal(t, want, retry())
		f.counts(t, 10, 0)
	}},
	{"replays of one batch say each how its own order stands", func(t *testing.T, f *fixture) {
		one := f.batch(f.order("ann", "k", 1), f.order("bob", "k", 1), f.order("cy", "k", 1))
		f.reserve(t, one)
		f.mustConfirm(t, one, StateConfirmed)
		_, err := f.Settle(t.Context(), f.sale.ID, []sale.ID{one.ID}, f.noneActive(t))
		require.NoError(t, err)
		f.mustRestore(t, &one.Orders[1], one.ID, true)
		two := f.win(t, "dan", "k", 1)
		again := f.batch(f.order("bob", "k", 1), f.order("ann", "k", 1), f.order("dan", "k", 1), f.order("bob", "k", 1), f.order("cy", "k", 1))
		var states []State
		for _, out := range f.reserve(t, again) {
			require.Equal(t, Replay, out.Verdict)
			states = append(states, out.Batch)
		}
		require.Equal(t, []State{StateAbsent, StateSettled, StateReserved, StateAbsent, StateSettled}, states)
		require.Equal(t, StateReserved, f.lookup(t, "dan")[0].Batch)
		f.mustConfirm(t, two, StateConfirmed)
		require.Equal(t, StateConfirmed, f.lookup(t, "dan")[0].Batch)
	}},
	{"a key of another quantity is reused, before anything else", func(t *testing.T, f *fixture) {
		b := f.win(t, "ann", "k", 3)
		f.terms.Paused = true
		out := f.reserve(t, f.batch(f.order("ann", "k", 2)))[0]
		require.Equal(t, Outcome{Verdict: KeyReused, OrderID: b.Orders[0].ID, BatchID: b.ID, Quantity: 3, Batch: StateReserved}, out)
		f.counts(t, 7, 3)
	}},
	{"paused before not started before limit before sold out", func(t *testing.T, f *fixture) {
		past, future := time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
		for _, c := range []struct {
			want     Verdict
			terms    Terms
			quantity int
		}{
			{Paused, Terms{StartsAt: future, EndsAt: future.Add(1), Paused: true, PerUserLimit: 1}, 11},
			{NotStarted, Terms{StartsAt: future, EndsAt: future.Add(1), PerUserLimit: 1}, 11},
			{Ended, Terms{StartsAt: past.Add(-1), EndsAt: past, PerUserLimit: 1}, 11},
			{LimitReached, Terms{StartsAt: past, EndsAt: future, PerUserLimit: 10}, 11},
			{SoldOut, Terms{StartsAt: past, EndsAt: future, PerUserLimit: 11}, 11},
		} {
			f.terms = c.terms
			require.Equal(t, c.want.String(), f.reserve(t, f.batch(f.order("ann", "k", c.quantity)))[0].Verdict.String())
		}
		f.counts(t, 10, 0)
	}},
	{"a sale starts at starts_at and ends at ends_at, by Redis time", func(t *testing.T, f *fixture) {
		now := f.counts(t, 10, 0).Now
		f.terms.StartsAt, f.terms.EndsAt = now, now.Add(time.Hour)
		require.Equal(t, Reserved, f.reserve(t, f.batch(f.order("ann", "k", 1)))[0].Verdict)
		f.terms.StartsAt, f.terms.EndsAt = now.Add(-time.Hour), now
		require.Equal(t, Ended, f.reserve(t, f.batch(f.order("bob", "k", 1)))[0].Verdict)
	}},
	{"within one batch the second order of a key replays the first", func(t *testing.T, f *fixture) {
		b := f.batch(f.order("ann", "k", 2), f.order("ann", "k", 2), f.order("ann", "k", 1), f.order("ann", "other", 1))
		met := Outcome{Verdict: Replay, OrderID: b.Orders[0].ID, BatchID: b.ID, Quantity: 2, Batch: StateReserved}
		reused := met
		reused.Verdict = KeyReused
		require.Equal(t, []Outcome{{Verdict: Reserved}, met, reused, {Verdict: Reserved}}, f.reserve(t, b))
		f.counts(t, 7, 3)
	}},
	{"an order that was there before is of its own batch, whatever else the user wins", func(t *testing.T, f *fixture) {
		old := f.sell(t, "ann", "old", 1)
		b := f.batch(f.order("ann", "new", 1), f.order("ann", "old", 1), f.order("bob", "k", 1))
		met := Outcome{Verdict: Replay, OrderID: old.Orders[0].ID, BatchID: old.ID, Quantity: 1, Batch: StateSettled}
		require.Equal(t, []Outcome{{Verdict: Reserved}, met, {Verdict: Reserved}}, f.reserve(t, b))
		require.Len(t, f.lookup(t, "ann"), 2)
		held := f.batches(t)[b.ID].Orders
		require.Equal(t, []sale.ID{b.Orders[0].ID, b.Orders[2].ID}, []sale.ID{held[0].ID, held[1].ID})
		f.counts(t, 7, 3)
	}},
	{"orders without a key are one purchase a user", func(t *testing.T, f *fixture) {
		f.win(t, "ann", "", 1)
		require.Equal(t, Replay, f.reserve(t, f.batch(f.order("ann", "", 1)))[0].Verdict)
		require.Equal(t, Reserved, f.reserve(t, f.batch(f.order("bob", "", 1)))[0].Verdict)
	}},
	{"the limit counts what the user holds, not what they returned", func(t *testing.T, f *fixture) {
		b := f.win(t, "ann", "k1", 2)
		f.win(t, "ann", "k2", 1)
		require.Equal(t, LimitReached, f.reserve(t, f.batch(f.order("ann", "k3", 1)))[0].Verdict)
		f.mustRestore(t, &b.Orders[0], b.ID, true)
		require.Equal(t, Reserved, f.reserve(t, f.batch(f.order("ann", "k3", 2)))[0].Verdict)
		f.counts(t, 7, 3)
	}},
	{"a replay prefers the held order, then the latest returned", func(t *testing.T, f *fixture) {
		first, second, third := f.order("ann", "k", 1), f.order("ann", "k", 1), f.order("ann", "k", 1)
		retry := func() Outcome { return f.reserve(t, f.batch(f.order("ann", "k", 1)))[0] }
		batch := f.ids.Next(0)
		f.mustRestore(t, &second, batch, false)
		f.mustRestore(t, &first, batch, false)
		require.Equal(t, Outcome{Verdict: Replay, OrderID: second.ID, BatchID: batch, Quantity: 1, Returned: true}, retry())
		adopted := f.batch(first, third)
		adopted.Epoch--
		_, err := f.Adopt(t.Context(), &sale.Batch{ID: adopted.ID, SaleID: f.sale.ID, Epoch: adopted.Epoch, Orders: []sale.Order{third}})
		require.NoError(t, err)
		require.Equal(t, Outcome{Verdict: Replay, OrderID: third.ID, BatchID: adopted.ID, Quantity: 1, Batch: StateConfirmed}, retry())
		later := f.order("ann", "k", 1)
		f.mustRestore(t, &later, batch, false)
		require.Equal(t, third.ID, retry().OrderID)
	}},
	{"a known batch id changes nothing", func(t *testing.T, f *fixture) {
		reserved, confirmed, void, settled := f.win(t, "r", "", 1), f.win(t, "c", "", 1), f.win(t, "v", "", 1), f.sell(t, "s", "", 1)
		f.mustConfirm(t, confirmed, StateConfirmed)
		f.mustRelease(t, void, StateVoid)
		for _, b := range []*sale.Batch{reserved, confirmed, void, settled} {
			b.Orders = append(b.Orders, f.order("new", "", 1))
			_, err := f.Reserve(t.Context(), b, f.terms, time.Hour, make([]Outcome, len(b.Orders)))
			require.ErrorIs(t, err, ErrBatchKnown)
		}
		f.counts(t, 7, 3)
		require.Empty(t, f.lookup(t, "new"))
	}},
	{"stock below zero is sold out", func(t *testing.T, f *fixture) {
		b := f.batch(f.order("ann", "", 10), f.order("bob", "", 1))
		b.Epoch--
		state, err := f.Adopt(t.Context(), b)
		require.NoError(t, err)
		require.Equal(t, StateConfirmed, state)
		f.counts(t, -1, 11)
		require.Equal(t, SoldOut, f.reserve(t, f.batch(f.order("cy", "", 1)))[0].Verdict)
	}},
	{"users and keys are bytes, up to 64", func(t *testing.T, f *fixture) {
		user, requestKey := strings.Repeat("\x00\xff{}:é\n", 8), strings.Repeat("\xfe", 64)
		require.Len(t, user, 64)
		b := f.win(t, user, requestKey, 1)
		require.Equal(t, []Record{{OrderID: b.Orders[0].ID, BatchID: b.ID, UserID: user, RequestKey: requestKey, Quantity: 1, Batch: StateReserved}}, f.lookup(t, user))
		require.Equal(t, Replay, f.reserve(t, f.batch(f.order(user, requestKey, 1)))[0].Verdict)
		require.Equal(t, Reserved, f.reserve(t, f.batch(f.order(user, requestKey[1:], 1)))[0].Verdict)
	}},
	{"what cannot be packed is not sent", func(t *testing.T, f *fixture) {
		for _, o := range []sale.Order{
			f.order("", "", 1), f.order(strings.Repeat("u", 65), "", 1), f.order("u", strings.Repeat("k", 65), 1),
			f.order("u", "", 0), f.order("u", "", sale.MaxQuantity+1),
		} {
			_, err := f.Reserve(t.Context(), f.batch(o), f.terms, time.Hour, make([]Outcome, 1))
			require.ErrorIs(t, err, ErrNotRun)
		}
		f.counts(t, 10, 0)
	}},
	{"a batch of 2,000 orders", func(t *testing.T, f *fixture) {
		b := f.batch()
		for i := range 2_000 {
			b.Orders = append(b.Orders, f.order(fmt.Sprint("u", i), "", 1))
		}
		won := 0
		for _, out := range f.reserve(t, b) {
			if out.Verdict == Reserved {
				won++
			} else {
				require.Equal(t, SoldOut, out.Verdict)
			}
		}
		require.Equal(t, 10, won)
		_, err := f.Adjust(t.Context(), f.sale.ID, 3_000, 2)
		require.NoError(t, err)
		b.ID = f.ids.Next(0)
		require.Equal(t, Reserved, f.reserve(t, b)[1_999].Verdict)
		f.counts(t, 1_000, 2_000)
		f.mustRelease(t, b, StateVoid)
		f.counts(t, 2_990, 10)
	}},
}
