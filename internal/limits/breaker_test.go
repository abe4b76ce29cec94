package limits

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
)

var (
	errDown    = errors.New("connection refused")
	errRefusal = errors.New("sold out")
)

func isDown(err error) bool { return !errors.Is(err, errRefusal) }

type rig struct {
	t *testing.T
	*Breaker
	limiter  *Limiter
	clock    *clock
	registry *prometheus.Registry
	rules    *Rules
	calls    int
}

func newRig(t *testing.T) *rig {
	t.Helper()
	g := &rig{t: t, clock: sentinelClock(t), registry: prometheus.NewRegistry(), rules: shipped(t)}
	g.rules.Breakers.Redis = BreakerRule{
		ErrorPercent: 50, ErrorCount: 1000, SlowCall: 100 * time.Millisecond, SlowPercent: 80,
		MinRequests: 4, Window: 2 * time.Second, RetryAfter: time.Second,
	}
	g.limiter = newLimiter(t, g.rules, Options{Registerer: g.registry})
	g.Breaker = g.limiter.Breaker(Redis, isDown)
	return g
}

// do makes calls that end with err, and returns the error of the last.
func (g *rig) do(times int, err error) (last error) {
	for range times {
		last = g.Do(g.t.Context(), func(context.Context) error {
			g.calls++
			return err
		})
	}
	return last
}

func (g *rig) state(t *testing.T) State {
	t.Helper()
	require.EqualValues(t, g.State(), value(t, g.registry, "flashgate_breaker_state", "engine", "redis"))
	return g.State()
}

func TestBreakerOpensAndCloses(t *testing.T) {
	g := newRig(t)
	require.NoError(t, g.do(3, nil))
	require.Equal(t, errDown, g.do(2, errDown))
	require.Equal(t, Closed, g.state(t), "2 of 5 failed")
	require.Equal(t, errDown, g.do(1, errDown))
	require.Equal(t, Open, g.state(t), "3 of 6 failed")

	g.calls = 0
	err := g.do(10, nil)
	require.ErrorIs(t, err, ErrOpen)
	require.EqualError(t, err, "redis: circuit breaker open")
	require.Zero(t, g.calls, "refused at once")
	require.Equal(t, 10.0, value(t, g.registry, "flashgate_breaker_refusals_total", "engine", "redis"))

	// The engine is still down: one call finds out, and it stays open.
	g.clock.advance(time.Second)
	require.Equal(t, errDown, g.do(1, errDown))
	require.Equal(t, Open, g.state(t))
	require.ErrorIs(t, g.do(5, nil), ErrOpen)
	require.Equal(t, 1, g.calls)

	// It is back: one call finds out, and sales go on.
	g.clock.advance(time.Second)
	require.NoError(t, g.do(1, nil))
	require.Equal(t, Closed, g.state(t))
	require.NoError(t, g.do(5, nil))
	require.Equal(t, 2.0, value(t, g.registry, "flashgate_breaker_opened_total", "engine", "redis"))
}

// take makes calls that succeed after so long.
func (g *rig) take(times int, each time.Duration) (last error) {
	for range times {
		last = g.Do(g.t.Context(), func(context.Context) error {
			g.clock.advance(each)
			return nil
		})
	}
	return last
}

func TestSlowCallsOpenTheBreaker(t *testing.T) {
	g := newRig(t)
	require.NoError(t, g.take(2, 100*time.Millisecond), "no longer than slow_call")
	require.NoError(t, g.take(7, 101*time.Millisecond))
	require.Equal(t, Closed, g.state(t), "7 of 9")
	require.NoError(t, g.take(1, 101*time.Millisecond))
	require.Equal(t, Open, g.state(t), "8 of 10")
	require.ErrorIs(t, g.take(1, 0), ErrOpen)

	g.clock.advance(time.Second)
	require.NoError(t, g.take(1, 101*time.Millisecond))
	require.Equal(t, Open, g.state(t), "the trial call was slow")
	g.clock.advance(time.Second)
	require.NoError(t, g.take(1, 0))
	require.Equal(t, Closed, g.state(t))
	require.Equal(t, 2.0, value(t, g.registry, "flashgate_breaker_opened_total", "engine", "redis"))
}

func TestManyErrorsOpenTheBreaker(t *testing.T) {
	g := newRig(t)
	other := *g.rules
	other.Breakers.Redis.ErrorCount, other.Breakers.Redis.ErrorPercent = 5, 100
	require.NoError(t, g.limiter.Swap(&other))
	for range 4 {
		require.NoError(t, g.do(9, nil))
		require.Equal(t, errDown, g.do(1, errDown))
	}
	require.Equal(t, Closed, g.state(t), "4 of 40, and a ratio far below")
	require.Equal(t, errDown, g.do(1, errDown))
	require.Equal(t, Open, g.state(t))
	g.clock.advance(time.Second)
	require.NoError(t, g.do(1, nil))
	require.Equal(t, Closed, g.state(t))
}

// What goes by the ratio and what goes by the time may open at different moments: calls
// are refused until both have been tried out.
func TestBreakerOpenForTwoReasons(t *testing.T) {
	g := newRig(t)
	require.NoError(t, g.take(4, 101*time.Millisecond))
	require.Equal(t, Open, g.state(t))
	inFlight, end := make(chan struct{}), make(chan struct{})
	g.clock.advance(time.Second)
	done := make(chan error)
	go func() {
		done <- g.Do(t.Context(), func(context.Context) error {
			close(inFlight)
			<-end
			return errDown
		})
	}()
	<-inFlight
	require.Equal(t, HalfOpen, g.state(t))
	close(end)
	require.Equal(t, errDown, <-done)
	require.Equal(t, Closed, g.state(t), "it failed fast: 1 of 5 is no ratio to open by")
	require.Equal(t, errDown, g.do(3, errDown))
	require.Equal(t, Open, g.state(t), "4 of 8")
	g.clock.advance(time.Second)
	require.NoError(t, g.do(1, nil))
	require.Equal(t, Closed, g.state(t))
}

func TestBreakerWantsSomeCalls(t *testing.T) {
	g := newRig(t)
	require.Equal(t, errDown, g.do(3, errDown))
	require.Equal(t, Closed, g.state(t))
	g.clock.advance(3 * time.Second)
	require.Equal(t, errDown, g.do(3, errDown))
	require.Equal(t, Closed, g.state(t), "the first three are out of the window")
}

// A burst of good calls does not keep a dead engine's breaker shut beyond the window.
func TestBreakerForgetsGoodTimes(t *testing.T) {
	g := newRig(t)
	require.NoError(t, g.do(1000, nil))
	require.Equal(t, errDown, g.do(4, errDown))
	require.Equal(t, Closed, g.state(t))
	g.clock.advance(2200 * time.Millisecond)
	require.Equal(t, errDown, g.do(4, errDown))
	require.Equal(t, Open, g.state(t))
}

func TestRefusalsOfTheDomainAreNoFailures(t *testing.T) {
	g := newRig(t)
	require.Equal(t, errRefusal, g.do(100, errRefusal))
	require.Equal(t, Closed, g.state(t))
}

func TestPanicIsAFailure(t *testing.T) {
	g := newRig(t)
	for range 4 {
		require.PanicsWithValue(t, "boom", func() {
			_ = g.Do(t.Context(), func(context.Context) error { panic("boom") })
		})
	}
	require.Equal(t, Open, g.state(t))
}

func TestOneProbeAtATime(t *testing.T) {
	g := newRig(t)
	require.Equal(t, errDown, g.do(4, errDown))
	g.clock.advance(time.Second)
	probing, end := make(chan struct{}), make(chan struct{})
	done := make(chan error)
	go func() {
		done <- g.Do(t.Context(), func(context.Context) error {
			close(probing)
			<-end
			return nil
		})
	}()
	<-probing
	require.Equal(t, HalfOpen, g.state(t))
	require.ErrorIs(t, g.do(10, nil), ErrOpen)
	close(end)
	require.NoError(t, <-done)
	require.Equal(t, Closed, g.state(t))
}

// All who call an engine share its breaker; engines and limiters do not.
func TestWhoSharesABreaker(t *testing.T) {
	g := newRig(t)
	require.Equal(t, errDown, g.do(4, errDown))
	nothing := func(context.Context) error { return nil }
	require.ErrorIs(t, g.limiter.Breaker(Redis, isDown).Do(t.Context(), nothing), ErrOpen)
	require.NoError(t, g.limiter.Breaker(MySQL, isDown).Do(t.Context(), nothing))
	require.NoError(t, g.limiter.Breaker(RocketMQ, isDown).Do(t.Context(), nothing))
	other := newLimiter(t, g.rules, Options{})
	require.NoError(t, other.Breaker(Redis, isDown).Do(t.Context(), nothing))
	require.Panics(t, func() { g.limiter.Breaker("oracle", isDown) })
}

func TestBreakerFollowsItsRule(t *testing.T) {
	g := newRig(t)
	require.Equal(t, errDown, g.do(4, errDown))
	require.Equal(t, Open, g.state(t))

	same := *g.rules
	require.NoError(t, g.limiter.Swap(&same))
	require.Equal(t, Open, g.state(t), "an unchanged rule keeps its state")
	require.ErrorIs(t, g.do(1, nil), ErrOpen)

	other := *g.rules
	other.Breakers.Redis.MinRequests = 100
	require.NoError(t, g.limiter.Swap(&other))
	require.Equal(t, Closed, g.state(t))
	require.Equal(t, errDown, g.do(95, errDown))
	require.Equal(t, Closed, g.state(t))
	require.Equal(t, errDown, g.do(1, errDown))
	require.Equal(t, Open, g.state(t), "the four calls before still count")
}

func TestBreakerUnderLoad(t *testing.T) {
	g := newRig(t)
	var down atomic.Bool
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for n := range 500 {
				if n == 100 {
					down.Store(true)
				}
				_ = g.Do(t.Context(), func(context.Context) error {
					if down.Load() {
						return errDown
					}
					return nil
				})
				g.clock.advance(5 * time.Millisecond)
			}
		})
	}
	wg.Wait()
	down.Store(false)
	g.clock.advance(time.Minute)
	require.NoError(t, g.do(1, nil))
	require.Equal(t, Closed, g.state(t))
}
