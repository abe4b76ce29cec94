package purchase

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/stretchr/testify/require"

	"flashgate/internal/sale"
	"flashgate/internal/stock"
)

// labNow is the time of the laboratory's Redis, which stands still, and of its ids.
var labNow = time.Date(2026, 11, 21, 10, 0, 0, 0, time.UTC)

// labSale is the one sale there is: one unit, and so never a truthful SOLD_OUT for the
// one user who buys it.
var labSale = sale.Sale{
	ID: "s", Title: "S", PriceCents: 100, Currency: "CNY", Total: 1, PerUserLimit: 1,
	StartsAt: labNow.Add(-time.Hour), EndsAt: labNow.Add(time.Hour), Status: sale.Opened, Version: 1,
}

// lab runs the real scripts on miniredis, and remembers: each call on each state of
// Redis is run once, however many histories come by it. States are numbered; 0 is empty.
type lab struct {
	t      testing.TB
	redis  *miniredis.Miniredis
	store  *stock.Store
	states []contents
	number map[string]int
	known  map[labKey]labResult

	// Histories live in a bubble of virtual time, and connections outside it.
	jobs chan func()
	done chan struct{}
}

type labKey struct {
	state int
	call  string
}

type labResult struct {
	state int // from now on
	value any
	err   error
}

// rawContents is what Redis holds of the sale, as it is.
type rawContents struct {
	Stock   string
	Loaded  bool
	Hashes  [3]map[string]string // of labHashes
	Pending map[string]float64
}

// contents is what Redis holds of the sale, and what that means.
type contents struct {
	rawContents
	records map[sale.ID]stock.Record      // by order
	batches map[sale.ID]stock.BatchRecord // open ones and tombstones
	snap    stock.Snapshot
}

var labHashes = [3]string{"fg:{s}:buyers", "fg:{s}:batches", "fg:{s}:meta"}

const (
	labStock   = "fg:{s}:stock"
	labPending = "fg:{s}:pending"
)

func newLab(t testing.TB) *lab {
	l := &lab{
		t: t, redis: miniredis.RunT(t), number: map[string]int{}, known: map[labKey]labResult{},
		jobs: make(chan func()), done: make(chan struct{}),
	}
	l.redis.SetTime(labNow)
	var err error
	l.store, err = stock.Open(stock.Options{Addresses: []string{l.redis.Addr()}, CallTimeout: 30 * time.Second})
	require.NoError(t, err)
	t.Cleanup(l.store.Close)
	require.Zero(t, l.read())
	go func() {
		for job := range l.jobs {
			job()
			l.done <- struct{}{}
		}
	}()
	t.Cleanup(func() { close(l.jobs) })
	return l
}

// run is one call on a state of Redis. call names it with all its arguments.
func (l *lab) run(state int, call string, do func(context.Context, *stock.Store) (any, error)) labResult {
	key := labKey{state, call}
	r, ok := l.known[key]
	if !ok {
		l.jobs <- func() {
			l.write(state)
			r.value, r.err = do(context.Background(), l.store)
			r.state = l.read()
		}
		<-l.done
		l.known[key] = r
	}
	return r
}

// write makes Redis hold a state.
func (l *lab) write(state int) {
	c := &l.states[state]
	l.redis.FlushAll()
	if c.Loaded {
		require.NoError(l.t, l.redis.Set(labStock, c.Stock))
	}
	for i, key := range labHashes {
		for field, value := range c.Hashes[i] {
			l.redis.HSet(key, field, value)
		}
	}
	for member, score := range c.Pending {
		_, err := l.redis.ZAdd(labPending, score, member)
		require.NoError(l.t, err)
	}
}

// read is the number of the state that Redis holds.
func (l *lab) read() int {
	c := contents{rawContents: rawContents{Loaded: l.redis.Exists(labStock), Pending: map[string]float64{}}}
	if c.Loaded {
		c.Stock, _ = l.redis.Get(labStock)
	}
	for i, key := range labHashes {
		c.Hashes[i] = map[string]string{}
		if !l.redis.Exists(key) {
			continue
		}
		fields, err := l.redis.HKeys(key)
		require.NoError(l.t, err)
		for _, field := range fields {
			c.Hashes[i][field] = l.redis.HGet(key, field)
		}
	}
	if l.redis.Exists(labPending) {
		var err error
		c.Pending, err = l.redis.SortedSet(labPending)
		require.NoError(l.t, err)
	}
	name := fmt.Sprintf("%t %q %q %v", c.Loaded, c.Stock, c.Hashes, c.Pending) // maps are printed in the order of their keys
	n, ok := l.number[name]
	if !ok {
		n = len(l.states)
		l.number[name] = n
		l.look(&c)
		l.states = append(l.states, c)
	}
	return n
}

// look reads a state as a daemon would.
func (l *lab) look(c *contents) {
	c.records, c.batches = map[sale.ID]stock.Record{}, map[sale.ID]stock.BatchRecord{}
	if !c.Loaded {
		return
	}
	ctx := context.Background()
	var err error
	c.snap, err = l.store.Snapshot(ctx, labSale.ID)
	require.NoError(l.t, err)
	require.NoError(l.t, l.store.Buyers(ctx, labSale.ID, func(records []stock.Record) error {
		for _, r := range records {
			c.records[r.OrderID] = r
		}
		return nil
	}))
	require.NoError(l.t, l.store.Batches(ctx, labSale.ID, func(batches []stock.BatchRecord) error {
		for _, b := range batches {
			c.batches[b.ID] = b
		}
		return nil
	}))
}
