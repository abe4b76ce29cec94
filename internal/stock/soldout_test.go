package stock

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"flashgate/internal/sale"
)

// soldOut takes a lease, which must be given.
func (f *fixture) soldOut(t *testing.T) Lease {
	t.Helper()
	l, err := f.SoldOut(t.Context(), f.sale.ID, MaxLease, 100)
	require.NoError(t, err)
	require.Positive(t, l.Left)
	return l
}

// lasts makes the lease one that lapses d from now by Redis time, and was given by a
// process ("" = the one that there is): a slow test must not outlast it.
func (f *fixture) lasts(t *testing.T, d time.Duration, process string) {
	t.Helper()
	here, _, err := f.Server(t.Context(), f.sale.ID, "")
	require.NoError(t, err)
	if process == "" {
		process = here
	}
	now, err := f.Snapshot(t.Context(), f.sale.ID)
	require.NoError(t, err)
	closed := fmt.Sprintf("%d %d %s", now.Now.Add(d).UnixMilli(), max(d, time.Millisecond).Milliseconds(), process)
	meta := keysOf(f.sale.ID, wholeSale, keyMeta)[0]
	require.NoError(t, f.client.Do(t.Context(), f.client.B().Hset().Key(meta).FieldValue().FieldValue("closed", closed).Build()).Error())
}

// metaField is a field of meta, or "".
func (f *fixture) metaField(t *testing.T, name string) string {
	t.Helper()
	meta := keysOf(f.sale.ID, wholeSale, keyMeta)[0]
	all, err := f.client.Do(t.Context(), f.client.B().Hgetall().Key(meta).Build()).AsStrMap()
	require.NoError(t, err)
	return all[name]
}

// try reserves one order, and says how it went.
func (f *fixture) try(t *testing.T, user, requestKey string, quantity int) Verdict {
	t.Helper()
	return f.reserve(t, f.batch(f.order(user, requestKey, quantity)))[0].Verdict
}

// emptied has all ten units held, the last one by fay.
func (f *fixture) emptied(t *testing.T) *sale.Batch {
	t.Helper()
	for _, user := range []string{"ann", "bob", "cy"} {
		f.sell(t, user, "k", 3)
	}
	return f.win(t, "fay", "k", 1)
}

var soldOutCases = []testCase{
	{"no lease while there are free units", func(t *testing.T, f *fixture) {
		l, err := f.SoldOut(t.Context(), f.sale.ID, MaxLease, 100)
		require.NoError(t, err)
		require.Equal(t, Lease{}, l)
		require.Empty(t, f.metaField(t, "closed"))
	}},
	{"what comes back is not sold before the lease has lapsed, and then is", func(t *testing.T, f *fixture) {
		last := f.emptied(t)
		f.soldOut(t)
		f.lasts(t, time.Hour, "")
		f.mustRelease(t, last, StateVoid)
		f.counts(t, 1, 9)
		require.Equal(t, SoldOut, f.try(t, "gus", "k", 1))
		done, err := f.Adjust(t.Context(), f.sale.ID, 12, 2)
		require.NoError(t, err)
		require.True(t, done)
		require.Equal(t, SoldOut, f.try(t, "gus", "k", 1))
		f.counts(t, 3, 9)

		f.lasts(t, -time.Millisecond, "")
		require.Equal(t, Reserved, f.try(t, "gus", "k", 1))
		require.Empty(t, f.metaField(t, "closed"), "a lease that lapsed is forgotten")
	}},
	{"a lease lapses by itself", func(t *testing.T, f *fixture) {
		last := f.emptied(t)
		f.soldOut(t)
		f.mustRelease(t, last, StateVoid)
		require.Eventually(t, func() bool { return f.try(t, "gus", "k", 1) == Reserved }, 30*time.Second, 10*time.Millisecond)
	}},
	{"the verdicts that come first are given during a lease too", func(t *testing.T, f *fixture) {
		last := f.emptied(t)
		f.soldOut(t)
		f.lasts(t, time.Hour, "")
		f.mustRelease(t, last, StateVoid)
		require.Equal(t, Replay, f.try(t, "ann", "k", 3))
		require.Equal(t, KeyReused, f.try(t, "ann", "k", 2))
		require.Equal(t, LimitReached, f.try(t, "ann", "another", 1))
		require.Equal(t, LimitReached, f.try(t, "gus", "k", 4))
		f.terms.Paused = true
		require.Equal(t, Paused, f.try(t, "gus", "k", 1))
		f.terms.Paused, f.terms.EndsAt = false, f.terms.StartsAt
		require.Equal(t, Ended, f.try(t, "gus", "k", 1))
	}},
	{"a lease is made longer only while nothing is free", func(t *testing.T, f *fixture) {
		last := f.emptied(t)
		f.lasts(t, time.Hour, "")
		l := f.soldOut(t)
		require.Greater(t, l.Left, 30*time.Minute, "never shorter than what somebody was told")
		f.mustRelease(t, last, StateVoid)
		before := f.metaField(t, "closed")
		l, err := f.SoldOut(t.Context(), f.sale.ID, MaxLease, 100)
		require.NoError(t, err)
		require.Equal(t, Lease{}, l)
		require.Equal(t, before, f.metaField(t, "closed"))
	}},
	{"a lease of another process is waited for once more", func(t *testing.T, f *fixture) {
		last := f.emptied(t)
		f.mustRelease(t, last, StateVoid)
		f.lasts(t, time.Hour, "0123456789abcdef")
		here, _, err := f.Server(t.Context(), f.sale.ID, "")
		require.NoError(t, err)
		require.Equal(t, SoldOut, f.try(t, "gus", "k", 1))
		require.True(t, strings.HasSuffix(f.metaField(t, "closed"), " 3600000 "+here), f.metaField(t, "closed"))
	}},
	{"a clock that was set back holds no lease for longer than it was given", func(t *testing.T, f *fixture) {
		last := f.emptied(t)
		f.mustRelease(t, last, StateVoid)
		f.lasts(t, time.Millisecond, "")
		text := f.metaField(t, "closed")
		_, rest, _ := strings.Cut(text, " ")
		meta := keysOf(f.sale.ID, wholeSale, keyMeta)[0]
		require.NoError(t, f.client.Do(t.Context(), f.client.B().Hset().Key(meta).FieldValue().FieldValue("closed", "9999999999999 "+rest).Build()).Error())
		require.Eventually(t, func() bool { return f.try(t, "gus", "k", 1) == Reserved }, 30*time.Second, 10*time.Millisecond)
	}},
	{"the mark is the same until a record changes", func(t *testing.T, f *fixture) {
		f.emptied(t)
		first := f.soldOut(t)
		require.Equal(t, 4, first.Buyers)
		users, again, err := f.SoldOutBuyers(t.Context(), f.sale.ID, MaxLease, 100)
		require.NoError(t, err)
		require.Equal(t, first.Mark, again.Mark)
		require.ElementsMatch(t, []string{"ann", "bob", "cy", "fay"}, users)

		b := f.batch(f.order("gus", "k", 1))
		b.Epoch--
		f.lasts(t, -time.Millisecond, "")
		state, err := f.Adopt(t.Context(), b)
		require.NoError(t, err)
		require.Equal(t, StateConfirmed, state)
		require.NotEqual(t, first.Mark, f.soldOut(t).Mark)
	}},
	{"no lease for more buyers than the caller keeps", func(t *testing.T, f *fixture) {
		f.emptied(t)
		l, err := f.SoldOut(t.Context(), f.sale.ID, MaxLease, 3)
		require.NoError(t, err)
		require.Equal(t, Lease{Many: true}, l)
		require.Empty(t, f.metaField(t, "closed"))
	}},
	{"nobody gets a first record by adoption during a lease", func(t *testing.T, f *fixture) {
		f.emptied(t)
		f.lasts(t, time.Hour, "")
		known, unknown := f.batch(f.order("ann", "other", 1)), f.batch(f.order("gus", "k", 1))
		known.Epoch--
		unknown.Epoch--
		state, err := f.Adopt(t.Context(), known)
		require.NoError(t, err, "ann is in every gateway's list")
		require.Equal(t, StateConfirmed, state)
		_, err = f.Adopt(t.Context(), unknown)
		require.ErrorIs(t, err, ErrNotRun)
		require.NotErrorIs(t, err, ErrNotReady, "which a rebuild would be begun for")
		settled, err := f.Settle(t.Context(), f.sale.ID, []sale.ID{unknown.ID}, active(unknown))
		require.ErrorIs(t, err, ErrNotRun)
		require.Empty(t, settled)
		require.Empty(t, f.lookup(t, "gus"))

		// No lease is given until it was done.
		l, err := f.SoldOut(t.Context(), f.sale.ID, MaxLease, 100)
		require.NoError(t, err)
		require.Equal(t, Lease{}, l)
		f.lasts(t, -time.Millisecond, "")
		state, err = f.Adopt(t.Context(), unknown)
		require.NoError(t, err)
		require.Equal(t, StateConfirmed, state)
		require.Len(t, f.lookup(t, "gus"), 1)
	}},
	{"an adoption waits for the lease to lapse", func(t *testing.T, f *fixture) {
		f.emptied(t)
		f.soldOut(t)
		adopted, settled := f.batch(f.order("gus", "k", 1)), f.batch(f.order("hal", "k", 1))
		adopted.Epoch--
		state, err := f.Adopt(t.Context(), adopted)
		require.NoError(t, err)
		require.Equal(t, StateConfirmed, state)
		f.lasts(t, MaxLease, "")
		done, err := f.Settle(t.Context(), f.sale.ID, []sale.ID{settled.ID}, active(settled))
		require.NoError(t, err)
		require.Equal(t, []sale.ID{settled.ID}, done)
		require.Len(t, f.lookup(t, "hal"), 1)
	}},
	{"a load forgets the lease", func(t *testing.T, f *fixture) {
		f.emptied(t)
		f.soldOut(t)
		f.lasts(t, time.Hour, "")
		stock := keysOf(f.sale.ID, wholeSale, keyStock)[0]
		require.NoError(t, f.client.Do(t.Context(), f.client.B().Del().Key(stock).Build()).Error())
		f.sale.Epoch++
		f.mustLoad(t, LoadSource{})
		require.Empty(t, f.metaField(t, "closed"))
		require.Equal(t, Reserved, f.try(t, "gus", "k", 1))
	}},
}

// Without enough replicas there is no lease: a failover would sell while it is held.
func TestSoldOutIsReplicated(t *testing.T) {
	o := clusterOptions(t)
	o.WaitReplicas, o.WaitTimeout = 2, 50*time.Millisecond
	f := loadedFixture(t, open(t, o), 1)
	f.win(t, "ann", "k", 1)
	_, err := f.SoldOut(t.Context(), f.sale.ID, MaxLease, 10)
	require.ErrorIs(t, err, ErrNotReplicated)
	_, _, err = f.SoldOutBuyers(t.Context(), f.sale.ID, MaxLease, 10)
	require.ErrorIs(t, err, ErrNotReplicated)
}
