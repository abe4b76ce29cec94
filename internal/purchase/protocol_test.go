package purchase

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"flashgate/internal/bus"
	"flashgate/internal/sale"
	"flashgate/internal/stock"
)

func TestWinnersAreToldOnceTheirBatchIsConfirmed(t *testing.T) {
	w := newWorld(t, 3)
	var requests []*Request
	var ids []sale.ID
	for i := range 5 {
		q := w.request(fmt.Sprintf("u%d", i), "", 1)
		requests, ids = append(requests, q), append(ids, q.Order.ID)
	}
	answers := w.buy(requests...)
	for i, a := range answers {
		if i < 3 {
			require.Equal(t, Answer{OrderID: ids[i], Quantity: 1, AmountCents: 100}, a)
		} else {
			require.Equal(t, Answer{Code: sale.CodeSoldOut}, a)
		}
	}
	require.Len(t, w.halves, 1, "one half message a batch")
	require.Len(t, w.committed(), 3, "it carries the winners only")
	w.rest()
	w.conserved()
}

func TestABatchWithoutWinnersSendsNothing(t *testing.T) {
	w := newWorld(t, 1)
	w.buy(w.request("a", "", 1))
	answers := w.buy(w.request("b", "", 1), w.request("c", "", 1))
	require.Equal(t, sale.CodeSoldOut, answers[0].Code)
	require.Len(t, w.halves, 1)
}

func TestReplays(t *testing.T) {
	t.Run("in the same batch", func(t *testing.T) {
		w := newWorld(t, 10)
		answers := w.buy(w.request("a", "k", 2), w.request("a", "k", 2))
		require.Empty(t, answers[0].Code)
		require.False(t, answers[0].Replayed)
		require.True(t, answers[1].Replayed)
		require.Equal(t, answers[0].OrderID, answers[1].OrderID)
		require.Len(t, w.committed(), 1)
	})
	t.Run("of a batch that failed with its twin", func(t *testing.T) {
		w := newWorld(t, 10)
		w.faults["half"] = []fault{before}
		for _, a := range w.buy(w.request("a", "k", 1), w.request("a", "k", 1)) {
			require.Equal(t, sale.CodeUnavailable, a.Code)
		}
	})
	t.Run("of a confirmed order", func(t *testing.T) {
		w := newWorld(t, 1)
		first := w.buy(w.request("a", "k", 1))[0]
		again := w.buy(w.request("a", "k", 1))[0]
		require.Equal(t, Answer{OrderID: first.OrderID, Quantity: 1, AmountCents: 100, Replayed: true}, again)
	})
	t.Run("of a settled order", func(t *testing.T) {
		w := newWorld(t, 1)
		first := w.buy(w.request("a", "k", 1))[0]
		w.rest()
		w.redis.SetTime(time.Time{})
		again := w.buy(w.request("a", "k", 1))[0]
		require.Equal(t, first.OrderID, again.OrderID)
		require.True(t, again.Settled)
	})
	t.Run("of a cancelled order", func(t *testing.T) {
		w := newWorld(t, 1)
		first := w.buy(w.request("a", "k", 1))[0]
		w.rest()
		o := w.committed()[first.OrderID]
		_, err := w.store.Restore(context.Background(), &o, 1)
		require.NoError(t, err)
		again := w.buy(w.request("a", "k", 1))[0]
		require.Equal(t, first.OrderID, again.OrderID)
		require.True(t, again.Returned)
	})
	t.Run("with another quantity", func(t *testing.T) {
		w := newWorld(t, 10)
		w.buy(w.request("a", "k", 1))
		require.Equal(t, sale.CodeKeyReused, w.buy(w.request("a", "k", 2))[0].Code)
	})
}

func TestAReplayWaitsForAnOpenReservation(t *testing.T) {
	for _, c := range []struct {
		name  string
		ends  func(w *world, b *sale.Batch)
		wants func(t *testing.T, first sale.ID, a Answer)
	}{
		{"that is confirmed", func(w *world, b *sale.Batch) {
			_, err := w.store.Confirm(context.Background(), b)
			require.NoError(w.t, err)
		}, func(t *testing.T, first sale.ID, a Answer) {
			require.Empty(t, a.Code)
			require.Equal(t, first, a.OrderID)
			require.True(t, a.Replayed)
		}},
		{"that is released", func(w *world, b *sale.Batch) {
			_, err := w.store.Release(context.Background(), b.SaleID, b.ID, b.Epoch, b.Orders)
			require.NoError(w.t, err)
		}, func(t *testing.T, first sale.ID, a Answer) {
			require.Empty(t, a.Code, "the key may buy again")
			require.NotEqual(t, first, a.OrderID, "under a new order id")
			require.False(t, a.Replayed)
		}},
		{"that stays open", func(*world, *sale.Batch) {}, func(t *testing.T, _ sale.ID, a Answer) {
			require.Equal(t, sale.CodeOutcomeUnknown, a.Code)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, 5)
			first := w.request("a", "k", 1)
			b := &sale.Batch{ID: w.p.o.IDs.Next(0), SaleID: w.sale.ID, Orders: []sale.Order{first.Order}}
			out := make([]stock.Outcome, 1)
			var err error
			b.Epoch, err = w.store.Reserve(context.Background(), b, stock.Terms{
				StartsAt: w.sale.StartsAt, EndsAt: w.sale.EndsAt, PerUserLimit: 2,
			}, time.Minute, out)
			require.NoError(t, err)

			q := w.request("a", "k", 1)
			answer := make(chan Answer, 1)
			go func() { answer <- q.Wait() }()
			w.p.Run(context.Background(), &w.sale, []*Request{q})
			require.Empty(t, answer, "no answer while the outcome is open")
			c.ends(w, b)
			c.wants(t, b.Orders[0].ID, <-answer)
			w.p.Wait()
		})
	}
}

// TestEveryFaultAtEveryStep lets each call of the protocol fail in each way, alone
// and together, and then has a sweeper, a check-back and a worker put the rest in
// order. Whatever was answered must be true for ever after (invariants 2, 5, 6, 9).
func TestEveryFaultAtEveryStep(t *testing.T) {
	all := []fault{works, refused, before, after, late}
	for _, reserve := range all {
		for _, half := range all {
			for _, confirm := range all {
				for _, again := range all { // what a second confirm meets
					for _, release := range all {
						// A step after one that failed is not reached.
						if reserve != works && (half != works || confirm != works) ||
							half != works && confirm != works || confirm == works && again != works {
							continue
						}
						name := fmt.Sprintf("reserve %s, half %s, confirm %s then %s, release %s", reserve, half, confirm, again, release)
						t.Run(name, func(t *testing.T) {
							t.Parallel()
							w := newWorld(t, 2)
							w.faults["reserve"] = []fault{reserve}
							w.faults["half"] = []fault{half}
							w.faults["confirm"] = []fault{confirm, again}
							w.faults["release"] = []fault{release}
							a := w.buy(w.request("a", "k", 1))[0]
							if a.Code == sale.CodeUnavailable {
								require.Zero(t, w.held(), "UNAVAILABLE says that nothing is reserved, now")
							}
							w.rest()
							w.conserved()
							switch _, sold := w.committed()[a.OrderID]; a.Code {
							case "":
								require.True(t, sold, "202 is a promise")
							case sale.CodeUnavailable:
								require.Empty(t, w.committed(), "UNAVAILABLE says that nothing was reserved")
							case sale.CodeOutcomeUnknown:
							default:
								t.Fatalf("%s is not an answer to a fault", a.Code)
							}
						})
					}
				}
			}
		}
	}
}

func TestConfirmIsAskedAgainUntilTheDeadline(t *testing.T) {
	w := newWorld(t, 2)
	w.faults["confirm"] = []fault{before, after, before}
	require.Empty(t, w.buy(w.request("a", "k", 1))[0].Code)

	w.faults["confirm"] = always(after)
	q := w.request("b", "k", 1)
	a := w.buy(q)[0]
	require.Equal(t, sale.CodeOutcomeUnknown, a.Code)
	w.rest()
	require.Len(t, w.committed(), 2, "it had run: the check-back commits it")
	w.redis.SetTime(time.Time{})
	again := w.buy(w.request("b", "k", 1))[0]
	require.True(t, again.Replayed, "and the retry finds out")
}

func always(f fault) []fault {
	var faults []fault
	for range 100 {
		faults = append(faults, f)
	}
	return faults
}

// TestAReplayNeedsTheReplicas: that Redis says CONFIRMED is not enough, since the
// gateway that wrote it may have died before it was on a replica.
func TestAReplayNeedsTheReplicas(t *testing.T) {
	w := newWorld(t, 2)
	require.Empty(t, w.buy(w.request("a", "k", 1))[0].Code)
	w.faults["confirm"] = always(after)
	require.True(t, w.buy(w.request("a", "k", 1))[0].Replayed, "who had the replicas' word needs it no more")
	w.p.confirmed = confirmed{} // another gateway
	require.Equal(t, sale.CodeOutcomeUnknown, w.buy(w.request("a", "k", 1))[0].Code)
}

// The latest batches are remembered, under the epoch in which they were confirmed.
func TestConfirmedIsBounded(t *testing.T) {
	var c confirmed
	for id := sale.ID(1); id <= confirmedMax+10; id++ {
		c.add(id, 1)
		c.add(id, 1)
	}
	require.Len(t, c.epochs, confirmedMax)
	require.False(t, c.has(10, 1))
	require.True(t, c.has(11, 1))
	require.True(t, c.has(confirmedMax+10, 1))
	require.False(t, c.has(confirmedMax+10, 2), "a rebuild is another world")
	c.add(11, 2)
	require.True(t, c.has(11, 2))
	require.Len(t, c.epochs, confirmedMax)
}

func TestAnUnknownConfirmIsAnsweredBeforeTheDeadline(t *testing.T) {
	w := newWorld(t, 2)
	w.faults["confirm"] = always(before)
	q := w.request("a", "k", 1)
	answered := make(chan Answer, 1)
	go func() { answered <- q.Wait() }()
	w.p.Run(context.Background(), &w.sale, []*Request{q})
	require.NotEqual(t, int32(abandoned), q.state.Load(), "the shopper was still there")
	require.Equal(t, sale.CodeOutcomeUnknown, (<-answered).Code)
}

func TestASweptReservationIsGone(t *testing.T) {
	w := newWorld(t, 2)
	w.between = func() {
		for id := range w.halves {
			_, err := w.store.Release(context.Background(), w.sale.ID, id, 0, nil)
			require.NoError(t, err)
		}
	}
	require.Equal(t, sale.CodeUnavailable, w.buy(w.request("a", "k", 1))[0].Code)
	for _, h := range w.halves {
		require.Equal(t, bus.Rollback, h.state)
	}
	w.rest()
	w.conserved()
}

// stopped is a breaker that is open.
type stopped struct{}

func (stopped) Do(context.Context, func(context.Context) error) error { return errors.New("open") }
func (stopped) Open() bool                                            { return true }

func TestAnOpenBreakerRefusesBeforeAnythingIsReserved(t *testing.T) {
	for name, open := range map[string]func(*Options){
		"bus":   func(o *Options) { o.BusBreaker = stopped{} },
		"redis": func(o *Options) { o.RedisBreaker = stopped{} },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 2)
			open(&w.p.o)
			require.Equal(t, sale.CodeUnavailable, w.buy(w.request("a", "k", 1))[0].Code)
			snap, err := w.store.Snapshot(context.Background(), w.sale.ID)
			require.NoError(t, err)
			require.Equal(t, int64(2), snap.Stock)
			require.Empty(t, w.halves)
			// The first batch tried the bus out; the next ones do not even reserve.
			require.Equal(t, sale.CodeUnavailable, w.buy(w.request("a", "k", 1))[0].Code)
			after, err := w.store.Snapshot(context.Background(), w.sale.ID)
			require.NoError(t, err)
			require.Equal(t, snap.Batches, after.Batches)
		})
	}
}

func TestAnUnloadedSaleSellsNothing(t *testing.T) {
	w := newWorld(t, 2)
	w.redis.Del("fg:{s}:stock")
	require.Equal(t, sale.CodeUnavailable, w.buy(w.request("a", "k", 1))[0].Code)
	require.Empty(t, w.halves)
	b := sale.Batch{ID: 5, SaleID: "s", Epoch: 1, Orders: []sale.Order{{ID: 6, SaleID: "s", UserID: "a", Quantity: 1}}}
	require.Equal(t, bus.Unknown, Checker(w.store, nil)(context.Background(), &b), "a check-back waits for the load")
}

func TestACheckBackAfterARebuildAdopts(t *testing.T) {
	w := newWorld(t, 2)
	order := sale.Order{ID: w.p.o.IDs.Next(0), SaleID: "s", UserID: "a", RequestKey: "k", Quantity: 2}
	old := sale.Batch{ID: w.p.o.IDs.Next(0), SaleID: "s", Epoch: 77, Orders: []sale.Order{order}}
	check := Checker(w.store, nil)
	require.Equal(t, bus.Commit, check(context.Background(), &old), "it may have been promised before Redis was rebuilt")
	require.Equal(t, bus.Commit, check(context.Background(), &old))
	snap, err := w.store.Snapshot(context.Background(), "s")
	require.NoError(t, err)
	require.Equal(t, int64(0), snap.Stock)
	require.Equal(t, int64(2), snap.Held)

	unknown := sale.Batch{ID: w.p.o.IDs.Next(0), SaleID: "s", Epoch: 1, Orders: []sale.Order{{ID: 9, SaleID: "s", UserID: "b", Quantity: 1}}}
	require.Equal(t, bus.Rollback, check(context.Background(), &unknown), "same epoch: it never was, and now never will be")
}
