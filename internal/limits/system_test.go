package limits

import (
	"testing"
	"time"

	"github.com/alibaba/sentinel-golang/core/system_metric"
	"github.com/stretchr/testify/require"
)

// enter counts how many of n requests are let in, and names the limit that refused the
// last of the others.
func enter(l *Limiter, c Class, n int) (in int, by string) {
	for range n {
		pass, _, limit, ok := l.Enter(c, l.now())
		pass.Exit()
		if ok {
			in++
		} else {
			by = limit
		}
	}
	return in, by
}

func TestInboundQPS(t *testing.T) {
	c, r := sentinelClock(t), generous(t)
	r.System.InboundQPS = 100
	l := newLimiter(t, r, Options{Now: c.Now})
	for range 3 {
		c.advance(2 * time.Second)
		in, by := enter(l, Purchase, 60)
		require.Equal(t, 60, in)
		require.Empty(t, by)
		in, by = enter(l, Read, 300)
		require.Equal(t, 40, in, "over both classes")
		require.Equal(t, "system_read", by)
	}
}

func TestSystemConcurrency(t *testing.T) {
	r := generous(t)
	r.System.Concurrency = 5
	l := newLimiter(t, r, Options{})
	var held []Pass
	for i := range 5 {
		pass, _, _, ok := l.Enter(Class(i%2), l.now())
		require.True(t, ok)
		held = append(held, pass)
	}
	in, by := enter(l, Read, 3)
	require.Zero(t, in)
	require.Equal(t, "system_read", by)
	held[0].Exit()
	in, _ = enter(l, Purchase, 3)
	require.Equal(t, 3, in)
}

// Above the load that is set, no more requests are under way at once than the machine
// was seen to complete; below it, as many as come.
func TestLoad(t *testing.T) {
	c, r := sentinelClock(t), generous(t)
	r.System.Load1 = 4
	l := newLimiter(t, r, Options{Now: c.Now})
	before := system_metric.CurrentLoad()
	t.Cleanup(func() { system_metric.SetSystemLoad(before) })
	underWay := func() (n int, by string) {
		var held []Pass
		for range 100 {
			pass, _, limit, ok := l.Enter(Purchase, l.now())
			if !ok {
				by = limit
				break
			}
			held = append(held, pass)
		}
		for _, pass := range held {
			pass.Exit()
		}
		return len(held), by
	}
	system_metric.SetSystemLoad(1)
	n, _ := underWay()
	require.Equal(t, 100, n)
	system_metric.SetSystemLoad(3)
	for range 40 { // 20 a second that take 100 ms each: two under way
		pass, _, _, ok := l.Enter(Purchase, l.now())
		require.True(t, ok, "watched, and below the load")
		c.advance(50 * time.Millisecond)
		second, _, _, ok := l.Enter(Purchase, l.now())
		require.True(t, ok)
		c.advance(50 * time.Millisecond)
		pass.Exit()
		second.Exit()
	}
	system_metric.SetSystemLoad(5)
	n, by := underWay()
	require.Equal(t, "system_purchase", by)
	require.Less(t, n, 10)
	require.GreaterOrEqual(t, n, 1, "never all")
	system_metric.SetSystemLoad(1)
	n, _ = underWay()
	require.Equal(t, 100, n)
}

func TestLoadIsRead(t *testing.T) {
	before := system_metric.CurrentLoad()
	t.Cleanup(func() { system_metric.SetSystemLoad(before) })
	system_metric.SetSystemLoad(-1)
	require.NoError(t, readLoad())
	require.GreaterOrEqual(t, system_metric.CurrentLoad(), 0.0)
}

// After a quiet time a rule that warms up lets in a part, and all of it in the end.
func TestWarmUp(t *testing.T) {
	c, r := sentinelClock(t), generous(t)
	r.Flow.PurchaseQPS, r.Flow.WarmUp, r.Flow.ColdFactor = 900, 5*time.Second, 3
	l := newLimiter(t, r, Options{Now: c.Now})
	second := func() (in int) {
		for range 100 {
			c.advance(10 * time.Millisecond)
			n, _ := enter(l, Purchase, 20) // 2,000 a second
			in += n
		}
		return in
	}
	c.advance(time.Minute - time.Duration(c.Now().Nanosecond()%int(time.Second))) // Sentinel fills by whole seconds
	first := second()
	require.InDelta(t, 300, first, 100, "cold")
	last := first
	for range 14 {
		now := second()
		require.GreaterOrEqual(t, now, last-100, "never back")
		last = now
	}
	require.InDelta(t, 900, last, 50, "warm")
	c.advance(time.Minute)
	require.InDelta(t, 300, second(), 100, "cold again")

	r.Flow.WarmUp = 0
	require.NoError(t, l.Swap(r))
	c.advance(time.Minute)
	require.InDelta(t, 900, second(), 50, "at once")
}
