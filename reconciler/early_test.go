package reconciler

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"flashgate/internal/sale"
	"flashgate/internal/stock"
	"flashgate/internal/storetest"
)

const testWatermark = time.Minute

// again is when the second run of a request is due.
const again = testWatermark + earlySlackSeconds*time.Second

func TestEarlyRequests(t *testing.T) {
	t0 := time.Date(2026, 11, 11, 10, 0, 0, 0, time.UTC)
	at := func(s time.Duration) time.Time { return t0.Add(s) }
	due := func(t *testing.T, e *early, now time.Time, want bool) {
		t.Helper()
		_, is := e.next(now)
		require.Equal(t, want, is)
	}
	t.Run("one is run at once, and again when the watermark has passed", func(t *testing.T) {
		var e early
		e.ask("s", AfterRefusal, "", t0, testWatermark)
		q, ok := e.next(t0)
		require.True(t, ok)
		require.Equal(t, "early: refusal", q.trigger())
		_, done := e.ran("s", t0, at(time.Second), nil)
		require.False(t, done)
		due(t, &e, at(again-time.Second), false)
		due(t, &e, at(again), true)
		_, done = e.ran("s", at(again), at(again+time.Second), nil)
		require.True(t, done)
		require.Zero(t, e.waiting())
	})
	t.Run("several are one", func(t *testing.T) {
		var e early
		for range 5 {
			e.ask("s", AfterRefusal, "", t0, testWatermark)
			e.ask("s", AfterBreach, "", t0, testWatermark)
		}
		q, _ := e.next(t0)
		require.Equal(t, "early: refusal, conservation", q.trigger())
		e.ran("s", t0, t0, nil)
		due(t, &e, at(time.Second), false)
	})
	t.Run("one that comes during a run is run after it, with a gap", func(t *testing.T) {
		var e early
		e.ask("s", AfterRefusal, "", t0, testWatermark)
		e.ask("s", AfterRefusal, "", at(time.Second), testWatermark)
		e.ran("s", t0, at(2*time.Second), nil)
		due(t, &e, at(3*time.Second), false)
		due(t, &e, at((2+earlyGapSeconds)*time.Second), true)
	})
	t.Run("a sale whose runs are long is left alone for longer", func(t *testing.T) {
		var e early
		e.ask("s", AfterRefusal, "", t0, testWatermark)
		e.ran("s", t0, at(time.Minute), nil)
		e.ask("s", AfterRefusal, "", at(time.Minute), testWatermark)
		due(t, &e, at(time.Minute+earlyShare*time.Minute-time.Second), false)
		due(t, &e, at(time.Minute+earlyShare*time.Minute), true)
	})
	t.Run("one that failed is run again", func(t *testing.T) {
		var e early
		e.ask("s", AfterRefusal, "", t0, testWatermark)
		_, done := e.ran("s", t0, t0, errors.New("the ledger is away"))
		require.False(t, done)
		due(t, &e, at((earlyGapSeconds-1)*time.Second), false)
		due(t, &e, at(earlyGapSeconds*time.Second), true)
	})
	t.Run("a process is asked for once", func(t *testing.T) {
		var e early
		e.ask("s", AfterFailover, "p", t0, testWatermark)
		e.ask("s", AfterFailover, "p", at(time.Second), testWatermark)
		require.True(t, e.has("s", "p"))
		e.ran("s", t0, t0, nil)
		q, done := e.ran("s", at(again), at(again), nil)
		require.True(t, done)
		require.Equal(t, "p", q.process)
	})
	t.Run("sales do not wait for each other's gaps", func(t *testing.T) {
		var e early
		e.ask("a", AfterRefusal, "", t0, testWatermark)
		e.ran("a", t0, t0, nil)
		e.ask("b", AfterRefusal, "", at(time.Second), testWatermark)
		q, ok := e.next(at(time.Second))
		require.True(t, ok)
		require.Equal(t, "b", q.saleID)
	})
}

// TestEarlyRunsCoverWhatTheyWereAskedFor: whatever is asked for and whenever, a run begins
// after the watermark has passed it, and runs of a sale keep their gap.
func TestEarlyRunsCoverWhatTheyWereAskedFor(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var e early
		now := time.Date(2026, 11, 11, 10, 0, 0, 0, time.UTC)
		var asked time.Time
		var runs []time.Time
		var ended time.Time
		covered := true
		tick := func() {
			if q, ok := e.next(now); ok {
				if len(runs) > 0 {
					require.GreaterOrEqual(t, now.Sub(ended), earlyGapSeconds*time.Second)
				}
				began := now
				runs = append(runs, began)
				now = now.Add(time.Duration(rapid.IntRange(0, 20).Draw(t, "took")) * time.Second)
				ended = now
				if rapid.IntRange(0, 9).Draw(t, "fails") == 0 {
					e.ran(q.saleID, began, now, errors.New("fails"))
				} else {
					e.ran(q.saleID, began, now, nil)
					covered = covered || !began.Before(asked.Add(testWatermark))
				}
			}
			now = now.Add(time.Second)
		}
		for range rapid.IntRange(1, 300).Draw(t, "seconds") {
			if rapid.IntRange(0, 20).Draw(t, "asks") == 0 {
				e.ask("s", AfterRefusal, "", now, testWatermark)
				asked, covered = now, false
			}
			tick()
		}
		for range 2000 {
			tick()
		}
		require.True(t, covered, "nothing ran after the watermark had passed the last request")
		require.Zero(t, e.waiting())
	})
}

// reconciled vouches for a sale, as the runs after its load do.
func reconciled(t *testing.T, s *storetest.Stores, sl *sale.Sale) {
	t.Helper()
	process, _, err := s.Stock.Server(context.Background(), sl.ID, "")
	require.NoError(t, err)
	_, mark, err := s.Stock.Server(context.Background(), sl.ID, process)
	require.NoError(t, err)
	require.Equal(t, process, mark)
}

// early are the runs since the last call that were not by schedule.
func (r *recorded) early() (runs []ranSale) {
	for _, run := range r.ran {
		if run.trigger != TriggerSchedule {
			runs = append(runs, run)
		}
	}
	r.ran = nil
	return runs
}

func TestARefusalIsReconciledAtOnceAndAgain(t *testing.T) {
	storetest.Each(t, func(t *testing.T, s *storetest.Stores) {
		sl, other := s.LoadedSale(1, 5), s.LoadedSale(10, 5)
		reconciled(t, s, sl)
		reconciled(t, s, other)
		c := newClock()
		r, rec := onSchedule(t, s, c, "one")
		next, ofNext := onSchedule(t, s, c, "two")
		turn(r)
		require.Empty(t, rec.early())
		b := s.Batch(sl, 0, "a", "b")
		require.Equal(t, 1, s.Apply(b).Cancelled)
		want := []ranSale{{sl.ID, "early: refusal"}}
		turn(r)
		require.Equal(t, want, rec.early())
		turn(r)
		require.Empty(t, rec.early(), "a task is seen once")

		// The leader dies before the second run: the next one knows of the refusal.
		require.NoError(t, r.resign())
		turn(next)
		require.Equal(t, want, ofNext.early())
		c.forward(again)
		turn(next)
		require.Equal(t, want, ofNext.early(), "the watermark has passed it")
		c.forward(time.Hour)
		turn(next)
		require.Empty(t, ofNext.early())

		s.Exec("UPDATE stock_sync_tasks SET created_at = '2020-01-01 00:00:00.000' WHERE sale_id = ?", sl.ID)
		require.NoError(t, next.resign())
		turn(r)
		require.Empty(t, rec.early(), "an old refusal is the schedule's")
	})
}

func TestAnotherRedisProcessIsReconciledAtOnceAndAgain(t *testing.T) {
	ctx := context.Background()
	storetest.Each(t, func(t *testing.T, s *storetest.Stores) {
		sl, other := s.LoadedSale(10, 5), s.LoadedSale(10, 5)
		reconciled(t, s, sl)
		reconciled(t, s, other)
		c := newClock()
		r, rec := onSchedule(t, s, c, "one")
		next, ofNext := onSchedule(t, s, c, "two")
		turn(r)
		require.Empty(t, rec.early(), "the process is the one it was")

		// What a failover looks like to the promoted replica: the mark is its old master's.
		meta := "fg:{" + sl.ID + "}:meta"
		require.NoError(t, s.Redis.Do(ctx, s.Redis.B().Hset().Key(meta).FieldValue().FieldValue("server", "the master before").Build()).Error())
		want := []ranSale{{sl.ID, "early: failover"}}
		turn(r)
		require.Equal(t, want, rec.early())
		turn(r)
		require.Empty(t, rec.early())

		require.NoError(t, r.resign())
		turn(next)
		require.Equal(t, want, ofNext.early(), "what its predecessor did not finish")
		c.forward(again)
		turn(next)
		require.Equal(t, want, ofNext.early())
		process, mark, err := s.Stock.Server(ctx, sl.ID, "")
		require.NoError(t, err)
		require.Equal(t, process, mark)
		c.forward(time.Hour)
		require.NoError(t, next.resign())
		turn(r)
		require.Empty(t, rec.early())
	})
}

func TestALoadIsReconciledAtOnceAndAgain(t *testing.T) {
	storetest.Each(t, func(t *testing.T, s *storetest.Stores) {
		sl := s.LoadedSale(10, 5)
		reconciled(t, s, sl)
		s.Sell(sl, s.Batch(sl, 0, "a"))
		c := newClock()
		r, rec := onSchedule(t, s, c, "one")
		turn(r)
		require.Empty(t, rec.early())
		s.LoseRedis(sl.ID)
		want := []ranSale{{sl.ID, "early: load"}}
		var ran []ranSale
		require.Eventually(t, func() bool {
			turn(r)
			ran = rec.early()
			return len(ran) > 0
		}, 10*time.Second, 10*time.Millisecond)
		require.Equal(t, want, ran)
		c.forward(again)
		turn(r)
		require.Equal(t, want, rec.early())
		c.forward(time.Hour)
		turn(r)
		require.Empty(t, rec.early())
	})
}

// TestTheSchedulesOwnRunIsReal: the runs that the others record go through Reconcile.
func TestTheSchedulesOwnRunIsReal(t *testing.T) {
	ctx := context.Background()
	storetest.Each(t, func(t *testing.T, s *storetest.Stores) {
		sl := s.LoadedSale(10, 5)
		lost := s.Batch(sl, old, "a")
		s.Confirm(sl, lost)
		r := newReconciler(s, func(o *Options) { o.Schedule = hourly(t) })
		turn(r)
		consumed, err := s.Ledger.Consumed(ctx, []sale.ID{lost.ID})
		require.NoError(t, err)
		require.True(t, consumed[lost.ID])
		reports, err := s.Ledger.ReconcileReports(ctx, sl.ID, 10)
		require.NoError(t, err)
		require.Len(t, reports, 2)
		require.Equal(t, TriggerSchedule, reports[0].Trigger)
		require.Equal(t, Early(string(AfterLoad)), reports[1].Trigger)
		state, err := s.Stock.Confirm(ctx, lost)
		require.NoError(t, err)
		require.Equal(t, stock.StateSettled, state)
	})
}
