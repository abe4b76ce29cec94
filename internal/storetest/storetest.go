// Package storetest gives tests that need both stores, Redis and the ledger, a pair
// of them: embedded, and real.
package storetest

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/hex"
	"path/filepath"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"flashgate/internal/enginetest"
	"flashgate/internal/ledger"
	"flashgate/internal/sale"
	"flashgate/internal/stock"
)

// callTimeoutSeconds is long: the machine that runs the tests may be busy.
const callTimeoutSeconds = 15

// Stores is a migrated ledger and a Redis, with what a test does to them.
type Stores struct {
	T      testing.TB
	Ledger *ledger.Ledger
	Stock  *stock.Store
	SQL    *sql.DB        // the ledger, past it
	Redis  rueidis.Client // Redis, past the store
	Nodes  []string       // host:port of Redis

	sources int // of ids
}

// Each runs f on the embedded engines and on the real ones.
func Each(t *testing.T, f func(t *testing.T, s *Stores)) {
	t.Run("embedded", func(t *testing.T) { f(t, Embedded(t)) })
	t.Run("real", func(t *testing.T) { f(t, Real(t)) })
}

// Real is MariaDB and the Redis Cluster.
func Real(t testing.TB) *Stores {
	return Open(t, ledger.Options{Driver: ledger.DriverMySQL, DSN: enginetest.MariaDB(t)},
		stock.Options{Addresses: enginetest.Redis(t), Cluster: true, WaitReplicas: 1})
}

// Embedded is SQLite and miniredis.
func Embedded(t testing.TB) *Stores {
	return Open(t, ledger.Options{Driver: ledger.DriverSQLite, DSN: filepath.Join(t.TempDir(), "ledger.db")},
		stock.Options{Addresses: []string{miniredis.RunT(t).Addr()}})
}

// Open is a pair of the caller's choosing.
func Open(t testing.TB, l ledger.Options, o stock.Options) *Stores {
	s := &Stores{T: t, Nodes: o.Addresses}
	var err error
	s.Ledger, err = ledger.Open(l)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Ledger.Close()) })
	_, err = s.Ledger.Migrate(context.Background())
	require.NoError(t, err)
	o.CallTimeout = callTimeoutSeconds * time.Second
	s.Stock, err = stock.Open(o)
	require.NoError(t, err)
	t.Cleanup(s.Stock.Close)
	s.SQL, err = sql.Open(l.Driver, l.DSN) // both drivers go by the names of the ledger's
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.SQL.Close()) })
	s.Redis, err = rueidis.NewClient(rueidis.ClientOption{InitAddress: o.Addresses, ForceSingleClient: !o.Cluster, DisableCache: true})
	require.NoError(t, err)
	t.Cleanup(s.Redis.Close)
	return s
}

// Exec changes the ledger by hand.
func (s *Stores) Exec(query string, args ...any) {
	s.T.Helper()
	_, err := s.SQL.Exec(query, args...)
	require.NoError(s.T, err)
}

// MoveStock changes the free units in Redis by hand.
func (s *Stores) MoveStock(saleID string, units int64) {
	s.T.Helper()
	require.NoError(s.T, s.Redis.Do(context.Background(), s.Redis.B().Incrby().Key("fg:{"+saleID+"}:stock").Increment(units).Build()).Error())
}

// LoseRedis deletes all that Redis has of a sale.
func (s *Stores) LoseRedis(saleID string) {
	s.T.Helper()
	for _, key := range []string{"stock", "buyers", "batches", "pending", "meta"} {
		require.NoError(s.T, s.Redis.Do(context.Background(), s.Redis.B().Del().Key("fg:{"+saleID+"}:"+key).Build()).Error())
	}
}

// Sale stores a sale of total units that runs now, under an id of its own, and
// publishes it; Redis does not have it yet.
func (s *Stores) Sale(total int64, perUser int) *sale.Sale {
	s.T.Helper()
	random := make([]byte, 6)
	_, err := rand.Read(random)
	require.NoError(s.T, err)
	now := time.Now().UTC().Truncate(time.Millisecond)
	sl := &sale.Sale{
		ID: "t-" + hex.EncodeToString(random), Title: "T", PriceCents: 100, Currency: "CNY", Total: total,
		PerUserLimit: perUser, StartsAt: now.Add(-time.Hour), EndsAt: now.Add(time.Hour), Status: sale.Draft,
	}
	_, err = s.Ledger.CreateSale(context.Background(), sl)
	require.NoError(s.T, err)
	_, err = s.Ledger.SetStatus(context.Background(), sl.ID, sale.Opened)
	require.NoError(s.T, err)
	*sl, err = s.Ledger.Sale(context.Background(), sl.ID)
	require.NoError(s.T, err)
	return sl
}

// LoadedSale is Sale, loaded into Redis under a new epoch.
func (s *Stores) LoadedSale(total int64, perUser int) *sale.Sale {
	s.T.Helper()
	ctx := context.Background()
	sl := s.Sale(total, perUser)
	var err error
	sl.Epoch, err = s.Ledger.NextEpoch(ctx, sl.ID)
	require.NoError(s.T, err)
	loaded, err := s.Stock.Load(ctx, sl, stock.LoadSource{})
	require.NoError(s.T, err)
	require.True(s.T, loaded)
	return sl
}

// Batch makes a batch of one order a user, each of one unit, that nobody knows yet.
// Its ids are as old as age.
func (s *Stores) Batch(sl *sale.Sale, age time.Duration, users ...string) *sale.Batch {
	// A node number a source: their clocks are apart, and no id may come twice.
	s.sources++
	ids := sale.NewIDs(s.sources%sale.Nodes, func() time.Time { return time.Now().Add(-age) })
	b := &sale.Batch{ID: ids.Next(0), SaleID: sl.ID, Epoch: sl.Epoch}
	for _, u := range users {
		b.Orders = append(b.Orders, sale.Order{
			ID: ids.Next(sale.ShardOf(u)), SaleID: sl.ID, UserID: u, RequestKey: "k", Quantity: 1, AmountCents: sl.PriceCents,
		})
	}
	return b
}

// Reserve reserves a batch in Redis until hold has passed.
func (s *Stores) Reserve(sl *sale.Sale, b *sale.Batch, hold time.Duration) {
	s.T.Helper()
	out := make([]stock.Outcome, len(b.Orders))
	terms := stock.Terms{StartsAt: sl.StartsAt, EndsAt: sl.EndsAt, PerUserLimit: sl.PerUserLimit}
	_, err := s.Stock.Reserve(context.Background(), b, terms, hold, out)
	require.NoError(s.T, err)
	for i := range out {
		require.Equal(s.T, stock.Reserved, out[i].Verdict)
	}
}

// Confirm reserves and confirms a batch in Redis: its orders are promised.
func (s *Stores) Confirm(sl *sale.Sale, b *sale.Batch) {
	s.T.Helper()
	s.Reserve(sl, b, time.Minute)
	state, err := s.Stock.Confirm(context.Background(), b)
	require.NoError(s.T, err)
	require.Equal(s.T, stock.StateConfirmed, state)
}

// Apply writes a batch to the ledger, as a worker does.
func (s *Stores) Apply(b *sale.Batch) ledger.Applied {
	s.T.Helper()
	a, err := s.Ledger.Apply(context.Background(), []sale.Batch{*b})
	require.NoError(s.T, err)
	return a
}

// Settle settles a batch in Redis and notes it in the ledger, as a worker does.
func (s *Stores) Settle(b *sale.Batch) {
	s.T.Helper()
	done, err := s.Stock.Settle(context.Background(), b.SaleID, []sale.ID{b.ID}, s.Ledger.ActiveOrders)
	require.NoError(s.T, err)
	require.NoError(s.T, s.Ledger.MarkSettled(context.Background(), done))
}

// Sell takes a batch the whole way.
func (s *Stores) Sell(sl *sale.Sale, b *sale.Batch) {
	s.T.Helper()
	s.Confirm(sl, b)
	s.Apply(b)
	s.Settle(b)
}

// Snapshot reads a sale's Redis side.
func (s *Stores) Snapshot(saleID string) stock.Snapshot {
	s.T.Helper()
	snap, err := s.Stock.Snapshot(context.Background(), saleID)
	require.NoError(s.T, err)
	return snap
}
