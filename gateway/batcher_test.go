package gateway

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"flashgate/internal/purchase"
	"flashgate/internal/sale"
)

func newRequest(saleID string, id sale.ID) *purchase.Request {
	return purchase.NewRequest(sale.Order{ID: id, SaleID: saleID, Quantity: 1}, time.Now().Add(10*time.Second))
}

// Whatever is queued, every request is run once, in order, in batches within the
// bound, by no more flushers than allowed, and none mixes sales.
func TestBatcher(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		batchMax := rapid.IntRange(1, 9).Draw(t, "batch")
		flushers := rapid.IntRange(1, 4).Draw(t, "flushers")
		linger := time.Duration(rapid.IntRange(0, 3).Draw(t, "linger, ms")) * time.Millisecond
		patience := time.Duration(rapid.IntRange(0, 3).Draw(t, "patience, ms")) * time.Millisecond
		queueMax := rapid.IntRange(1, 20).Draw(t, "queue")
		sales := rapid.IntRange(1, 3).Draw(t, "sales")
		n := rapid.IntRange(0, 60).Draw(t, "requests")

		var mu sync.Mutex
		var faults []string
		fault := func(format string, a ...any) {
			mu.Lock()
			defer mu.Unlock()
			faults = append(faults, fmt.Sprintf(format, a...))
		}
		running := map[string]int{}
		last := map[string]sale.ID{}
		ran := map[sale.ID]int{}
		b := newBatcher(runner(func(s *sale.Sale, q []*purchase.Request) {
			mu.Lock()
			running[s.ID]++
			now := running[s.ID]
			mu.Unlock()
			if now > flushers {
				fault("%d flushers of %s", now, s.ID)
			}
			if len(q) == 0 || len(q) > batchMax {
				fault("a batch of %d", len(q))
			}
			runtime.Gosched()
			for _, r := range q {
				mu.Lock()
				id := r.Order.ID
				ran[id]++
				if r.Order.SaleID != s.ID {
					faults = append(faults, "sales are mixed")
				}
				if flushers == 1 && id < last[s.ID] {
					faults = append(faults, "out of order")
				}
				last[s.ID] = id
				mu.Unlock()
			}
			accept(s, q)
			mu.Lock()
			running[s.ID]--
			mu.Unlock()
		}), batchMax, flushers, linger, patience, queueMax, sales)

		var waiting sync.WaitGroup
		queued := 0
		for i := range n {
			s := &sale.Sale{ID: fmt.Sprint("s", i%sales)}
			r := newRequest(s.ID, sale.ID(i+1))
			if !b.enqueue(s, r) {
				r.Discard()
				continue
			}
			queued++
			waiting.Go(func() {
				if a := r.Wait(); a.Code != "" || a.OrderID != sale.ID(i+1) {
					fault("request %d was answered %+v", i+1, a)
				}
			})
		}
		waiting.Wait()
		b.stop(context.Background())
		r := newRequest("s0", 1)
		if b.enqueue(&sale.Sale{ID: "s0"}, r) {
			fault("queued after stop")
		}
		if d := b.depth.Load(); d != 0 {
			fault("depth is %d at the end", d)
		}
		if len(ran) != queued {
			fault("%d of %d ran", len(ran), queued)
		}
		for id, times := range ran {
			if times != 1 {
				fault("request %d ran %d times", id, times)
			}
		}
		require.Empty(t, faults)
	})
}

// While the flushers are away the queue takes what it is bounded to, and their next
// batches are as large as allowed.
func TestBatchesGrow(t *testing.T) {
	began, goOn := make(chan int, 10), make(chan struct{})
	b := newBatcher(runner(func(s *sale.Sale, q []*purchase.Request) {
		began <- len(q)
		<-goOn
		accept(s, q)
	}), 4, 1, 0, 0, 6, 1)
	s := &sale.Sale{ID: "s"}
	enqueue := func() bool { return b.enqueue(s, newRequest("s", 1)) }
	require.True(t, enqueue())
	require.Equal(t, 1, <-began, "nothing is waited for")
	for range 6 {
		require.True(t, enqueue())
	}
	require.False(t, enqueue(), "full")
	require.Equal(t, int64(6), b.depth.Load())
	goOn <- struct{}{}
	require.Equal(t, 4, <-began)
	require.Equal(t, int64(2), b.depth.Load())
	for range 4 {
		require.True(t, enqueue())
	}
	require.False(t, enqueue(), "full again")
	close(goOn)
	require.Equal(t, 4, <-began)
	require.Equal(t, 2, <-began)
	b.stop(context.Background())
}

// A second flusher comes for a whole batch, or when the first has been away for long; and
// not before.
func TestAnotherFlusherComesWhenNeeded(t *testing.T) {
	const patience = 20 * time.Millisecond
	synctest.Test(t, func(t *testing.T) {
		type start struct {
			after    time.Duration
			requests int
		}
		var mu sync.Mutex
		var starts []start
		seen := func() []start {
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			return starts
		}
		var goOn chan struct{}
		began := time.Now()
		b := newBatcher(runner(func(s *sale.Sale, q []*purchase.Request) {
			mu.Lock()
			starts = append(starts, start{time.Since(began), len(q)})
			wait := goOn
			mu.Unlock()
			<-wait
			accept(s, q)
		}), 4, 2, 0, patience, 20, 1)
		s := &sale.Sale{ID: "s"}
		enqueue := func(n int) {
			for range n {
				require.True(t, b.enqueue(s, newRequest("s", 1)))
			}
			synctest.Wait()
		}
		again := func() {
			close(goOn)
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			starts, goOn, began = nil, make(chan struct{}), time.Now()
		}
		goOn = make(chan struct{})

		enqueue(1)
		enqueue(3) // less than a batch: they wait for the first,
		<-time.After(patience - time.Millisecond)
		require.Equal(t, []start{{0, 1}}, seen())
		<-time.After(time.Millisecond) // up to here
		require.Equal(t, []start{{0, 1}, {patience, 3}}, seen())
		enqueue(9) // two is all there are
		<-time.After(time.Second)
		require.Len(t, seen(), 2)
		again()

		enqueue(1)
		enqueue(4) // a whole batch
		require.Equal(t, []start{{0, 1}, {0, 4}}, seen())
		again()

		// A first that comes and goes keeps the second away.
		enqueue(1)
		for range 10 {
			enqueue(2)
			<-time.After(patience / 2)
			goOn <- struct{}{}
			synctest.Wait()
			require.Equal(t, 1, b.lanes["s"].flushing)
		}
		again()
		b.stop(context.Background())
	})
}

// Where a crowd was answered, what comes gathers: for the linger, for as long as the
// last batch took, or until it is a whole batch, whichever is first. A few are taken at once.
func TestCrowdIsWaitedFor(t *testing.T) {
	const linger, whole = 5 * time.Millisecond, 32 // and thus a crowd is 2
	type run struct {
		after    time.Duration // since the last was answered
		requests int
	}
	for name, test := range map[string]struct {
		takes  time.Duration // of a run
		first  int           // requests of the run that they come back from
		coming []int         // a millisecond after the other, the first after half of one
		want   []run
	}{
		"for the linger":            {time.Second, 10, []int{3, 3, 3, 3, 3, 3, 3}, []run{{linger, 15}}},
		"for as long as the last":   {2 * time.Millisecond, 10, []int{3, 3, 3, 3}, []run{{2 * time.Millisecond, 6}}},
		"until it is whole":         {time.Second, 10, []int{0, 16, 16, 1}, []run{{2500 * time.Microsecond, whole}}},
		"nobody comes":              {time.Second, 10, []int{0, 0, 0, 0, 0, 0}, []run{}},
		"somebody comes afterwards": {time.Second, 10, []int{0, 0, 0, 0, 0, 0, 1}, []run{{6500 * time.Microsecond, 1}}},
		"one is no crowd":           {time.Second, 1, []int{0, 1}, []run{{1500 * time.Microsecond, 1}}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var mu sync.Mutex
				var runs []run
				var answered time.Time
				goOn := make(chan struct{})
				b := newBatcher(runner(func(s *sale.Sale, q []*purchase.Request) {
					mu.Lock()
					runs = append(runs, run{time.Since(answered), len(q)})
					nth := len(runs)
					mu.Unlock()
					switch nth {
					case 1:
						<-goOn
					case 2:
						<-time.After(test.takes)
					}
					accept(s, q)
				}), whole, 1, linger, time.Hour, 100, 1)
				s := &sale.Sale{ID: "s"}
				enqueue := func(n int) {
					for range n {
						require.True(t, b.enqueue(s, newRequest("s", 1)))
					}
					synctest.Wait()
				}
				enqueue(1)
				enqueue(test.first)
				close(goOn) // in no time: they are not waited for any longer
				synctest.Wait()
				mu.Lock()
				answered = time.Now().Add(test.takes)
				mu.Unlock()
				<-time.After(test.takes)
				synctest.Wait()
				<-time.After(time.Millisecond / 2)
				for _, n := range test.coming {
					enqueue(n)
					<-time.After(time.Millisecond)
				}
				mu.Lock()
				require.Equal(t, test.first, runs[1].requests)
				require.Equal(t, test.want, runs[2:min(len(runs), 3)])
				mu.Unlock()
				b.stop(context.Background())
				require.Zero(t, b.depth.Load())
			})
		})
	}
}

// While a crowd is waited for, a second flusher that comes back leaves it alone.
func TestOneFlusherWaitsForTheCrowd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const linger = 5 * time.Millisecond
		type run struct {
			after    time.Duration
			requests int
		}
		var mu sync.Mutex
		var runs []run
		began := time.Now()
		b := newBatcher(runner(func(s *sale.Sale, q []*purchase.Request) {
			mu.Lock()
			runs = append(runs, run{time.Since(began), len(q)})
			nth := len(runs)
			mu.Unlock()
			<-time.After(time.Second + time.Duration(nth)*time.Millisecond)
			accept(s, q)
		}), 4, 2, linger, time.Hour, 100, 1)
		s := &sale.Sale{ID: "s"}
		enqueue := func(n int) {
			for range n {
				require.True(t, b.enqueue(s, newRequest("s", 1)))
			}
			synctest.Wait()
		}
		const first, second = time.Second + time.Millisecond, time.Second + 2*time.Millisecond // when they come back
		enqueue(1)
		enqueue(4)
		enqueue(2)
		<-time.After(first + linger + time.Millisecond/2)
		enqueue(1) // comes when the crowd is away
		<-time.After(second)
		mu.Lock()
		require.Equal(t, []run{{0, 1}, {0, 4}, {first + linger, 2}}, runs[:min(len(runs), 3)])
		require.Greater(t, append(runs, run{after: time.Hour})[3].after, first+second)
		mu.Unlock()
		b.stop(context.Background())
	})
}

// An idle sale's lane makes room for another's; a busy one's does not.
func TestLanes(t *testing.T) {
	began, goOn := make(chan struct{}), make(chan struct{})
	b := newBatcher(runner(func(s *sale.Sale, q []*purchase.Request) {
		began <- struct{}{}
		<-goOn
		accept(s, q)
	}), 4, 1, 0, 0, 6, 1)
	require.True(t, b.enqueue(&sale.Sale{ID: "a"}, newRequest("a", 1)))
	<-began
	r := newRequest("b", 2)
	require.False(t, b.enqueue(&sale.Sale{ID: "b"}, r))
	goOn <- struct{}{}
	require.Eventually(t, func() bool { return b.enqueue(&sale.Sale{ID: "b"}, r) }, 10*time.Second, time.Millisecond)
	<-began
	require.Len(t, b.lanes, 1)
	goOn <- struct{}{}
	require.Equal(t, sale.ID(2), r.Wait().OrderID)
	b.stop(context.Background())
}

// The protocol gets the newest terms that any of the requests came with.
func TestBatchGetsNewestTerms(t *testing.T) {
	terms, goOn := make(chan *sale.Sale, 2), make(chan struct{})
	b := newBatcher(runner(func(s *sale.Sale, q []*purchase.Request) {
		terms <- s
		<-goOn
		accept(s, q)
	}), 4, 1, 0, 0, 6, 1)
	old, paused := &sale.Sale{ID: "s"}, &sale.Sale{ID: "s", Status: sale.Paused}
	require.True(t, b.enqueue(old, newRequest("s", 1)))
	require.Same(t, old, <-terms)
	require.True(t, b.enqueue(old, newRequest("s", 2)))
	require.True(t, b.enqueue(paused, newRequest("s", 3)))
	close(goOn)
	require.Same(t, paused, <-terms)
	b.stop(context.Background())
}

// A flusher that panics takes its own batch with it and no other.
func TestRunnerPanics(t *testing.T) {
	var runs, panics atomic.Int32
	b := newBatcher(runner(func(s *sale.Sale, q []*purchase.Request) {
		if runs.Add(1) == 1 {
			q[0].Take()
			panic("BUG: of a test")
		}
		accept(s, q)
	}), 1, 1, 0, 0, 6, 1)
	b.panicked = func(any, []byte) { panics.Add(1) }
	s := &sale.Sale{ID: "s"}
	lost := purchase.NewRequest(sale.Order{ID: 1}, time.Now().Add(20*time.Millisecond))
	next := newRequest("s", 2)
	require.True(t, b.enqueue(s, lost))
	require.True(t, b.enqueue(s, next))
	require.Equal(t, sale.ID(2), next.Wait().OrderID)
	require.Equal(t, sale.CodeOutcomeUnknown, lost.Wait().Code)
	require.Equal(t, int32(1), panics.Load())
	b.stop(context.Background())
}

// stop waits for what is queued; past its deadline it tells what runs to end.
func TestStop(t *testing.T) {
	began := make(chan struct{}, 4)
	var answered atomic.Int32
	var b *batcher
	b = newBatcher(runner(func(_ *sale.Sale, q []*purchase.Request) {
		began <- struct{}{}
		<-b.ctx.Done()
		for _, r := range q {
			if r.Take() {
				r.Answer(purchase.Answer{Code: sale.CodeUnavailable})
				answered.Add(1)
			}
		}
	}), 1, 1, 0, 0, 6, 1)
	s := &sale.Sale{ID: "s"}
	for i := range 3 {
		require.True(t, b.enqueue(s, newRequest("s", sale.ID(i+1))))
	}
	<-began
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	b.stop(ctx)
	require.Equal(t, int32(3), answered.Load())
}
