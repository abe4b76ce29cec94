package faults

import (
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// sold is the evidence of a sale in which all went well: ann bought two units with a
// key, bob one without; cat was told that it is sold out; dan's answer was lost, and
// his order is there.
func sold() *evidence {
	e := &evidence{
		offer: &offer{id: "s", total: 5, limit: 2, priceCents: 100},
		ledger: ledgerView{
			total: 5, available: 1, locked: 4, version: 1, limit: 2,
			orders: []order{
				{"11", "ann", "k", 2, 200, "PENDING_PAYMENT", "", "7"},
				{"12", "bob", "", 1, 100, "PENDING_PAYMENT", "", "7"},
				{"13", "dan", "d", 1, 100, "PENDING_PAYMENT", "", "8"},
			},
			lockedOf: map[string][]int64{"7": {3}, "8": {1}},
			consumed: map[string]bool{"7": true, "8": true},
		},
		redis: redisView{
			loaded: true, stock: 1, total: 5, held: 4, version: 1,
			records: []record{
				{"ann", true, 2, "11", "k", "7"}, {"bob", true, 1, "12", "", "7"}, {"dan", true, 1, "13", "d", "8"},
			},
		},
	}
	for _, w := range []struct {
		user, key string
		quantity  int
	}{{"ann", "k", 2}, {"bob", "", 1}, {"cat", "c", 2}, {"dan", "d", 1}} {
		if e.wanted == nil {
			e.wanted = make(map[string]map[string]int)
		}
		e.want(w.user, w.key, w.quantity)
	}
	yes := func(user, key, id string, units int, at time.Duration, replayed bool) answer {
		return answer{deed: buy, sale: "s", user: user, key: key, quantity: units, order: id, from: at, to: at + 10, status: 202, replayed: replayed,
			got: shown{OrderID: id, SaleID: "s", Quantity: units, AmountCents: int64(units) * 100, Status: "PROCESSING"}}
	}
	e.answers = []answer{
		yes("ann", "k", "11", 2, 100, false),
		yes("ann", "k", "11", 2, 200, true),
		yes("bob", "", "12", 1, 100, false),
		{deed: buy, sale: "s", user: "cat", key: "c", quantity: 2, from: 300, to: 310, status: 409, code: "SOLD_OUT"},
		{deed: buy, sale: "s", user: "dan", key: "d", quantity: 1, from: 100, to: 200, failure: "EOF"},
		{deed: poll, sale: "s", user: "ann", order: "11", from: 400, to: 410, status: 200,
			got: shown{OrderID: "11", SaleID: "s", Quantity: 2, AmountCents: 200, Status: "PENDING_PAYMENT"}},
		{deed: list, sale: "s", user: "ann", from: 400, to: 410, status: 200,
			listed: []shown{{OrderID: "11", SaleID: "s", Quantity: 2, AmountCents: 200, Status: "PENDING_PAYMENT"}}},
	}
	return e
}

// TestCheckFindsEachBreach: a round in which all went well is clean, and each way of
// going wrong is found, under its invariant.
func TestCheckFindsEachBreach(t *testing.T) {
	require.Empty(t, check(sold()).breaches)
	for _, c := range []struct {
		name, invariant string
		spoil           func(*evidence)
	}{
		{"oversold", "1", func(e *evidence) { e.ledger.total, e.ledger.available = 3, -1 }},
		{"a promise is not in the ledger", "2", func(e *evidence) { e.ledger.orders = e.ledger.orders[1:] }},
		{"a promise is cancelled", "2", func(e *evidence) { e.ledger.orders[0].status, e.ledger.orders[0].reason = "CANCELLED", "STOCK_REFUSED" }},
		{"cancelled without a reason", "2", func(e *evidence) { e.lossy, e.ledger.orders[0].status = true, "CANCELLED" }},
		{"two orders of a key", "3", func(e *evidence) {
			e.ledger.orders = append(e.ledger.orders, order{"14", "bob", "", 1, 100, "PENDING_PAYMENT", "", "8"})
		}},
		{"two promises of a key", "3", func(e *evidence) { e.answers[1].order, e.answers[1].got.OrderID = "12", "12" }},
		{"a batch applied twice", "3", func(e *evidence) { e.ledger.lockedOf["7"] = []int64{3, 3} }},
		{"an order without its batch", "3", func(e *evidence) { delete(e.ledger.consumed, "8") }},
		{"held units miscounted", "4a", func(e *evidence) { e.redis.held = 3 }},
		{"stock drifted", "4a", func(e *evidence) { e.redis.stock = 2 }},
		{"ledger's counts drifted", "4b", func(e *evidence) { e.ledger.available, e.ledger.locked = 2, 3 }},
		{"Redis holds what the ledger has not", "4c", func(e *evidence) { e.redis.records[0].order = "99" }},
		{"Redis holds what was cancelled", "4c", func(e *evidence) {
			e.lossy, e.ledger.orders[0].status, e.ledger.orders[0].reason = true, "CANCELLED", "X"
		}},
		{"Redis has no record", "4c", func(e *evidence) { e.redis.records = e.redis.records[1:] }},
		{"another batch in Redis", "4c", func(e *evidence) { e.redis.records[0].batch = "8" }},
		{"not loaded", "4c", func(e *evidence) { e.redis = redisView{} }},
		{"totals differ", "4c", func(e *evidence) { e.redis.total++ }},
		{"not settled", "4c", func(e *evidence) { e.ledger.consumed["7"] = false }},
		{"two records of an order", "6", func(e *evidence) { e.redis.records = append(e.redis.records, e.redis.records[0]) }},
		{"given back and active", "6", func(e *evidence) { e.redis.records[0].held = false }},
		{"units not back", "7", func(e *evidence) { e.redis.stock = 0 }},
		{"a batch left open", "7", func(e *evidence) { e.redis.open = []string{"7 C"} }},
		{"a reservation left", "7", func(e *evidence) { e.redis.pending = 1 }},
		{"a task left", "7", func(e *evidence) { e.ledger.tasks = 1 }},
		{"over the limit", "8", func(e *evidence) { e.ledger.limit = 1 }},
		{"new twice", "9", func(e *evidence) { e.answers[1].replayed = false }},
		{"another quantity", "9", func(e *evidence) { e.answers[0].got.Quantity = 1 }},
		{"another amount", "9", func(e *evidence) { e.answers[0].got.AmountCents = 100 }},
		{"another's order", "9", func(e *evidence) { e.ledger.orders[0].user = "bob" }},
		{"refused and made", "9", func(e *evidence) { e.answers[4].status, e.answers[4].code = 503, "UNAVAILABLE" }},
		{"refused after a promise", "9", func(e *evidence) { e.answers[1].status, e.answers[1].code = 409, "SOLD_OUT" }},
		{"nobody asked for it", "9", func(e *evidence) { delete(e.wanted, "dan") }},
		{"a key taken twice", "9", func(e *evidence) { e.answers[1].deed, e.answers[1].quantity = reuse, 1 }},
		{"a poll finds nothing", "9", func(e *evidence) { e.answers[5].status = 404 }},
		{"a poll shows another amount", "9", func(e *evidence) { e.answers[5].got.AmountCents = 1 }},
		{"a list lacks an order", "9", func(e *evidence) { e.answers[6].listed = nil }},
		{"a list shows what was never made", "9", func(e *evidence) {
			e.answers[6].listed = append(e.answers[6].listed, shown{OrderID: "99", SaleID: "s"})
		}},
		{"cancelled and active again", "9", func(e *evidence) {
			e.answers[5].got.Status = "CANCELLED"
			e.answers[6].from, e.answers[6].to = 500, 510
		}},
		{"an internal error", "9", func(e *evidence) { e.answers[3].status = 500 }},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := sold()
			c.spoil(e)
			var found []string
			for _, b := range check(e).breaches {
				found = append(found, b.invariant)
			}
			require.Contains(t, found, c.invariant)
		})
	}
}

// TestCheckCountsCancelledPromises: where Redis lost data, a promise may end as
// CANCELLED; it is counted.
func TestCheckCountsCancelledPromises(t *testing.T) {
	e := sold()
	e.lossy = true
	e.ledger.orders[0].status, e.ledger.orders[0].reason = "CANCELLED", "STOCK_REFUSED"
	e.ledger.available, e.ledger.locked, e.ledger.lockedOf["7"] = 3, 2, []int64{1}
	e.redis.stock, e.redis.held, e.redis.records[0].held = 3, 2, false
	e.answers[5].got.Status, e.answers[6].listed[0].Status = "CANCELLED", "CANCELLED"
	v := check(e)
	require.Empty(t, v.breaches)
	require.Equal(t, 1, v.cancelled)
}

// TestCheckOfWeakPromises: without a replica's word a lost 202 is counted; what is
// sold stays as strict.
func TestCheckOfWeakPromises(t *testing.T) {
	e := sold()
	e.weak = true
	e.answers[0].order, e.answers[0].got.OrderID = "99", "99"
	v := check(e)
	require.Empty(t, v.breaches)
	require.Len(t, v.broken, 1)
	e.ledger.total, e.ledger.available = 3, -1
	require.NotEmpty(t, check(e).breaches)
}

// TestSlotOf against what CLUSTER KEYSLOT says.
func TestSlotOf(t *testing.T) {
	require.Equal(t, 12739, slotOf("123456789")) // from the cluster's specification
	require.Equal(t, 12182, slotOf("foo"))
}

// TestPlanIsTheSeeds: a seed is one plan, its faults do not meddle with one another,
// and among a hundred plans every kind is.
func TestPlanIsTheSeeds(t *testing.T) {
	seen := make(map[string]bool)
	for seed := range uint64(100) {
		first, err := plan(seed, nil)
		require.NoError(t, err)
		second, err := plan(seed, nil)
		require.NoError(t, err)
		require.Equal(t, first, second)
		require.NotEmpty(t, first)
		for i, f := range first {
			seen[f.kind] = true
			for _, other := range first[i+1:] {
				require.False(t, f.clashes(other), "seed %d: %s and %s", seed, f, other)
			}
		}
	}
	for _, k := range kinds {
		require.True(t, seen[k.name], k.name)
	}
	for _, c := range combinations {
		for i := range c {
			for j := range i {
				require.False(t, c[i].clashes(&c[j]), "%v and %v", &c[i], &c[j])
			}
		}
	}
	only, err := plan(1, []string{"failover"})
	require.NoError(t, err)
	for _, f := range only {
		require.Equal(t, "failover", f.kind)
	}
	_, err = plan(1, []string{"no such kind"})
	require.ErrorContains(t, err, "no such kind")
}

// TestUnpackRecords holds the harness's own reading of a buyer's records against bytes
// written by hand.
func TestUnpackRecords(t *testing.T) {
	packed, err := hex.DecodeString("48" + "0002" + "0000000000000102" + "02" + "6b31" + "0000000000000007" +
		"52" + "0001" + "0000000000000103" + "90" + "00112233445566778899aabbccddeeff" + "0000000000000008")
	require.NoError(t, err)
	got, err := unpackRecords(nil, "ann", string(packed))
	require.NoError(t, err)
	require.Equal(t, []record{
		{"ann", true, 2, "258", "k1", "7"},
		{"ann", false, 1, "259", "00112233-4455-6677-8899-aabbccddeeff", "8"},
	}, got)
	for n := 1; n < len(packed); n++ {
		if n != 22 { // a whole record
			_, err := unpackRecords(nil, "ann", string(packed[:n]))
			require.ErrorIs(t, err, errRecord, "%d bytes", n)
		}
	}
}

// TestAlarms: what a daemon logs after the last look is looked through.
func TestAlarms(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	line, size, err := alarmed(path, 0)
	require.NoError(t, err)
	require.Empty(t, line, "no log yet")
	require.NoError(t, os.WriteFile(path, []byte("fine\npanic: old\n"), 0o600))
	line, size, err = alarmed(path, size)
	require.NoError(t, err)
	require.Equal(t, "panic: old", line)
	require.NoError(t, os.WriteFile(path, []byte("fine\npanic: old\n"+strings.Repeat("fine\n", 3)), 0o600))
	line, _, err = alarmed(path, size)
	require.NoError(t, err)
	require.Empty(t, line)
}
