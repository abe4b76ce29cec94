package stock

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"flashgate/internal/sale"
)

// TestScriptsAreLoadedAgain: a node that forgot its scripts (a restart, SCRIPT FLUSH)
// gets them again from the next call, which is run once.
func TestScriptsAreLoadedAgain(t *testing.T) {
	for _, e := range engines {
		t.Run(e.name, func(t *testing.T) {
			f := loadedFixture(t, e.open(t), 10)
			flush := func() {
				for _, node := range f.client.Nodes() {
					require.NoError(t, node.Do(t.Context(), node.B().ScriptFlush().Build()).Error())
				}
			}
			flush()
			b := f.win(t, "ann", "k", 2)
			flush()
			f.mustConfirm(t, b, StateConfirmed)
			flush()
			f.counts(t, 8, 2)
		})
	}
}

// TestNotReplicated: a confirm that more replicas should have than there are is done,
// and not yet to be told.
func TestNotReplicated(t *testing.T) {
	opts := clusterOptions(t)
	opts.WaitReplicas, opts.WaitTimeout = 5, 50*time.Millisecond
	s := open(t, opts)
	f := loadedFixture(t, s, 10)
	confirmed, void := f.win(t, "ann", "k", 2), f.win(t, "bob", "k", 1)

	_, err := f.Confirm(t.Context(), confirmed)
	require.ErrorIs(t, err, ErrNotReplicated)
	require.NotErrorIs(t, err, ErrNotRun)
	f.mustState(t, confirmed.ID, StateConfirmed)

	_, err = f.Release(t.Context(), f.sale.ID, void.ID, void.Epoch, void.Orders)
	require.ErrorIs(t, err, ErrNotReplicated)
	f.mustState(t, void.ID, StateVoid)
	f.counts(t, 8, 2)

	// Asked again, those that find their work done must not take it for replicated.
	_, err = f.Confirm(t.Context(), confirmed)
	require.ErrorIs(t, err, ErrNotReplicated)
	settled := f.batch(f.order("cy", "k", 1))
	_, err = f.Settle(t.Context(), f.sale.ID, []sale.ID{settled.ID}, active(settled))
	require.NoError(t, err)
	_, err = f.Confirm(t.Context(), settled)
	require.ErrorIs(t, err, ErrNotReplicated)

	// A total has to be replicated too, before the ledger takes a cut.
	for range 2 {
		_, err = f.Adjust(t.Context(), f.sale.ID, 9, 2)
		require.ErrorIs(t, err, ErrNotReplicated)
	}

	// With as many as there are, all of it holds.
	opts = clusterOptions(t)
	f.Store = open(t, opts)
	f.mustConfirm(t, confirmed, StateConfirmed)
	f.mustConfirm(t, settled, StateSettled)
	f.mustRelease(t, void, StateVoid)
	adjusted, err := f.Adjust(t.Context(), f.sale.ID, 9, 2)
	require.NoError(t, err)
	require.True(t, adjusted)
}

// TestDoneWorkWritesAgain: a script that finds its work done still makes its master
// write, or a WAIT on Redis versions that count a connection's writes only would vouch
// for nothing.
func TestDoneWorkWritesAgain(t *testing.T) {
	f := loadedFixture(t, openCluster(t), 10)
	confirmed, void, settled := f.win(t, "ann", "k", 1), f.win(t, "bob", "k", 1), f.sell(t, "cy", "k", 1)
	f.mustConfirm(t, confirmed, StateConfirmed)
	f.mustRelease(t, void, StateVoid)
	master := f.master(t)
	for name, again := range map[string]func(){
		"confirm confirmed": func() { f.mustConfirm(t, confirmed, StateConfirmed) },
		"confirm settled":   func() { f.mustConfirm(t, settled, StateSettled) },
		"confirm void":      func() { f.mustConfirm(t, void, StateVoid) },
		"release confirmed": func() { f.mustRelease(t, confirmed, StateConfirmed) },
		"release settled":   func() { f.mustRelease(t, settled, StateSettled) },
		"release void":      func() { f.mustRelease(t, void, StateVoid) },
		"adopt settled": func() {
			state, err := f.Adopt(t.Context(), settled)
			require.NoError(t, err)
			require.Equal(t, StateSettled, state)
		},
		"adjust": func() {
			adjusted, err := f.Adjust(t.Context(), f.sale.ID, f.sale.Total, f.sale.Version)
			require.NoError(t, err)
			require.True(t, adjusted)
		},
	} {
		t.Run(name, func(t *testing.T) {
			// HSET of the value that is there already counts as a change, and replicates.
			before := keyspaceChanges(t, master)
			again()
			require.Greater(t, keyspaceChanges(t, master), before)
		})
	}
}

// keyspaceChanges is rdb_changes_since_last_save of a node: it grows with every write.
func keyspaceChanges(t *testing.T, node rueidis.Client) int64 {
	t.Helper()
	info, err := node.Do(t.Context(), node.B().Info().Section("persistence").Build()).ToString()
	require.NoError(t, err)
	_, rest, found := strings.Cut(info, "rdb_changes_since_last_save:")
	require.True(t, found)
	number, _, _ := strings.Cut(rest, "\r\n")
	n, err := strconv.ParseInt(number, 10, 64)
	require.NoError(t, err)
	return n
}

// master is the client of the node that has the sale's slot.
func (f *fixture) master(t *testing.T) rueidis.Client {
	t.Helper()
	nodes := f.client.Nodes()
	for _, node := range nodes {
		err := node.Do(t.Context(), node.B().Get().Key(keysOf(f.sale.ID, wholeSale, keyStock)[0]).Build()).Error()
		if redisErr, ok := rueidis.IsRedisErr(err); ok {
			if address, moved := redisErr.IsMoved(); moved {
				require.Contains(t, nodes, address)
				return nodes[address]
			}
		}
		if err == nil {
			return node
		}
	}
	t.Fatal("no node has the sale's slot")
	return nil
}

// TestManyAtOnce: more callers than there are connections for WAIT, all after fewer
// units than they ask for.
func TestManyAtOnce(t *testing.T) {
	const callers, batchesEach, total = 16, 20, 100
	opts := clusterOptions(t)
	opts.MaxWaitConnections = 2
	f := loadedFixture(t, open(t, opts), total)
	sold := make([]int64, callers)
	var group errgroup.Group
	for caller := range callers {
		group.Go(func() error {
			for n := range batchesEach {
				b := f.batch(f.order(fmt.Sprintf("u%d-%d", caller, n), "k", 1))
				out := make([]Outcome, 1)
				if _, err := f.Reserve(t.Context(), b, f.terms, time.Hour, out); err != nil {
					return err
				}
				if out[0].Verdict != Reserved {
					continue
				}
				state, err := f.Confirm(t.Context(), b)
				if err != nil || state != StateConfirmed {
					return fmt.Errorf("confirm: %v, %w", state, err)
				}
				sold[caller]++
			}
			return nil
		})
	}
	require.NoError(t, group.Wait())
	var sum int64
	for _, n := range sold {
		sum += n
	}
	require.Equal(t, int64(total), sum)
	require.Zero(t, f.counts(t, 0, total).Pending)
}

// TestSlotMoved: a store that has not heard that a slot moved follows the redirection,
// for a pipelined call and for one that waits for replicas.
func TestSlotMoved(t *testing.T) {
	s, admin := openCluster(t), openCluster(t)
	f := loadedFixture(t, s, 10)
	b := f.win(t, "ann", "k", 2)

	from, to := slotMove(t, admin, f.sale.ID)
	from.moveTo(t, to)
	t.Cleanup(func() { to.moveTo(t, from) })

	f.mustConfirm(t, b, StateConfirmed)
	b = f.win(t, "bob", "k", 1)
	f.mustRelease(t, b, StateVoid)
	f.counts(t, 8, 2)
}

// slotOwner is a master that can hand over the slot of one sale.
type slotOwner struct {
	admin   *Store
	client  rueidis.Client
	address string
	id      string
	slot    int64
	keys    []string
}

// slotMove is the master that has a sale's slot, and another one.
func slotMove(t *testing.T, admin *Store, saleID string) (from, to *slotOwner) {
	t.Helper()
	keys := keysOf(saleID, wholeSale, allKeys...)
	slot, err := admin.client.Do(t.Context(), admin.client.B().ClusterKeyslot().Key(keys[0]).Build()).AsInt64()
	require.NoError(t, err)
	holder := (&fixture{Store: admin, sale: sale.Sale{ID: saleID}}).master(t)
	holderID, err := holder.Do(t.Context(), holder.B().ClusterMyid().Build()).ToString()
	require.NoError(t, err)
	for address, node := range admin.client.Nodes() {
		id, err := node.Do(t.Context(), node.B().ClusterMyid().Build()).ToString()
		require.NoError(t, err)
		role, err := node.Do(t.Context(), node.B().Role().Build()).ToArray()
		require.NoError(t, err)
		kind, err := role[0].ToString()
		require.NoError(t, err)
		owner := &slotOwner{admin, node, address, id, slot, keys}
		switch {
		case id == holderID:
			from = owner
		case kind == "master" && to == nil:
			to = owner
		}
	}
	require.NotNil(t, from)
	require.NotNil(t, to)
	return from, to
}

// moveTo hands the slot over as `redis-cli --cluster reshard` does.
func (from *slotOwner) moveTo(t *testing.T, to *slotOwner) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second) // also from a cleanup
	defer cancel()
	do := func(node rueidis.Client, words ...string) {
		require.NoError(t, node.Do(ctx, node.B().Arbitrary(words...).Build()).Error(), "%v", words)
	}
	slot := strconv.FormatInt(from.slot, 10)
	host, port, err := net.SplitHostPort(to.address)
	require.NoError(t, err)
	do(to.client, "CLUSTER", "SETSLOT", slot, "IMPORTING", from.id)
	do(from.client, "CLUSTER", "SETSLOT", slot, "MIGRATING", to.id)
	do(from.client, append([]string{"MIGRATE", host, port, "", "0", "5000", "KEYS"}, from.keys...)...)
	do(to.client, "CLUSTER", "SETSLOT", slot, "NODE", to.id)
	do(from.client, "CLUSTER", "SETSLOT", slot, "NODE", to.id)
}

// TestAway: what a node that is not there, or not able, lets one say.
func TestAway(t *testing.T) {
	m := miniredis.RunT(t)
	s := open(t, Options{Addresses: []string{m.Addr()}, CallTimeout: 2 * time.Second})
	f := loadedFixture(t, s, 10)
	b := f.win(t, "ann", "k", 1)

	m.SetError("LOADING Redis is loading the dataset in memory")
	_, err := f.Confirm(t.Context(), b)
	require.ErrorIs(t, err, ErrNotRun)
	m.SetError("ERR something inside the script")
	_, err = f.Confirm(t.Context(), b)
	require.Error(t, err)
	require.NotErrorIs(t, err, ErrNotRun)
	m.SetError("")

	m.Close()
	require.Eventually(t, func() bool {
		_, err = f.Confirm(t.Context(), b)
		return errors.Is(err, ErrNotRun)
	}, 5*time.Second, 10*time.Millisecond, "a node that takes no connection did not run anything: %v", &err)
	require.Error(t, s.Ping(t.Context()))

	require.NoError(t, m.Restart()) // it kept its data
	require.Eventually(t, func() bool {
		state, err := f.Confirm(t.Context(), b)
		return err == nil && state == StateConfirmed
	}, 5*time.Second, 10*time.Millisecond)
	require.NoError(t, s.Ping(t.Context()))

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = f.Confirm(ctx, b)
	require.ErrorIs(t, err, ErrNotRun)
}

func TestOpenRefuses(t *testing.T) {
	for name, opts := range map[string]Options{
		"no address":                   {},
		"two addresses, not clustered": {Addresses: []string{"127.0.0.1:1", "127.0.0.1:2"}},
		"negative replicas":            {Addresses: []string{"127.0.0.1:1"}, WaitReplicas: -1},
		"nobody there":                 {Addresses: []string{"127.0.0.1:1"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Open(opts)
			require.Error(t, err)
		})
	}
}

func TestClusterPing(t *testing.T) {
	require.NoError(t, openCluster(t).Ping(t.Context()))
}

// settledOrderBytes is the promise: the memory a settled order takes in Redis, with a
// UUID as user and a UUID as request key.
const settledOrderBytes = 200

// TestMemoryOfASettledOrder measures 100,000 of them on a real Redis.
func TestMemoryOfASettledOrder(t *testing.T) {
	const orders, batchSize = 100_000, 500
	s := openCluster(t)
	f := newFixture(t, s)
	f.sale.Total = orders
	f.mustLoad(t, LoadSource{})
	n := 0
	for range orders / batchSize {
		b := f.batch()
		for range batchSize {
			n++
			user := fmt.Sprintf("0190b3a0-7c1e-7d3a-9d0a-%012x", n)
			requestKey := fmt.Sprintf("%08x-7c1e-4d3a-8d0a-5b6f2f1e8c4d", n)
			b.Orders = append(b.Orders, f.order(user, requestKey, 1))
		}
		f.reserve(t, b)
		f.mustConfirm(t, b, StateConfirmed)
		_, err := f.Settle(t.Context(), f.sale.ID, []sale.ID{b.ID}, f.noneActive(t))
		require.NoError(t, err)
	}
	f.counts(t, 0, orders)

	var total int64
	for _, k := range keysOf(f.sale.ID, wholeSale, allKeys...) {
		used, err := s.client.Do(t.Context(), s.client.B().MemoryUsage().Key(k).Samples(0).Build()).AsInt64()
		if !rueidis.IsRedisNil(err) {
			require.NoError(t, err)
			total += used
		}
	}
	perOrder := float64(total) / orders
	t.Logf("%.0f bytes of Redis memory a settled order (MEMORY USAGE over %d)", perOrder, orders)
	require.Less(t, perOrder, float64(settledOrderBytes))
}
