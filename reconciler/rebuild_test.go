package reconciler

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"flashgate/internal/bus"
	"flashgate/internal/ledger"
	"flashgate/internal/purchase"
	"flashgate/internal/sale"
	"flashgate/internal/stock"
	"flashgate/internal/storetest"
)

// listing is a bus whose list a test makes.
type listing func(ctx context.Context, saleID string, each func([]sale.Batch) error) error

func (l listing) Undelivered(ctx context.Context, saleID string, each func([]sale.Batch) error) error {
	return l(ctx, saleID, each)
}

var errBusAway = errors.New("the bus is away")

// brokenBus cannot be read.
var brokenBus = listing(func(context.Context, string, func([]sale.Batch) error) error { return errBusAway })

// persist does what a worker does: the ledger first, then Redis, which may not be ready.
// It reports whether Redis has settled it. (A load has a goroutine of its own, which no
// check of a test may end: what runs there asserts, and goes on.)
func persist(t assert.TestingT, s *storetest.Stores, b *sale.Batch) bool {
	ctx := context.Background()
	_, err := s.Ledger.Apply(ctx, []sale.Batch{*b})
	assert.NoError(t, err)
	settled, err := s.Stock.Settle(ctx, b.SaleID, []sale.ID{b.ID}, s.Ledger.ActiveOrders)
	if err != nil {
		assert.ErrorIs(t, err, stock.ErrNotReady)
		return false
	}
	assert.NoError(t, s.Ledger.MarkSettled(ctx, settled))
	return true
}

func loadNow(t *testing.T, r *Reconciler, saleID string) {
	t.Helper()
	loaded, err := r.Load(context.Background(), saleID)
	require.NoError(t, err)
	require.True(t, loaded)
}

func TestRebuildMissesNothingThatMoves(t *testing.T) {
	storetest.Each(t, func(t *testing.T, s *storetest.Stores) {
		t.Run("consumed after the ledger was read, before the bus was", func(t *testing.T) {
			sl := s.LoadedSale(10, 2)
			b := s.Batch(sl, 0, "a", "b")
			s.Confirm(sl, b)
			s.LoseRedis(sl.ID)
			loadNow(t, newReconciler(s, func(o *Options) {
				o.Lister = listing(func(context.Context, string, func([]sale.Batch) error) error {
					assert.False(t, persist(t, s, b), "what is not loaded cannot be settled")
					return nil
				})
			}), sl.ID)
			require.Equal(t, int64(8), s.Snapshot(sl.ID).Stock)
			newReconciler(s).Round(context.Background())
			audited(t, s, sl.ID)
		})
		t.Run("consumed after the bus was read", func(t *testing.T) {
			sl := s.LoadedSale(10, 2)
			b := s.Batch(sl, 0, "a", "b")
			s.Confirm(sl, b)
			s.LoseRedis(sl.ID)
			loadNow(t, newReconciler(s, func(o *Options) {
				o.Lister = listing(func(_ context.Context, _ string, each func([]sale.Batch) error) error {
					if err := each([]sale.Batch{*b}); err != nil {
						return err
					}
					assert.False(t, persist(t, s, b))
					return nil
				})
			}), sl.ID)
			snap := s.Snapshot(sl.ID)
			require.Equal(t, int64(8), snap.Stock, "once")
			newReconciler(s).Round(context.Background())
			require.Zero(t, s.Snapshot(sl.ID).Batches, "settled as owed")
			audited(t, s, sl.ID)
		})
		t.Run("settled on an old master that was cut off", func(t *testing.T) {
			sl := s.LoadedSale(10, 2)
			b := s.Batch(sl, 0, "a", "b")
			s.Confirm(sl, b)
			s.LoseRedis(sl.ID)
			loadNow(t, newReconciler(s, func(o *Options) {
				o.Lister = listing(func(ctx context.Context, _ string, _ func([]sale.Batch) error) error {
					s.Apply(b)
					return s.Ledger.MarkSettled(ctx, []sale.ID{b.ID})
				})
			}), sl.ID)
			require.Equal(t, int64(8), s.Snapshot(sl.ID).Stock)
			audited(t, s, sl.ID)
		})
		t.Run("a dead batch was promised too", func(t *testing.T) {
			sl := s.LoadedSale(10, 2)
			b := s.Batch(sl, 0, "a", "b")
			s.Confirm(sl, b)
			body, err := bus.Encode(b)
			require.NoError(t, err)
			for message, dead := range map[string]ledger.DeadBatch{
				"1": {BatchID: b.ID, SaleID: sl.ID, Body: body}, "2": {SaleID: sl.ID, Body: []byte("{")}, "3": {Body: []byte("{")},
			} {
				dead.MessageID, dead.Error = sl.ID+message, "spoiled"
				require.NoError(t, s.Ledger.AddDeadBatch(context.Background(), &dead))
			}
			s.LoseRedis(sl.ID)
			loadNow(t, newReconciler(s), sl.ID)
			require.Equal(t, int64(8), s.Snapshot(sl.ID).Stock)
			state, err := s.Stock.Confirm(context.Background(), b)
			require.NoError(t, err)
			require.Equal(t, stock.StateConfirmed, state)
		})
	})
}

// TestRebuildOutlivesEveryLoss: a load that is broken at any point leaves the sale not
// ready, and the next one, wherever it runs, makes it whole.
func TestRebuildOutlivesEveryLoss(t *testing.T) {
	type scene struct {
		*storetest.Stores
		sale   *sale.Sale
		cancel context.CancelFunc
	}
	type step struct {
		name         string
		before, then func(*scene)
	}
	lose := func(sc *scene) { sc.LoseRedis(sc.sale.ID) }
	kill := func(sc *scene) { sc.cancel() }
	// As a failover does to what the replica did not have: some steps are there, some not.
	forget := func(sc *scene) {
		meta := "fg:{" + sc.sale.ID + "}:meta"
		assert.NoError(sc.T, sc.Redis.Do(context.Background(), sc.Redis.B().Hincrby().Key(meta).Field("steps").Increment(-1).Build()).Error())
	}
	storetest.Each(t, func(t *testing.T, s *storetest.Stores) {
		for _, c := range []step{
			{"the leader is killed before the bus is read", kill, nil},
			{"the leader is killed after the bus was read", nil, kill},
			{"Redis is lost again before the bus is read", lose, nil},
			{"Redis is lost again after the bus was read", nil, lose},
			{"a failover forgets a step", forget, nil},
			{"a failover forgets the last step", nil, forget},
		} {
			t.Run(c.name, func(t *testing.T) {
				sl := s.LoadedSale(10, 2)
				settled, onBus := s.Batch(sl, 0, "a"), s.Batch(sl, 0, "b", "c")
				s.Sell(sl, settled)
				s.Confirm(sl, onBus)
				s.LoseRedis(sl.ID)
				ctx, cancel := context.WithCancel(context.Background())
				defer cancel()
				at := &scene{s, sl, cancel}
				run := func(f func(*scene)) {
					if f != nil {
						f(at)
					}
				}
				_, err := newReconciler(s, func(o *Options) {
					o.Lister = listing(func(ctx context.Context, _ string, each func([]sale.Batch) error) error {
						run(c.before)
						if err := each([]sale.Batch{*onBus}); err != nil {
							return err
						}
						run(c.then)
						return ctx.Err()
					})
				}).Load(ctx, sl.ID)
				require.Error(t, err)
				require.False(t, s.Snapshot(sl.ID).Loaded, "a part of a sale is not sold")

				next := newReconciler(s, func(o *Options) { o.Lister = undelivered{*onBus} })
				next.Round(context.Background())
				require.NoError(t, next.rebuilt(context.Background(), sl.ID))
				snap := s.Snapshot(sl.ID)
				require.True(t, snap.Loaded)
				require.Equal(t, int64(7), snap.Stock)
				require.Equal(t, int64(3), snap.Held)
				persist(t, s, onBus)
				audited(t, s, sl.ID)
			})
		}
		t.Run("a second leader overtakes the first", func(t *testing.T) {
			sl := s.LoadedSale(10, 2)
			onBus := s.Batch(sl, 0, "b", "c")
			s.Confirm(sl, onBus)
			s.LoseRedis(sl.ID)
			loaded, err := newReconciler(s, func(o *Options) {
				o.Lister = listing(func(context.Context, string, func([]sale.Batch) error) error {
					loaded, err := newReconciler(s, func(o *Options) { o.Lister = undelivered{*onBus} }).Load(context.Background(), sl.ID)
					assert.True(t, loaded)
					return err
				})
			}).Load(context.Background(), sl.ID)
			require.NoError(t, err)
			require.False(t, loaded, "the later epoch has it")
			require.Equal(t, int64(8), s.Snapshot(sl.ID).Stock)
		})
		t.Run("a bus that cannot be read keeps the sale from selling", func(t *testing.T) {
			sl := s.LoadedSale(10, 2)
			s.LoseRedis(sl.ID)
			r := newReconciler(s, func(o *Options) { o.Lister = brokenBus })
			_, err := r.Load(context.Background(), sl.ID)
			require.ErrorIs(t, err, errBusAway)
			require.False(t, s.Snapshot(sl.ID).Loaded)
			s.Exec("UPDATE sales SET status = 'DRAFT' WHERE id = ?", sl.ID)
			loadNow(t, r, sl.ID) // a draft has sold nothing, and needs no bus
		})
	})
}

// TestRebuildMeetsTheOldEpoch: what gateways, check-backs and workers still do for what was
// reserved before the loss.
func TestRebuildMeetsTheOldEpoch(t *testing.T) {
	ctx := context.Background()
	storetest.Each(t, func(t *testing.T, s *storetest.Stores) {
		check := purchase.Checker(s.Stock, nil)
		t.Run("a confirm of what the bus had is a promise", func(t *testing.T) {
			sl := s.LoadedSale(10, 2)
			b := s.Batch(sl, 0, "a")
			s.Reserve(sl, b, time.Minute)
			s.LoseRedis(sl.ID)
			require.Equal(t, bus.Unknown, check(ctx, b), "till it is rebuilt nobody knows")
			loadNow(t, newReconciler(s, func(o *Options) { o.Lister = undelivered{*b} }), sl.ID)
			state, err := s.Stock.Confirm(ctx, b)
			require.NoError(t, err)
			require.Equal(t, stock.StateConfirmed, state)
			require.Equal(t, bus.Commit, check(ctx, b))
			require.Equal(t, int64(9), s.Snapshot(sl.ID).Stock)
		})
		t.Run("a confirm of what came late is refused, and its check-back adopts it", func(t *testing.T) {
			sl := s.LoadedSale(10, 2)
			b := s.Batch(sl, 0, "a")
			s.Reserve(sl, b, time.Minute)
			s.LoseRedis(sl.ID)
			loadNow(t, newReconciler(s), sl.ID)
			state, err := s.Stock.Confirm(ctx, b)
			require.NoError(t, err)
			require.Equal(t, stock.StateOtherEpoch, state)
			require.Equal(t, int64(10), s.Snapshot(sl.ID).Stock)
			require.Equal(t, bus.Commit, check(ctx, b))
			require.Equal(t, bus.Commit, check(ctx, b), "again")
			require.Equal(t, int64(9), s.Snapshot(sl.ID).Stock)
			require.True(t, persist(t, s, b))
			audited(t, s, sl.ID)
		})
		t.Run("a commit that comes late is adopted by the worker", func(t *testing.T) {
			sl := s.LoadedSale(10, 2)
			b := s.Batch(sl, 0, "a")
			s.Confirm(sl, b)
			s.LoseRedis(sl.ID)
			loadNow(t, newReconciler(s), sl.ID)
			require.True(t, persist(t, s, b))
			require.Equal(t, int64(9), s.Snapshot(sl.ID).Stock)
			audited(t, s, sl.ID)
		})
	})
}

// TestRebuildWaitsForHalfMessages: the bus is read only when what a gateway had in hand must
// be on it. A draft does not wait.
func TestRebuildWaitsForHalfMessages(t *testing.T) {
	const wait = 300 * time.Millisecond
	s := storetest.Embedded(t)
	sl := s.LoadedSale(10, 2)
	s.LoseRedis(sl.ID)
	began := time.Now()
	r := newReconciler(s, func(o *Options) {
		o.RebuildWait = wait
		o.Lister = listing(func(context.Context, string, func([]sale.Batch) error) error {
			assert.GreaterOrEqual(t, time.Since(began), wait)
			return nil
		})
	})
	loadNow(t, r, sl.ID)
	require.GreaterOrEqual(t, time.Since(began), wait)
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	s.LoseRedis(sl.ID)
	_, err := r.Load(ended, sl.ID)
	require.ErrorIs(t, err, context.Canceled)
}

// TestARebuildKeepsNoOtherSaleWaiting: rounds go on beside it, and begin it once.
func TestARebuildKeepsNoOtherSaleWaiting(t *testing.T) {
	ctx := context.Background()
	storetest.Each(t, func(t *testing.T, s *storetest.Stores) {
		lost, other := s.LoadedSale(10, 2), s.LoadedSale(10, 2)
		s.LoseRedis(lost.ID)
		s.Reserve(other, s.Batch(other, 0, "a"), time.Millisecond)
		reading, goOn, reads := make(chan struct{}), make(chan struct{}), 0
		r := newReconciler(s, func(o *Options) {
			o.Lister = listing(func(context.Context, string, func([]sale.Batch) error) error {
				if reads++; reads == 1 {
					close(reading)
				}
				<-goOn
				return nil
			})
		})
		r.Round(ctx)
		<-reading
		require.Eventually(t, func() bool {
			r.Round(ctx)
			return s.Snapshot(other.ID).Stock == 10
		}, 30*time.Second, 10*time.Millisecond, "invariant 7")
		close(goOn)
		require.NoError(t, r.rebuilt(ctx, lost.ID))
		require.True(t, s.Snapshot(lost.ID).Loaded)
		require.Equal(t, 1, reads)
	})
}

// TestAFailedRebuildRests: each try reads the whole sale, so a round does not begin one a
// second while the bus is away.
func TestAFailedRebuildRests(t *testing.T) {
	ctx := context.Background()
	s := storetest.Embedded(t)
	sl := s.LoadedSale(10, 2)
	s.LoseRedis(sl.ID)
	tries := 0
	r := newReconciler(s, func(o *Options) {
		o.Lister = listing(func(context.Context, string, func([]sale.Batch) error) error { tries++; return errBusAway })
	})
	for range 3 {
		r.Round(ctx)
		require.ErrorIs(t, r.rebuilt(ctx, sl.ID), errBusAway)
	}
	require.Equal(t, 1, tries)
	_, err := r.Load(ctx, sl.ID) // who asks for it does not wait
	require.ErrorIs(t, err, errBusAway)
	require.Equal(t, 2, tries)
}

func TestManyRebuildsAreBounded(t *testing.T) {
	s := storetest.Embedded(t)
	var mu sync.Mutex
	now, most := 0, 0
	entered, leave := make(chan struct{}, 4*maxLoads), make(chan struct{})
	r := newReconciler(s, func(o *Options) {
		o.Lister = listing(func(context.Context, string, func([]sale.Batch) error) error {
			mu.Lock()
			now++
			most = max(most, now)
			mu.Unlock()
			entered <- struct{}{}
			<-leave // as many as may be are in at once
			mu.Lock()
			now--
			mu.Unlock()
			return nil
		})
	})
	var sales []*sale.Sale
	for range 4 * maxLoads {
		sales = append(sales, s.Sale(10, 2))
	}
	r.Round(context.Background())
	for range maxLoads {
		<-entered
	}
	close(leave)
	for _, sl := range sales {
		require.NoError(t, r.rebuilt(context.Background(), sl.ID))
		require.True(t, s.Snapshot(sl.ID).Loaded)
	}
	require.LessOrEqual(t, most, maxLoads)
}

// TestRebuildIsExact: batches at every stage of their way, which go on while the sale is
// rebuilt. Afterwards every order that was promised holds its unit, once, and so it stays
// when all has been delivered.
func TestRebuildIsExact(t *testing.T) {
	t.Parallel()
	s := storetest.Embedded(t)
	rapid.Check(t, func(t *rapid.T) {
		const (
			half      = iota // stored, no end known; confirmed, so it was promised
			committed        // on the bus, to be delivered
			taken            // in the ledger, not settled
			settled
			dead
		)
		ctx := context.Background()
		sl := s.LoadedSale(1_000, 5)
		type going struct {
			*sale.Batch
			stage int
		}
		var all []*going
		advance := func(b *going) {
			switch b.stage {
			case half:
				b.stage = committed
			case committed:
				if rapid.IntRange(0, 9).Draw(t, "dies") == 0 {
					body, err := bus.Encode(b.Batch)
					assert.NoError(t, err)
					assert.NoError(t, s.Ledger.AddDeadBatch(ctx, &ledger.DeadBatch{
						MessageID: b.ID.String(), BatchID: b.ID, SaleID: sl.ID, Body: body, Error: "spoiled",
					}))
					b.stage = dead
				} else {
					b.stage = taken
					if persist(t, s, b.Batch) {
						b.stage = settled
					}
				}
			}
		}
		units := int64(0)
		for i := range rapid.IntRange(1, 12).Draw(t, "batches") {
			b := &going{Batch: s.Batch(sl, 0, fmt.Sprint("u", i), fmt.Sprint("v", i))}
			units += int64(len(b.Orders))
			s.Confirm(sl, b.Batch)
			for range rapid.IntRange(0, 2).Draw(t, "gone") {
				advance(b)
			}
			all = append(all, b)
		}
		some := func(when string) {
			for _, b := range all {
				for range rapid.IntRange(0, 2).Draw(t, when) {
					advance(b)
				}
			}
		}
		s.LoseRedis(sl.ID)
		r := newReconciler(s, func(o *Options) {
			o.Lister = listing(func(_ context.Context, _ string, each func([]sale.Batch) error) error {
				some("after the ledger's orders")
				for _, stage := range []int{half, committed} { // in the direction in which they go
					for _, b := range all {
						if b.stage == stage {
							if err := each([]sale.Batch{*b.Batch}); err != nil {
								return err
							}
						}
					}
					some("after a part of the bus")
				}
				return nil
			})
		})
		loaded, err := r.Load(ctx, sl.ID)
		require.NoError(t, err)
		require.True(t, loaded)
		snap := s.Snapshot(sl.ID)
		require.Equal(t, units, snap.Held)
		require.Equal(t, 1_000-units, snap.Stock)
		for _, b := range all {
			for range 3 {
				advance(b)
			}
		}
		r.Round(ctx)
		snap = s.Snapshot(sl.ID)
		require.Equal(t, units, snap.Held, "when all is delivered")
		require.Equal(t, 1_000-units, snap.Stock)
	})
}
