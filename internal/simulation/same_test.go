package simulation

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"flashgate/internal/enginetest"
	"flashgate/internal/sale"
	"flashgate/internal/stock"
)

// What is simulated of Redis and of internal/stock is held against the real ones here.

// TestMemoryIsRedis: any commands get the replies that Redis gives.
func TestMemoryIsRedis(t *testing.T) {
	for name, option := range map[string]rueidis.ClientOption{
		"embedded": {InitAddress: []string{miniredis.RunT(t).Addr()}, ForceSingleClient: true, DisableCache: true},
		"real":     {InitAddress: enginetest.Redis(t), DisableCache: true},
	} {
		t.Run(name, func(t *testing.T) {
			client, err := rueidis.NewClient(option)
			require.NoError(t, err)
			defer client.Close()
			rapid.Check(t, func(t *rapid.T) { sameReplies(t, client) })
		})
	}
}

func sameReplies(t *rapid.T, client rueidis.Client) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	tag := fmt.Sprintf("{simulation-%x}", rand.Uint64())
	m := &memory{}
	keys := []string{"string", "hash", "zset"}
	defer func() {
		for _, key := range keys {
			_ = client.Do(ctx, client.B().Unlink().Key(tag+key).Build()).Error() // the engine may be gone
		}
	}()
	key := rapid.SampledFrom(keys)
	word := rapid.SampledFrom([]string{"a", "b", "\x00\xff", "7", "-3"})
	number := rapid.Custom(func(t *rapid.T) string { return strconv.Itoa(rapid.IntRange(-5, 5).Draw(t, "n")) })
	for range rapid.IntRange(1, 40).Draw(t, "commands") {
		name := rapid.SampledFrom([]string{
			"GET", "SET", "INCRBY", "DECRBY", "EXISTS", "UNLINK", "ZADD", "ZREM", "ZCARD", "ZRANGEBYSCORE",
			"HSET", "HINCRBY", "HDEL", "HGET", "HMGET", "HEXISTS", "HLEN", "HVALS", "HKEYS",
		}).Draw(t, "command")
		args := []string{key.Draw(t, "key")}
		if rapid.IntRange(0, 9).Draw(t, "fit") > 0 { // a key of another kind is mostly an error
			args[0] = kindOf(name)
		}
		switch name {
		case "SET":
			args = append(args, word.Draw(t, "value"))
		case "INCRBY", "DECRBY":
			args = append(args, number.Draw(t, "by"))
		case "EXISTS", "UNLINK":
			args = append(args, key.Draw(t, "another"))
		case "ZADD":
			args = append(args, number.Draw(t, "score"), word.Draw(t, "member"))
		case "ZRANGEBYSCORE":
			args = append(args, "-inf", number.Draw(t, "max"), "LIMIT", "0", strconv.Itoa(rapid.IntRange(0, 3).Draw(t, "limit")))
		case "HSET":
			args = append(args, word.Draw(t, "field"), word.Draw(t, "value"), word.Draw(t, "field"), word.Draw(t, "value"))
		case "HINCRBY":
			args = append(args, word.Draw(t, "field"), number.Draw(t, "by"))
		case "ZREM", "HDEL", "HMGET":
			args = append(args, word.Draw(t, "field"), word.Draw(t, "field"))
		case "HGET", "HEXISTS":
			args = append(args, word.Draw(t, "field"))
		}
		got, err := m.do(0, append([]string{name}, args...))

		named := slices.Clone(args)
		for i := range named {
			if i == 0 || name == "EXISTS" || name == "UNLINK" {
				named[i] = tag + named[i]
			}
		}
		command := client.B().Arbitrary(name).Keys(named[0]).Args(named[1:]...)
		if name == "EXISTS" || name == "UNLINK" {
			command = client.B().Arbitrary(name).Keys(named...)
		}
		want, failed := client.Do(ctx, command.Build()).ToAny()
		if rueidis.IsRedisNil(failed) {
			want, failed = nil, nil
		}
		if failed != nil {
			_, ofRedis := rueidis.IsRedisErr(failed)
			require.True(t, ofRedis, "%v", failed)
			require.Error(t, err, "%s %q: %v", name, args, failed)
			continue
		}
		require.NoError(t, err, "%s %q", name, args)
		require.Equal(t, inOrder(name, want), inOrder(name, got), "%s %q", name, args)
	}
}

func kindOf(command string) string {
	switch command[0] {
	case 'H':
		return "hash"
	case 'Z':
		return "zset"
	}
	return "string"
}

// inOrder sorts the replies that Redis gives in any order.
func inOrder(name string, reply value) value {
	if list, ok := reply.([]any); ok && (name == "HVALS" || name == "HKEYS") {
		slices.SortFunc(list, func(a, b any) int { return strings.Compare(a.(string), b.(string)) })
	}
	return reply
}

// pair is one sale in both worlds.
type pair struct {
	w       *world
	p       *process
	store   *stock.Store
	terms   stock.Terms
	sale    sale.Sale
	ids     *sale.IDs
	batches []*sale.Batch
}

// TestStockIsCalledAlike: a step of the simulation and the call of internal/stock that it
// stands for come to the same, on the same scripts.
func TestStockIsCalledAlike(t *testing.T) {
	server := miniredis.RunT(t)
	store, err := stock.Open(stock.Options{Addresses: []string{server.Addr()}, CallTimeout: 10 * time.Second})
	require.NoError(t, err)
	t.Cleanup(store.Close)
	rapid.Check(t, func(t *rapid.T) {
		server.FlushAll()
		x := newPair(t, store)
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			server.SetTime(x.w.clock())
			x.step(t)
			x.compare(t)
		}
	})
}

func newPair(t *rapid.T, store *stock.Store) *pair {
	rng := rand.New(rand.NewPCG(1, 1))
	w := &world{rng: rng, plan: plan{total: 6}, scripts: newInterpreter(nil), resting: true}
	w.redis, w.ledger = newRedis(w), newLedger(w, w.plan.total)
	w.terms = stock.Terms{StartsAt: began.Add(-time.Hour), EndsAt: began.Add(time.Hour), PerUserLimit: perUserLimit}
	w.firstLoad()
	x := &pair{w: w, p: w.process("test"), store: store, terms: w.terms, ids: sale.NewIDs(1, w.clock)}
	x.sale = sale.Sale{ID: saleID, Total: w.plan.total, Version: 1, Epoch: 1}
	loaded, err := store.Load(context.Background(), &x.sale, stock.LoadSource{})
	require.NoError(t, err)
	require.True(t, loaded)
	return x
}

// simulated runs one step to its end, at one instant of Redis time.
func (x *pair) simulated(step func(s simStock)) {
	x.p.start("step", func(t *task) { step(simStock{t}) })
	for len(x.w.events) > 0 {
		e := x.w.next()
		e.run()
	}
}

func (x *pair) step(t *rapid.T) {
	ctx := context.Background()
	if len(x.batches) == 0 || rapid.IntRange(0, 2).Draw(t, "new") == 0 {
		x.reserve(t)
		return
	}
	b := *rapid.SampledFrom(x.batches).Draw(t, "batch")
	b.Epoch = rapid.Int64Range(1, 2).Draw(t, "epoch")
	o := &b.Orders[rapid.IntRange(0, len(b.Orders)-1).Draw(t, "order")]
	var got, want any
	var err, failed error
	switch name := rapid.SampledFrom([]string{"confirm", "release", "sweep", "adopt", "settle", "restore", "adjust", "lookup", "due"}).Draw(t, "step"); name {
	case "confirm":
		x.simulated(func(s simStock) { got, err = s.confirm(&b) })
		want, failed = x.store.Confirm(ctx, &b)
	case "release":
		x.simulated(func(s simStock) { got, err = s.Release(ctx, saleID, b.ID, b.Epoch, b.Orders) })
		want, failed = x.store.Release(ctx, saleID, b.ID, b.Epoch, b.Orders)
	case "sweep":
		x.simulated(func(s simStock) { got, err = s.Release(ctx, saleID, b.ID, 0, nil) })
		want, failed = x.store.Release(ctx, saleID, b.ID, 0, nil)
	case "adopt":
		x.simulated(func(s simStock) { got, err = s.Adopt(ctx, &b) })
		want, failed = x.store.Adopt(ctx, &b)
	case "settle":
		active := map[sale.ID][]sale.Order{b.ID: b.Orders[:rapid.IntRange(0, len(b.Orders)).Draw(t, "active")]}
		x.simulated(func(s simStock) {
			got, err = s.settle([]sale.ID{b.ID}, func([]sale.ID) (map[sale.ID][]sale.Order, error) { return active, nil })
		})
		want, failed = x.store.Settle(ctx, saleID, []sale.ID{b.ID}, func(context.Context, []sale.ID) (map[sale.ID][]sale.Order, error) { return active, nil })
	case "restore":
		x.simulated(func(s simStock) { err = s.restore(o, b.ID) })
		_, failed = x.store.Restore(ctx, o, b.ID)
	case "adjust":
		total, version := rapid.Int64Range(3, 9).Draw(t, "total"), rapid.Int64Range(1, 5).Draw(t, "version")
		x.simulated(func(s simStock) { got, err = s.adjust(total, version) })
		want, failed = x.store.Adjust(ctx, saleID, total, version)
	case "lookup":
		var records []record
		var states []stock.State
		x.simulated(func(s simStock) { records, states, err = s.lookup(o.UserID) })
		got = recordsOf(records, states)
		want, failed = x.store.Lookup(ctx, saleID, o.UserID)
	case "due":
		x.w.now += 30 * time.Second
		x.simulated(func(s simStock) { got, err = s.due() })
		return // by Redis time, which is not the same in both
	}
	require.NoError(t, err)
	require.NoError(t, failed)
	require.Equal(t, want, got)
}

func (x *pair) reserve(t *rapid.T) {
	b := &sale.Batch{ID: x.ids.Next(0), SaleID: saleID}
	for range rapid.IntRange(1, 3).Draw(t, "orders") {
		user := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "user")
		b.Orders = append(b.Orders, sale.Order{
			ID: x.ids.Next(sale.ShardOf(user)), SaleID: saleID, UserID: user,
			RequestKey: rapid.SampledFrom([]string{"", "k"}).Draw(t, "key"), Quantity: rapid.IntRange(1, perUserLimit).Draw(t, "units"),
		})
	}
	x.batches = append(x.batches, b)
	terms := x.terms
	terms.Paused = rapid.IntRange(0, 9).Draw(t, "paused") == 0
	var got []stock.Outcome
	var epoch int64
	var err error
	x.simulated(func(s simStock) { epoch, got, err = s.reserve(b, &terms, hold) })
	want := make([]stock.Outcome, len(b.Orders))
	e, failed := x.store.Reserve(context.Background(), b, terms, hold, want)
	require.NoError(t, err)
	require.NoError(t, failed)
	require.Equal(t, e, epoch)
	require.Equal(t, want, got)
}

func recordsOf(records []record, states []stock.State) (all []stock.Record) {
	for i, r := range records {
		all = append(all, stock.Record{OrderID: r.order, BatchID: r.batch, UserID: r.user, RequestKey: r.key, Quantity: r.quantity, Returned: !r.held})
		if states != nil {
			all[i].Batch = states[i]
		}
	}
	return all
}

// compare holds all that both have against each other.
func (x *pair) compare(t *rapid.T) {
	ctx := context.Background()
	var snap snapshot
	var err error
	x.simulated(func(s simStock) { snap, err = s.snapshot() })
	require.NoError(t, err)
	is, err := x.store.Snapshot(ctx, saleID)
	require.NoError(t, err)
	require.Equal(t,
		[]int64{is.Stock, is.Held, is.Total, is.Version, is.Epoch, is.Buyers, is.Batches, is.Pending},
		[]int64{snap.stock, snap.held, snap.total, snap.version, snap.epoch, snap.buyer, snap.batches, snap.pending})

	c := x.w.redis.master.contents()
	var records []stock.Record
	require.NoError(t, x.store.Buyers(ctx, saleID, func(some []stock.Record) error {
		records = append(records, some...)
		return nil
	}))
	require.ElementsMatch(t, records, recordsOf(c.records, nil))
	var batches, simulated []string
	require.NoError(t, x.store.Batches(ctx, saleID, func(some []stock.BatchRecord) error {
		for _, b := range some {
			batches = append(batches, describe(b.ID, b.State, b.Orders))
		}
		return nil
	}))
	for _, b := range c.batches {
		simulated = append(simulated, describe(b.id, b.state, b.orders))
	}
	require.ElementsMatch(t, batches, simulated)
}

func describe(id sale.ID, state stock.State, orders []sale.Order) string {
	text := fmt.Sprint(id, state)
	for _, o := range orders {
		text += fmt.Sprint(o.ID, o.UserID, o.RequestKey, o.Quantity)
	}
	return text
}
