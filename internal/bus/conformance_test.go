package bus

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"flashgate/internal/sale"
)

// TestConformance is one suite for both buses.
func TestConformance(t *testing.T) {
	cases := []struct {
		name string
		run  func(*testing.T, func(testing.TB, Options) testBus)
	}{
		{"a committed batch is delivered as it was sent", caseCommit},
		{"a rolled back batch is not delivered", caseRollback},
		{"an unknown batch is checked back until committed", caseUnknownCommit},
		{"an unknown batch is checked back until rolled back", caseUnknownRollback},
		{"a panic in the local transaction is checked back", caseLocalPanics},
		{"a panic in the check is asked again", caseCheckPanics},
		{"local does not run when the half message fails", caseHalfFails},
		{"a handler's error brings the batch again", caseHandlerFails},
		{"a handler's panic brings the batch again", caseHandlerPanics},
		{"what no handler took is delivered after a restart", caseNotTaken},
		{"a poison body is delivered as such", casePoison},
		{"a consumer gets what was sent before it", caseConsumeLater},
		{"many concurrent sends are all delivered", caseConcurrent},
		{"Consume waits for its handlers", caseConsumeWaits},
		{"a restart loses nothing", caseRestart},
		{"without a check nothing is sent", caseSendsNothing},
		{"Undelivered lists what is undecided or not acknowledged", caseUndelivered},
		{"Undelivered lists once what was asked about again and again", caseUndeliveredAsked},
		{"Undelivered misses nothing that moves meanwhile", caseUndeliveredMoving},
		{"Ping is true while open", casePing},
	}
	for _, e := range engines {
		t.Run(e.name, func(t *testing.T) {
			for _, c := range cases {
				t.Run(c.name, func(t *testing.T) {
					t.Parallel()
					c.run(t, e.place(t))
				})
			}
		})
	}
}

func caseCommit(t *testing.T, open func(testing.TB, Options) testBus) {
	b := open(t, Options{Check: answering(Commit), Logger: quiet()})
	in := newInbox()
	consume(t, b, in.handle, answering(Unknown))
	sent := newBatch(3)
	sent.Orders[0].UserID = "日本\"\\\x01\u2028<é>"
	sent.Orders[1].RequestKey = ""
	send(t, b, sent, Commit)
	eventually(t, "delivered", func() bool { return in.get(sent.ID) != nil })
	require.Equal(t, sent, in.get(sent.ID))
}

func caseRollback(t *testing.T, open func(testing.TB, Options) testBus) {
	b := open(t, Options{Check: answering(Rollback), Logger: quiet()})
	in := newInbox()
	rolledBack, after := newBatch(1), newBatch(1)
	send(t, b, rolledBack, Rollback)
	send(t, b, after, Commit)
	consume(t, b, in.handle, answering(Unknown))
	eventually(t, "delivered", func() bool { return in.get(after.ID) != nil })
	require.Nil(t, in.get(rolledBack.ID))
}

// untilAsked answers Unknown twice, then d.
func untilAsked(d Decision, asked *atomic.Int32) Checker {
	return func(context.Context, *sale.Batch) Decision {
		if asked.Add(1) <= 2 {
			return Unknown
		}
		return d
	}
}

func caseUnknownCommit(t *testing.T, open func(testing.TB, Options) testBus) {
	var asked atomic.Int32
	var got atomic.Pointer[sale.Batch]
	check := untilAsked(Commit, &asked)
	b := open(t, Options{Logger: quiet(), Check: func(ctx context.Context, b *sale.Batch) Decision {
		got.Store(b)
		return check(ctx, b)
	}})
	in := newInbox()
	consume(t, b, in.handle, answering(Unknown))
	sent := newBatch(2)
	send(t, b, sent, Unknown)
	eventually(t, "delivered", func() bool { return in.get(sent.ID) != nil })
	require.GreaterOrEqual(t, asked.Load(), int32(3))
	require.Equal(t, sent, got.Load(), "the check is given the batch")
	require.Equal(t, sent, in.get(sent.ID))
}

func caseUnknownRollback(t *testing.T, open func(testing.TB, Options) testBus) {
	var asked atomic.Int32
	b := open(t, Options{Logger: quiet(), Check: untilAsked(Rollback, &asked)})
	in := newInbox()
	consume(t, b, in.handle, answering(Unknown))
	sent, after := newBatch(1), newBatch(1)
	send(t, b, sent, Unknown)
	eventually(t, "checked back", func() bool { return asked.Load() >= 3 })
	send(t, b, after, Commit)
	eventually(t, "delivered", func() bool { return in.get(after.ID) != nil })
	require.Nil(t, in.get(sent.ID))
}

func caseLocalPanics(t *testing.T, open func(testing.TB, Options) testBus) {
	b := open(t, Options{Logger: quiet(), Check: answering(Commit)})
	in := newInbox()
	consume(t, b, in.handle, answering(Unknown))
	sent := newBatch(1)
	require.NoError(t, trySend(t.Context(), func(ctx context.Context) error {
		return b.Send(ctx, sent, func() Decision { panic("local") })
	}))
	eventually(t, "delivered", func() bool { return in.get(sent.ID) != nil })
}

func caseCheckPanics(t *testing.T, open func(testing.TB, Options) testBus) {
	var asked atomic.Int32
	b := open(t, Options{Logger: quiet(), Check: func(context.Context, *sale.Batch) Decision {
		if asked.Add(1) == 1 {
			panic("check")
		}
		return Commit
	}})
	in := newInbox()
	consume(t, b, in.handle, answering(Unknown))
	sent := newBatch(1)
	send(t, b, sent, Unknown)
	eventually(t, "delivered", func() bool { return in.get(sent.ID) != nil })
}

func caseHalfFails(t *testing.T, open func(testing.TB, Options) testBus) {
	b := open(t, Options{Check: answering(Commit), Logger: quiet()})
	send(t, b, newBatch(1), Rollback) // connected
	local := func() Decision { t.Error("local was called"); return Commit }

	ended, cancel := context.WithCancel(t.Context())
	cancel()
	require.Error(t, b.Send(ended, newBatch(1), local), "ended context")

	require.ErrorContains(t, b.Send(t.Context(), &sale.Batch{ID: 1, SaleID: "spring"}, local), "no orders")

	require.NoError(t, b.Close())
	require.ErrorIs(t, b.Send(t.Context(), newBatch(1), local), errClosed)
	require.NoError(t, b.Close(), "idempotent")
	require.Error(t, b.Ping(t.Context()))
}

func caseHandlerFails(t *testing.T, open func(testing.TB, Options) testBus) {
	handlerFails(t, open, func() error { return errors.New("ledger away") })
}

func caseHandlerPanics(t *testing.T, open func(testing.TB, Options) testBus) {
	handlerFails(t, open, func() error { panic("handler") })
}

func handlerFails(t *testing.T, open func(testing.TB, Options) testBus, fail func() error) {
	b := open(t, Options{Check: answering(Commit), Logger: quiet()})
	in := newInbox()
	var calls atomic.Int32
	consume(t, b, func(ctx context.Context, d []Delivery) error {
		if calls.Add(1) <= 2 {
			return fail()
		}
		return in.handle(ctx, d)
	}, answering(Unknown))
	sent := newBatch(1)
	send(t, b, sent, Commit)
	eventually(t, "delivered again", func() bool { return in.get(sent.ID) != nil })
	require.Equal(t, sent, in.get(sent.ID))
}

func caseNotTaken(t *testing.T, open func(testing.TB, Options) testBus) {
	b := open(t, Options{Check: answering(Commit), Logger: quiet()})
	sent := newBatch(1)
	send(t, b, sent, Commit)
	tried := make(chan struct{}, 1_000)
	stop := consume(t, b, func(context.Context, []Delivery) error {
		tried <- struct{}{}
		return errors.New("ledger away")
	}, answering(Unknown))
	<-tried
	stop()
	require.NoError(t, b.Close())

	again := open(t, Options{Check: answering(Commit), Logger: quiet()})
	in := newInbox()
	consume(t, again, in.handle, answering(Unknown))
	eventually(t, "delivered after the restart", func() bool { return in.get(sent.ID) != nil })
}

func casePoison(t *testing.T, open func(testing.TB, Options) testBus) {
	b := open(t, Options{Check: answering(Commit), Logger: quiet()})
	bodies := []string{`{"v":1,`, `{"v":2,"batch":"of a later version"}`}
	for _, body := range bodies {
		require.NoError(t, trySend(t.Context(), func(ctx context.Context) error {
			return b.sendBody(ctx, []byte(body), func() Decision { return Commit })
		}))
	}
	in := newInbox()
	consume(t, b, in.handle, answering(Unknown))
	after := newBatch(1)
	send(t, b, after, Commit)
	eventually(t, "all delivered", func() bool { return in.get(after.ID) != nil && len(in.poisoned()) == len(bodies) })
	var got []string
	for _, d := range in.poisoned() {
		require.Nil(t, d.Batch)
		require.Error(t, d.Err)
		require.NotEmpty(t, d.MessageID)
		got = append(got, string(d.Body))
	}
	require.ElementsMatch(t, bodies, got)
}

func caseConsumeLater(t *testing.T, open func(testing.TB, Options) testBus) {
	b := open(t, Options{Check: answering(Commit), Logger: quiet()})
	var sent []*sale.Batch
	for range 20 {
		batch := newBatch(1)
		send(t, b, batch, Commit)
		sent = append(sent, batch)
	}
	in := newInbox()
	consume(t, b, in.handle, answering(Unknown))
	for _, batch := range sent {
		eventually(t, "delivered", func() bool { return in.get(batch.ID) != nil })
	}
}

func caseConcurrent(t *testing.T, open func(testing.TB, Options) testBus) {
	const senders, each = 16, 25
	b := open(t, Options{Check: answering(Commit), Logger: quiet(), BatchMessages: 32})
	in := newInbox()
	var most atomic.Int64
	consume(t, b, func(ctx context.Context, d []Delivery) error {
		for seen := most.Load(); int64(len(d)) > seen && !most.CompareAndSwap(seen, int64(len(d))); {
			seen = most.Load()
		}
		return in.handle(ctx, d)
	}, answering(Unknown))
	sent := make([][]*sale.Batch, senders)
	var wait sync.WaitGroup
	for i := range senders {
		wait.Go(func() {
			for range each {
				batch := newBatch(5)
				if err := trySend(t.Context(), func(ctx context.Context) error {
					return b.Send(ctx, batch, func() Decision { return Commit })
				}); err != nil {
					t.Error(err)
					return
				}
				sent[i] = append(sent[i], batch)
			}
		})
	}
	wait.Wait()
	eventually(t, "all delivered", func() bool { return in.len() == senders*each })
	for _, batches := range sent {
		for _, batch := range batches {
			require.Equal(t, batch, in.get(batch.ID))
		}
	}
	require.LessOrEqual(t, most.Load(), int64(32), "batches are bounded")
}

func caseConsumeWaits(t *testing.T, open func(testing.TB, Options) testBus) {
	b := open(t, Options{Check: answering(Commit), Logger: quiet()})
	send(t, b, newBatch(1), Commit)
	begun, release := make(chan context.Context, 1), make(chan struct{})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- b.Consume(ctx, func(ctx context.Context, _ []Delivery) error {
			begun <- ctx
			<-release
			return nil
		}, answering(Unknown))
	}()
	inHandler := <-begun
	cancel()
	// Nothing but the handler holds Consume up; give it the time to get that wrong.
	select {
	case <-ended:
		require.Fail(t, "Consume returned while a handler was under way")
	case <-time.After(200 * time.Millisecond):
	}
	require.NoError(t, inHandler.Err(), "a handler under way may finish")
	close(release)
	require.NoError(t, <-ended)
	require.Error(t, inHandler.Err())
}

func caseRestart(t *testing.T, open func(testing.TB, Options) testBus) {
	b := open(t, Options{Check: answering(Unknown), Logger: quiet()})
	committed, undecided, rolledBack := newBatch(2), newBatch(2), newBatch(2)
	send(t, b, committed, Commit)
	send(t, b, undecided, Unknown)
	send(t, b, rolledBack, Rollback)
	require.NoError(t, b.Close())

	var asked sync.Map
	again := open(t, Options{Logger: quiet(), Check: func(_ context.Context, b *sale.Batch) Decision {
		asked.Store(b.ID, b)
		if b.ID == rolledBack.ID { // its end may have been lost
			return Rollback
		}
		return Commit
	}})
	in := newInbox()
	consume(t, again, in.handle, answering(Unknown))
	eventually(t, "delivered", func() bool { return in.get(committed.ID) != nil && in.get(undecided.ID) != nil })
	got, ok := asked.Load(undecided.ID)
	require.True(t, ok, "checked back")
	require.Equal(t, undecided, got)
	require.Nil(t, in.get(rolledBack.ID))
}

func caseSendsNothing(t *testing.T, open func(testing.TB, Options) testBus) {
	b := open(t, Options{Logger: quiet()})
	err := b.Send(t.Context(), newBatch(1), func() Decision { t.Error("local was called"); return Commit })
	require.ErrorIs(t, err, errSendsNothing)
}

func casePing(t *testing.T, open func(testing.TB, Options) testBus) {
	b := open(t, Options{Logger: quiet()})
	require.NoError(t, b.Ping(t.Context()))
	require.NoError(t, b.Close())
	require.Error(t, b.Ping(t.Context()))
}

// list is what the bus has not delivered of a sale, by batch, and how often each came.
func list(t testing.TB, b Lister, saleID string) (map[sale.ID]sale.Batch, map[sale.ID]int) {
	t.Helper()
	batches, times := map[sale.ID]sale.Batch{}, map[sale.ID]int{}
	require.NoError(t, b.Undelivered(t.Context(), saleID, func(some []sale.Batch) error {
		require.NotEmpty(t, some)
		for _, b := range some {
			batches[b.ID] = b
			times[b.ID]++
		}
		return nil
	}))
	return batches, times
}

// eventuallyListed waits until exactly these are listed: a broker notes an end up to
// 3 s late, and a consumer its offset up to 5 s.
func eventuallyListed(t testing.TB, b Lister, saleID string, want ...*sale.Batch) {
	t.Helper()
	wanted := map[sale.ID]sale.Batch{}
	for _, w := range want {
		wanted[w.ID] = *w
	}
	var got map[sale.ID]sale.Batch
	require.Eventually(t, func() bool {
		got, _ = list(t, b, saleID)
		if len(got) > len(wanted) {
			return false
		}
		return assert.ObjectsAreEqual(wanted, got)
	}, patience, 100*time.Millisecond, "listed")
}

func caseUndelivered(t *testing.T, open func(testing.TB, Options) testBus) {
	b := open(t, Options{Check: answering(Unknown), Logger: quiet()})
	half, committed, rolledBack, other := newBatch(2), newBatch(2), newBatch(1), newBatch(1)
	other.SaleID, other.Orders[0].SaleID = "autumn", "autumn"
	other.Orders[0].UserID = "spring" // what looks like the sale's need not be
	send(t, b, half, Unknown)
	send(t, b, committed, Commit)
	send(t, b, rolledBack, Rollback)
	send(t, b, other, Commit)
	require.NoError(t, trySend(t.Context(), func(ctx context.Context) error {
		return b.sendBody(ctx, []byte(`{"v":9,"sale_id":"spring"}`), func() Decision { return Commit })
	}))
	got, _ := list(t, b, "spring")
	require.Contains(t, got, half.ID, "at once")
	require.Contains(t, got, committed.ID, "at once")
	eventuallyListed(t, b, "spring", half, committed)
	eventuallyListed(t, b, "autumn", other)
	require.NoError(t, b.Close())

	again := open(t, Options{Check: answering(Unknown), Logger: quiet()})
	eventuallyListed(t, again, "spring", half, committed)
	in := newInbox()
	refusing := make(chan struct{})
	consume(t, again, func(ctx context.Context, d []Delivery) error {
		select {
		case <-refusing:
			return in.handle(ctx, d)
		default:
			return errors.New("ledger away")
		}
	}, answering(Unknown))
	eventuallyListed(t, again, "spring", half, committed)
	close(refusing)
	eventually(t, "delivered", func() bool { return in.len() == 2 && len(in.poisoned()) == 1 })
	eventuallyListed(t, again, "spring", half)
	eventuallyListed(t, again, "autumn")
}

func caseUndeliveredAsked(t *testing.T, open func(testing.TB, Options) testBus) {
	var asked atomic.Int32
	var answer atomic.Int32
	b := open(t, Options{Logger: quiet(), Check: func(context.Context, *sale.Batch) Decision {
		asked.Add(1)
		return Decision(answer.Load())
	}})
	sent := newBatch(2)
	send(t, b, sent, Unknown)
	for want := range int32(3) {
		eventually(t, "asked", func() bool { return asked.Load() > want })
		got, times := list(t, b, "spring")
		require.Equal(t, map[sale.ID]sale.Batch{sent.ID: *sent}, got, "asked %d times", want+1)
		require.Equal(t, 1, times[sent.ID])
	}
	answer.Store(int32(Rollback))
	eventuallyListed(t, b, "spring")
}

// caseUndeliveredMoving lists while batches go from half message to acknowledged: one that
// the handler has not taken before the list begins must be in it.
func caseUndeliveredMoving(t *testing.T, open func(testing.TB, Options) testBus) {
	const batches = 300
	b := open(t, Options{Check: answering(Commit), Logger: quiet(), BatchMessages: 8})
	send(t, b, newBatch(1), Commit) // connected
	in := newInbox()
	consume(t, b, in.handle, answering(Unknown))
	var mu sync.Mutex
	stored := map[sale.ID]*sale.Batch{} // as half message, or further
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		for i := range batches {
			batch := newBatch(1)
			err := b.Send(t.Context(), batch, func() Decision {
				mu.Lock()
				defer mu.Unlock()
				stored[batch.ID] = batch
				return []Decision{Commit, Unknown}[i%2] // an unknown one commits when asked
			})
			if err != nil {
				t.Error(err)
				return
			}
		}
	}()
	for rounds, began := 0, time.Now(); ; rounds++ {
		require.Less(t, time.Since(began), patience, "%d of %d taken", in.len(), batches+1)
		mu.Lock()
		var missing []*sale.Batch
		for id, batch := range stored {
			if in.get(id) == nil {
				missing = append(missing, batch)
			}
		}
		mu.Unlock()
		got, _ := list(t, b, "spring")
		for _, batch := range missing {
			// What was taken while the list was read may be in it or not.
			if _, listed := got[batch.ID]; !listed {
				require.NotNil(t, in.get(batch.ID), "round %d: batch %v was stored, is not taken, and is not listed", rounds, batch.ID)
			}
		}
		select {
		case <-sent:
			if in.len() > batches {
				return
			}
		default:
		}
	}
}
