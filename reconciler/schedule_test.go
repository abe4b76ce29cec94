package reconciler

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/robfig/cron/v3"
	"github.com/stretchr/testify/require"

	"flashgate/internal/ledger"
	"flashgate/internal/sale"
	"flashgate/internal/storetest"
)

// clock is a time that a test moves.
type clock struct {
	mu sync.Mutex
	at time.Time
}

// newClock starts some minutes past an hour, near the present.
func newClock() *clock {
	return &clock{at: time.Now().UTC().Truncate(time.Hour).Add(10 * time.Minute)}
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) forward(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

// ranSale is one run that a reconciler made.
type ranSale struct{ sale, trigger string }

// recorded puts a run in the reconciler's place that notes itself, fails as told, and
// otherwise leaves a report of the clock's time.
type recorded struct {
	ran  []ranSale
	fail map[string]error
	cut  bool // the run is cut short: a report, and an error
}

func record(s *storetest.Stores, r *Reconciler) *recorded {
	rec := &recorded{fail: map[string]error{}}
	r.runSale = func(ctx context.Context, saleID, trigger string) (ledger.ReconcileReport, error) {
		rec.ran = append(rec.ran, ranSale{saleID, trigger})
		if err := rec.fail[saleID]; err != nil {
			return ledger.ReconcileReport{}, err
		}
		report := ledger.ReconcileReport{SaleID: saleID, Trigger: trigger, Unfinished: rec.cut, StartedAt: r.o.Now(), FinishedAt: r.o.Now()}
		err := s.Ledger.AddReconcileReport(ctx, &report)
		if rec.cut {
			err = context.Canceled
		}
		return report, err
	}
	return rec
}

// scheduled are the sales that were run by schedule since the last call.
func (r *recorded) scheduled() (sales []string) {
	for _, run := range r.ran {
		if run.trigger == TriggerSchedule {
			sales = append(sales, run.sale)
		}
	}
	r.ran = nil
	return sales
}

func hourly(t *testing.T) cron.Schedule {
	t.Helper()
	s, err := cron.ParseStandard("0 * * * *")
	require.NoError(t, err)
	return s
}

// onSchedule is a reconciler that leads, with a clock and its runs recorded.
func onSchedule(t *testing.T, s *storetest.Stores, c *clock, holder string) (*Reconciler, *recorded) {
	t.Helper()
	r := newReconciler(s, func(o *Options) { o.Schedule, o.Now, o.Holder = hourly(t), c.Now, holder })
	return r, record(s, r)
}

// turn is one round and what it finds due.
func turn(r *Reconciler) {
	r.Round(context.Background())
	r.runDue(context.Background())
}

func TestTheScheduleRunsEverySaleOnceADueTime(t *testing.T) {
	storetest.Each(t, func(t *testing.T, s *storetest.Stores) {
		a, b := s.LoadedSale(10, 2), s.LoadedSale(10, 2)
		c := newClock()
		r, rec := onSchedule(t, s, c, "one")
		turn(r)
		require.ElementsMatch(t, []string{a.ID, b.ID}, rec.scheduled(), "nothing was ever run: it is due")
		require.InDelta(t, float64(c.Now().Unix()), testutil.ToFloat64(r.metrics.scheduled), 1)
		for range 3 {
			turn(r)
			c.forward(time.Minute)
		}
		require.Empty(t, rec.scheduled())
		added := s.LoadedSale(10, 2)
		turn(r)
		require.Empty(t, rec.scheduled(), "a new sale waits for the next time")
		c.forward(time.Hour)
		turn(r)
		require.ElementsMatch(t, []string{a.ID, b.ID, added.ID}, rec.scheduled())
		turn(r)
		require.Empty(t, rec.scheduled())
		c.forward(5 * time.Hour)
		turn(r)
		require.Len(t, rec.scheduled(), 3, "what was missed is made up for once")
	})
}

func TestTheNextLeaderGoesOnWithTheSchedule(t *testing.T) {
	storetest.Each(t, func(t *testing.T, s *storetest.Stores) {
		sl := s.LoadedSale(10, 2)
		c := newClock()
		one, ofOne := onSchedule(t, s, c, "one")
		two, ofTwo := onSchedule(t, s, c, "two")
		change := func(from, to *Reconciler) {
			t.Helper()
			require.NoError(t, from.resign())
			turn(to)
			require.True(t, to.Leading())
		}
		turn(one)
		turn(two)
		require.Equal(t, []string{sl.ID}, ofOne.scheduled())
		require.Empty(t, ofTwo.scheduled(), "it does not lead")
		change(one, two)
		require.Empty(t, ofTwo.scheduled(), "that time has had its run")

		c.forward(time.Hour)
		ofTwo.cut = true
		turn(two)
		require.Equal(t, []string{sl.ID}, ofTwo.scheduled())
		change(two, one)
		require.Equal(t, []string{sl.ID}, ofOne.scheduled(), "a run that was cut short is run again")

		require.NoError(t, one.resign())
		c.forward(3 * time.Hour) // nobody leads
		ofTwo.cut = false
		turn(two)
		require.Equal(t, []string{sl.ID}, ofTwo.scheduled(), "made up for at once, once")
		change(two, one)
		require.Empty(t, ofOne.scheduled())
	})
}

func TestAScheduledRunThatFailsIsTriedAgain(t *testing.T) {
	s := storetest.Embedded(t)
	a, b := s.LoadedSale(10, 2), s.LoadedSale(10, 2)
	c := newClock()
	r, rec := onSchedule(t, s, c, "one")
	rec.fail[a.ID] = errors.New("the ledger is away")
	turn(r)
	require.ElementsMatch(t, []string{a.ID, b.ID}, rec.scheduled(), "the other is run all the same")
	require.Zero(t, testutil.ToFloat64(r.metrics.scheduled), "one has had none")
	turn(r)
	require.Empty(t, rec.scheduled())
	c.forward(retryAfterSeconds * time.Second)
	delete(rec.fail, a.ID)
	turn(r)
	require.Equal(t, []string{a.ID}, rec.scheduled())
}

func TestAWrongClockDoesNotEndTheSchedule(t *testing.T) {
	s := storetest.Embedded(t)
	sl := s.LoadedSale(10, 2)
	c := newClock()
	wrong := ledger.ReconcileReport{SaleID: sl.ID, Trigger: TriggerSchedule, StartedAt: c.Now().Add(1000 * time.Hour), FinishedAt: c.Now()}
	require.NoError(t, s.Ledger.AddReconcileReport(context.Background(), &wrong))
	r, rec := onSchedule(t, s, c, "one")
	turn(r)
	require.Empty(t, rec.scheduled())
	c.forward(time.Hour)
	turn(r)
	require.Equal(t, []string{sl.ID}, rec.scheduled())
}

// TestALongRunHoldsUpNoRound: rounds go on while a run is under way, and a leader that
// loses its lease ends the run.
func TestALongRunHoldsUpNoRound(t *testing.T) {
	s := storetest.Embedded(t)
	sl := s.LoadedSale(10, 2)
	r := newReconciler(s, func(o *Options) { o.Schedule, o.Interval = hourly(t), time.Millisecond })
	began, ended := make(chan struct{}), make(chan error, 1)
	r.runSale = func(ctx context.Context, _, _ string) (ledger.ReconcileReport, error) {
		close(began)
		<-ctx.Done()
		ended <- ctx.Err()
		return ledger.ReconcileReport{}, ctx.Err()
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	<-began
	s.Reserve(sl, s.Batch(sl, 0, "a"), time.Nanosecond)
	require.Eventually(t, func() bool { return s.Snapshot(sl.ID).Stock == 10 }, 10*time.Second, time.Millisecond, "invariant 7")

	s.Exec("UPDATE leases SET holder = 'another', expires_at = '2100-01-01 00:00:00.000' WHERE name = 'reconciler'")
	select {
	case err := <-ended:
		require.ErrorIs(t, err, context.Canceled)
	case <-time.After(10 * time.Second):
		require.Fail(t, "the run went on without the lease")
	}
	stop()
	require.NoError(t, <-done)
}

func TestASaleThatIsOverIsNotRun(t *testing.T) {
	s := storetest.Embedded(t)
	sl := s.LoadedSale(10, 2)
	s.Exec("UPDATE sales SET starts_at = '2020-01-01 00:00:00.000', ends_at = '2020-01-02 00:00:00.000' WHERE id = ?", sl.ID)
	r, rec := onSchedule(t, s, newClock(), "one")
	turn(r)
	require.Empty(t, rec.ran)
	_, err := s.Ledger.Sale(context.Background(), sl.ID)
	require.NotEqual(t, sale.CodeSaleNotFound, sale.CodeOf(err))
}
