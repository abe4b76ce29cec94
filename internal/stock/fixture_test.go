package stock

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/stretchr/testify/require"

	"flashgate/internal/enginetest"
	"flashgate/internal/sale"
)

// An engine is one of those that the suite holds to the same rules.
type engine struct {
	name string
	open func(t testing.TB) *Store
}

var engines = []engine{
	{"miniredis", openMiniredis},
	{"redis cluster", openCluster},
}

func openMiniredis(t testing.TB) *Store {
	t.Helper()
	return open(t, Options{Addresses: []string{miniredis.RunT(t).Addr()}})
}

// clusterOptions are those of the test cluster: one replica a master. The time-outs
// leave room for a machine that runs several packages' tests at once.
func clusterOptions(t testing.TB) Options {
	t.Helper()
	return Options{
		Addresses: enginetest.Redis(t), Cluster: true, WaitReplicas: 1,
		WaitTimeout: 10 * time.Second, CallTimeout: 10 * time.Second,
	}
}

func openCluster(t testing.TB) *Store {
	t.Helper()
	return open(t, clusterOptions(t))
}

func open(t testing.TB, opts Options) *Store {
	t.Helper()
	s, err := Open(opts)
	require.NoError(t, err)
	t.Cleanup(s.Close)
	return s
}

// fixture is one sale on one engine, with what a gateway knows of it.
type fixture struct {
	*Store
	sale  sale.Sale
	terms Terms
	ids   *sale.IDs
}

const testEpoch = 7

func newSaleID(t testing.TB) string {
	t.Helper()
	b := make([]byte, 8)
	_, err := rand.Read(b)
	require.NoError(t, err)
	return "stock-" + hex.EncodeToString(b)
}

// newFixture is a sale that is not loaded yet.
func newFixture(t testing.TB, s *Store) *fixture {
	t.Helper()
	now := time.Now()
	f := &fixture{
		Store: s,
		sale: sale.Sale{
			ID: newSaleID(t), Total: 10, PerUserLimit: 3, Version: 1, Epoch: testEpoch,
			StartsAt: now.Add(-time.Hour), EndsAt: now.Add(time.Hour),
		},
		ids: sale.NewIDs(1, time.Now),
	}
	f.terms = Terms{StartsAt: f.sale.StartsAt, EndsAt: f.sale.EndsAt, PerUserLimit: f.sale.PerUserLimit}
	// Not t.Context(), which is cancelled by now.
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		for _, k := range keysOf(f.sale.ID, wholeSale, allKeys...) {
			_ = s.client.Do(ctx, s.client.B().Unlink().Key(k).Build()).Error() // the engine may be gone on purpose
		}
	})
	return f
}

// loadedFixture is a sale of total units, loaded and open.
func loadedFixture(t testing.TB, s *Store, total int64) *fixture {
	t.Helper()
	f := newFixture(t, s)
	f.sale.Total = total
	f.mustLoad(t, LoadSource{})
	return f
}

func (f *fixture) mustLoad(t testing.TB, source LoadSource) {
	t.Helper()
	loaded, err := f.Load(t.Context(), &f.sale, source)
	require.NoError(t, err)
	require.True(t, loaded)
}

func (f *fixture) order(user, requestKey string, quantity int) sale.Order {
	return sale.Order{
		ID: f.ids.Next(sale.ShardOf(user)), SaleID: f.sale.ID, UserID: user,
		RequestKey: requestKey, Quantity: quantity,
	}
}

func (f *fixture) batch(orders ...sale.Order) *sale.Batch {
	return &sale.Batch{ID: f.ids.Next(0), SaleID: f.sale.ID, Epoch: f.sale.Epoch, Orders: orders}
}

// reserve reserves b until an hour from now.
func (f *fixture) reserve(t testing.TB, b *sale.Batch) []Outcome {
	t.Helper()
	out := make([]Outcome, len(b.Orders))
	epoch, err := f.Reserve(t.Context(), b, f.terms, time.Hour, out)
	require.NoError(t, err)
	require.Equal(t, f.sale.Epoch, epoch)
	return out
}

// win reserves one order, which must win, in a batch of its own.
func (f *fixture) win(t testing.TB, user, requestKey string, quantity int) *sale.Batch {
	t.Helper()
	b := f.batch(f.order(user, requestKey, quantity))
	require.Equal(t, []Outcome{{Verdict: Reserved}}, f.reserve(t, b))
	return b
}

// sell wins, confirms and settles one order.
func (f *fixture) sell(t testing.TB, user, requestKey string, quantity int) *sale.Batch {
	t.Helper()
	b := f.win(t, user, requestKey, quantity)
	f.mustConfirm(t, b, StateConfirmed)
	settled, err := f.Settle(t.Context(), f.sale.ID, []sale.ID{b.ID}, f.noneActive(t))
	require.NoError(t, err)
	require.Equal(t, []sale.ID{b.ID}, settled)
	return b
}

func (f *fixture) mustConfirm(t testing.TB, b *sale.Batch, want State) {
	t.Helper()
	state, err := f.Confirm(t.Context(), b)
	require.NoError(t, err)
	require.Equal(t, want, state, "confirm: %v", state)
}

func (f *fixture) mustRelease(t testing.TB, b *sale.Batch, want State) {
	t.Helper()
	state, err := f.Release(t.Context(), f.sale.ID, b.ID, b.Epoch, b.Orders)
	require.NoError(t, err)
	require.Equal(t, want, state, "release: %v", state)
}

func (f *fixture) mustRestore(t testing.TB, o *sale.Order, batch sale.ID, want bool) {
	t.Helper()
	gaveBack, err := f.Restore(t.Context(), o, batch)
	require.NoError(t, err)
	require.Equal(t, want, gaveBack)
}

// lookup is the user's records, without the fields that repeat the question.
func (f *fixture) lookup(t testing.TB, user string) []Record {
	t.Helper()
	records, err := f.Lookup(t.Context(), f.sale.ID, user)
	require.NoError(t, err)
	return records
}

// counts checks what is free and held, and invariant 4a.
func (f *fixture) counts(t testing.TB, stock, held int64) Snapshot {
	t.Helper()
	snapshot, err := f.Snapshot(t.Context(), f.sale.ID)
	require.NoError(t, err)
	require.True(t, snapshot.Loaded)
	require.Equal(t, fmt.Sprintf("stock %d held %d", stock, held), fmt.Sprintf("stock %d held %d", snapshot.Stock, snapshot.Held))
	require.Equal(t, snapshot.Total, snapshot.Stock+snapshot.Held, "invariant 4a: stock + held = total")
	return snapshot
}

// batches is every unsettled batch.
func (f *fixture) batches(t testing.TB) map[sale.ID]BatchRecord {
	t.Helper()
	all := map[sale.ID]BatchRecord{}
	require.NoError(t, f.Batches(t.Context(), f.sale.ID, func(slice []BatchRecord) error {
		for _, b := range slice {
			all[b.ID] = b
		}
		return nil
	}))
	return all
}

// mustState checks what Redis holds of a batch; StateAbsent: nothing.
func (f *fixture) mustState(t testing.TB, id sale.ID, want State) {
	t.Helper()
	require.Equal(t, want.String(), f.batches(t)[id].State.String(), "batch")
}

type activeOrders = func(context.Context, []sale.ID) (map[sale.ID][]sale.Order, error)

// noneActive is a ledger that must not be asked.
func (f *fixture) noneActive(t testing.TB) activeOrders {
	return func(_ context.Context, ids []sale.ID) (map[sale.ID][]sale.Order, error) {
		t.Errorf("settle asked for the active orders of %v, which Redis holds", ids)
		return nil, nil
	}
}

// active is a ledger in which all orders of the batches are active.
func active(batches ...*sale.Batch) activeOrders {
	return func(_ context.Context, ids []sale.ID) (map[sale.ID][]sale.Order, error) {
		all := map[sale.ID][]sale.Order{}
		for _, id := range ids {
			for _, b := range batches {
				if b.ID == id {
					all[id] = b.Orders
				}
			}
		}
		return all, nil
	}
}

// A testCase is one rule, shown on a sale of ten units with a limit of three a user.
type testCase struct {
	name string
	run  func(t *testing.T, f *fixture)
}

// TestConformance holds both engines to the rules, one by one.
func TestConformance(t *testing.T) {
	for _, e := range engines {
		t.Run(e.name, func(t *testing.T) {
			s := e.open(t)
			for _, group := range []struct {
				name  string
				cases []testCase
			}{
				{"reserve", reserveCases}, {"confirm", confirmCases}, {"release", releaseCases},
				{"settle", settleCases}, {"adopt", adoptCases}, {"restore", restoreCases},
				{"lookup", lookupCases}, {"load", loadCases}, {"upkeep", upkeepCases}, {"watch", watchCases},
				{"soldout", soldOutCases},
			} {
				for _, c := range group.cases {
					t.Run(group.name+"/"+c.name, func(t *testing.T) {
						c.run(t, loadedFixture(t, s, 10))
					})
				}
			}
		})
	}
}

// TestNotLoaded: on a sale without a stock key every call but load says so and
// changes nothing.
func TestNotLoaded(t *testing.T) {
	for _, e := range engines {
		t.Run(e.name, func(t *testing.T) {
			s := e.open(t)
			for name, call := range map[string]func(*fixture, *sale.Batch) error{
				"reserve": func(f *fixture, b *sale.Batch) error {
					_, err := f.Reserve(t.Context(), b, f.terms, time.Hour, make([]Outcome, 1))
					return err
				},
				"confirm": func(f *fixture, b *sale.Batch) error { _, err := f.Confirm(t.Context(), b); return err },
				"release": func(f *fixture, b *sale.Batch) error {
					_, err := f.Release(t.Context(), b.SaleID, b.ID, b.Epoch, b.Orders)
					return err
				},
				"adopt": func(f *fixture, b *sale.Batch) error { _, err := f.Adopt(t.Context(), b); return err },
				"settle": func(f *fixture, b *sale.Batch) error {
					settled, err := f.Settle(t.Context(), b.SaleID, []sale.ID{b.ID}, active(b))
					require.Empty(t, settled)
					return err
				},
				"restore": func(f *fixture, b *sale.Batch) error {
					_, err := f.Restore(t.Context(), &b.Orders[0], b.ID)
					return err
				},
				"adjust":  func(f *fixture, b *sale.Batch) error { _, err := f.Adjust(t.Context(), b.SaleID, 11, 2); return err },
				"recount": func(f *fixture, b *sale.Batch) error { _, _, err := f.RepairCounts(t.Context(), b.SaleID); return err },
				"soldout": func(f *fixture, b *sale.Batch) error {
					_, err := f.SoldOut(t.Context(), b.SaleID, MaxLease, 10)
					return err
				},
				"sold-out buyers": func(f *fixture, b *sale.Batch) error {
					_, _, err := f.SoldOutBuyers(t.Context(), b.SaleID, MaxLease, 10)
					return err
				},
				"lookup": func(f *fixture, b *sale.Batch) error { _, err := f.Lookup(t.Context(), b.SaleID, "u"); return err },
				"due":    func(f *fixture, b *sale.Batch) error { _, err := f.Due(t.Context(), b.SaleID, 10); return err },
				"purge":  func(f *fixture, b *sale.Batch) error { _, err := f.PurgeVoids(t.Context(), b.SaleID, 0); return err },
				"states": func(f *fixture, b *sale.Batch) error {
					_, err := f.Records(t.Context(), b.SaleID, []string{"u"})
					return err
				},
				"amend": func(f *fixture, b *sale.Batch) error {
					_, err := f.Amend(t.Context(), b.SaleID, &Record{OrderID: 1, BatchID: 2, UserID: "u", Quantity: 1}, 2, false)
					return err
				},
				"batches by id": func(f *fixture, b *sale.Batch) error {
					_, err := f.BatchesByID(t.Context(), b.SaleID, []sale.ID{b.ID})
					return err
				},
				"records": func(f *fixture, b *sale.Batch) error {
					_, err := f.RecordsOf(t.Context(), b.SaleID, []string{"u"})
					return err
				},
				"batches": func(f *fixture, b *sale.Batch) error {
					return f.Batches(t.Context(), b.SaleID, func([]BatchRecord) error { return nil })
				},
				"buyers": func(f *fixture, b *sale.Batch) error {
					return f.Buyers(t.Context(), b.SaleID, func([]Record) error { return nil })
				},
			} {
				t.Run(name, func(t *testing.T) {
					f := newFixture(t, s)
					require.ErrorIs(t, call(f, f.batch(f.order("u", "k", 1))), ErrNotReady)
					for _, k := range keysOf(f.sale.ID, wholeSale, allKeys...) {
						n, err := s.client.Do(t.Context(), s.client.B().Exists().Key(k).Build()).AsInt64()
						require.NoError(t, err)
						require.Zero(t, n, "%s was written", k)
					}
				})
			}
			t.Run("snapshot", func(t *testing.T) {
				snapshot, err := s.Snapshot(t.Context(), newSaleID(t))
				require.NoError(t, err)
				require.False(t, snapshot.Loaded)
				require.WithinDuration(t, time.Now(), snapshot.Now, time.Minute)
			})
		})
	}
}
