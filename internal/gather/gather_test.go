package gather_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"flashgate/internal/gather"
)

func double(_ context.Context, qs []int) ([]int, error) {
	as := make([]int, len(qs))
	for i, q := range qs {
		as[i] = 2 * q
	}
	return as, nil
}

// Who comes while the calls are under way goes along with the others, up to most.
func TestWhoWaitsGoesTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var sizes []int
		g := gather.New(1, 4, gather.Linger{}, func(ctx context.Context, qs []int) ([]int, error) {
			mu.Lock()
			sizes = append(sizes, len(qs))
			mu.Unlock()
			<-time.After(time.Second)
			return double(ctx, qs)
		})
		var asking sync.WaitGroup
		ask := func(qs ...int) {
			asking.Go(func() {
				as, err := g.Do(t.Context(), qs...)
				require.NoError(t, err)
				require.Len(t, as, len(qs))
				for i := range qs {
					require.Equal(t, 2*qs[i], as[i])
				}
			})
			synctest.Wait() // in this order
		}
		ask(1)
		ask(2)
		ask(3, 4)
		ask(5, 6) // 2, 3, 4 and these would be five
		ask(7, 8, 9, 10, 11)
		ask(12)
		asking.Wait()
		g.Wait()
		require.Equal(t, []int{1, 3, 2, 5, 1}, sizes)
	})
}

func TestSoManyCallsSideBySide(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var now, peak atomic.Int32
		g := gather.New(3, 1, gather.Linger{}, func(ctx context.Context, qs []int) ([]int, error) {
			if n := now.Add(1); n > peak.Load() {
				peak.Store(n)
			}
			<-time.After(time.Second)
			now.Add(-1)
			return double(ctx, qs)
		})
		var asking sync.WaitGroup
		began := time.Now()
		for i := range 9 {
			asking.Go(func() { _, _ = g.Do(t.Context(), i) })
		}
		asking.Wait()
		require.Equal(t, int32(3), peak.Load())
		require.Equal(t, 3*time.Second, time.Since(began))
	})
}

// Who has gone is not asked for, and holds nobody up; what was taken goes on.
func TestWhoHasGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked []int
		g := gather.New(1, 10, gather.Linger{}, func(ctx context.Context, qs []int) ([]int, error) {
			asked = append(asked, qs...)
			<-time.After(time.Second)
			return double(ctx, qs)
		})
		short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		var asking sync.WaitGroup
		for _, q := range []int{1, 2} { // the first is taken, the second waits
			asking.Go(func() {
				_, err := g.Do(short, q)
				require.ErrorIs(t, err, context.DeadlineExceeded)
			})
			synctest.Wait()
		}
		asking.Go(func() {
			as, err := g.Do(t.Context(), 3)
			require.NoError(t, err)
			require.Equal(t, []int{6}, as)
		})
		asking.Wait()
		g.Wait()
		require.Equal(t, []int{1, 3}, asked)
	})
}

func TestAnErrorOrAPanicIsEverybodys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broken := errors.New("broken")
		g := gather.New(1, 10, gather.Linger{}, func(_ context.Context, qs []int) ([]int, error) {
			<-time.After(time.Second)
			switch qs[0] {
			case 0:
				return nil, nil
			case 1:
				return nil, broken
			default:
				panic("at the disco")
			}
		})
		var asking sync.WaitGroup
		for _, q := range []int{0, 1} {
			asking.Go(func() {
				as, err := g.Do(t.Context(), q)
				require.Empty(t, as)
				if q == 1 {
					require.ErrorIs(t, err, broken)
				}
			})
			synctest.Wait()
		}
		asking.Go(func() { _, err := g.Do(t.Context(), 5); require.ErrorIs(t, err, broken) })
		asking.Wait()
		for range 2 {
			asking.Go(func() {
				defer func() {
					p, ok := recover().(*gather.Panic)
					require.True(t, ok)
					require.Equal(t, "at the disco", p.Value)
					require.Contains(t, p.Error(), "gather_test.go", "where it was")
				}()
				_, _ = g.Do(t.Context(), 2)
			})
		}
		asking.Wait()
	})
}

// A call of a crowd waits for others while they keep coming, and so long at most, unless it
// is full before; one of a few waits for no crowd.
func TestALingeringCall(t *testing.T) {
	linger := gather.Linger{Most: 100 * time.Millisecond, Lull: 20 * time.Millisecond, Gap: 10 * time.Millisecond}
	const full, crowd = 640, 10
	type call struct {
		after time.Duration
		size  int
	}
	for name, step := range map[string]struct {
		most        int // questions of a call
		each, times int
		every       time.Duration
		want        []call
	}{
		"nobody comes any more":        {full, crowd, 2, 25 * time.Millisecond, []call{{55 * time.Millisecond, 2 * crowd}}},
		"they keep coming":             {full, crowd, 7, 24 * time.Millisecond, []call{{linger.Most, 5 * crowd}, {(6*24 + 30) * time.Millisecond, 2 * crowd}}},
		"it is full":                   {full, full / 2, 2, 5 * time.Millisecond, []call{{5 * time.Millisecond, full}}},
		"alone":                        {full, 1, 1, 0, []call{{linger.Lull, 1}}},
		"few who keep coming":          {full, 1, 4, 12 * time.Millisecond, []call{{linger.Lull, 2}, {44 * time.Millisecond, 2}}},
		"one less than a crowd":        {full, crowd - 1, 1, 0, []call{{linger.Lull, crowd - 1}}},
		"few who become a crowd":       {full, crowd - 1, 3, 15 * time.Millisecond, []call{{60 * time.Millisecond, 3 * (crowd - 1)}}},
		"alone, where a call is small": {6, 1, 1, 0, []call{{linger.Lull + linger.Gap, 1}}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var mu sync.Mutex
				var calls []call
				var began time.Time
				g := gather.New(2, step.most, linger, func(ctx context.Context, qs []int) ([]int, error) {
					mu.Lock()
					defer mu.Unlock()
					calls = append(calls, call{time.Since(began), len(qs)})
					return double(ctx, qs)
				})
				var asking sync.WaitGroup
				ask := func(n int) {
					asking.Go(func() {
						_, err := g.Do(t.Context(), make([]int, n)...)
						require.NoError(t, err)
					})
					synctest.Wait()
				}
				for range 2 { // the second time, that there was a call is forgotten
					calls, began = nil, time.Now()
					for i := range step.times {
						if i > 0 {
							<-time.After(step.every)
						}
						ask(step.each)
					}
					asking.Wait()
					g.Wait()
					require.Equal(t, step.want, calls)
				}
			})
		})
	}
}

// Who has waited for a crowd that another has called for sees what waits since, and a whole
// call that waits behind less than one goes too.
func TestWhoRestsIsToldWhatWaits(t *testing.T) {
	const full, crowd = 640, 10
	linger := gather.Linger{Most: time.Second, Lull: 20 * time.Millisecond, Gap: 300 * time.Millisecond}
	for name, step := range map[string]struct {
		last [2]int        // questions, after two crowds
		want time.Duration // until all have been called for
	}{
		"one after a whole call":               {[2]int{full - 2*crowd, 1}, 10*time.Millisecond + linger.Lull},
		"a whole call behind less than one":    {[2]int{full, 0}, 5 * time.Millisecond},
		"a crowd after a whole call waits too": {[2]int{full - 2*crowd, crowd}, 10*time.Millisecond + linger.Lull + linger.Gap},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				var mu sync.Mutex
				var last time.Duration
				g := gather.New(2, full, linger, func(ctx context.Context, qs []int) ([]int, error) {
					mu.Lock()
					last = time.Since(began)
					mu.Unlock()
					<-time.After(time.Minute)
					return double(ctx, qs)
				})
				var asking sync.WaitGroup
				for i, n := range []int{crowd, crowd, step.last[0], step.last[1]} {
					if i >= 2 {
						<-time.After(5 * time.Millisecond)
					}
					if n > 0 {
						asking.Go(func() { _, _ = g.Do(t.Context(), make([]int, n)...) })
						synctest.Wait()
					}
				}
				asking.Wait()
				require.Equal(t, step.want, last)
			})
		})
	}
}
