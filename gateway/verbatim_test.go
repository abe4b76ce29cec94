package gateway

import (
	"bufio"
	"context"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/stretchr/testify/require"
	"github.com/valyala/fasthttp"
	"pgregory.net/rapid"

	"flashgate/internal/bus"
	"flashgate/internal/sale"
	"flashgate/internal/stock"
	"flashgate/internal/storetest"
	"flashgate/internal/token"
)

// hostile are names and keys that mean something to SQL, Lua, JSON, Redis, a log or a
// terminal, or that a store with a collation takes for one another.
var hostile = []string{
	"' OR '1'='1", `"; DROP TABLE orders; --`, `\`, `\'`, `%' --`, "/*", "\x00", "a\x00", "a\x00b", "*", "?", "[a-z]", "{s}", "}:{s", "fg:{s}:stock",
	"]] .. redis.call('FLUSHALL') --", "${jndi:ldap://x}", "{{.}}", "%s%n%d", "\n", "\r\nlevel=ERROR msg=forged", "\x1b[2J\x1b[31m", "\u009b31m",
	"\u2028", "\u202egnp.exe", `","quantity":99`, `{"$gt":""}`, "a", "A", "ä", "a\u0308", "ａ", "ß", "ss", "a ", "a  ", " a", "0", "00", "0x0", "1e0",
	"-1", "true", "null", "NULL", "nil", "NaN", "\x7f", "🛒", strings.Repeat("🛒", 16), "0190b3a0-7c1e-7d3a-9d0a-5b6f2f1e8c4d",
	"0190B3A0-7C1E-7D3A-9D0A-5B6F2F1E8C4D", "\x01\x90", "H", "R", "C", "V",
}

// TestNamesAndKeysAreVerbatim: whatever user and key the edge takes come back from Redis,
// from the bus and from the ledger byte for byte, and no two of them are taken for one.
func TestNamesAndKeysAreVerbatim(t *testing.T) {
	secret := []byte("a secret of the tests, of more than 32 bytes")
	v, err := token.NewVerifier(token.Options{Secret: secret})
	require.NoError(t, err)
	// taken says whether the edge takes a user and a key, and as what.
	taken := func(name, key string) (user, requestKey string, ok bool) {
		raw, err := jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.MapClaims{"sub": name, "exp": 4102444800}).SignedString(secret)
		require.NoError(t, err)
		sub, _, err := v.Verify(nil, []byte(raw))
		if err != nil {
			return "", "", false
		}
		var header fasthttp.RequestHeader
		wire := "POST / HTTP/1.1\r\nHost: h\r\n" + headerKey + ": " + key + "\r\n\r\n"
		if strings.ContainsAny(key, "\r\n") || header.Read(bufio.NewReader(strings.NewReader(wire))) != nil {
			return "", "", false
		}
		k, no := readKey(&header)
		return string(sub), string(k), no.code == ""
	}
	storetest.Each(t, func(t *testing.T, s *storetest.Stores) {
		var pairs [][2]string
		seen := map[[2]string]bool{}
		add := func(name, key string) {
			user, requestKey, ok := taken(name, key)
			if !ok {
				return
			}
			require.Equal(t, name, user)
			// Blanks around a header's value are no part of it (RFC 9110 §5.5).
			require.Equal(t, strings.Trim(key, " \t"), requestKey)
			if pair := [2]string{user, requestKey}; !seen[pair] {
				seen[pair] = true
				pairs = append(pairs, pair)
			}
		}
		for _, name := range hostile {
			add(name, "k")
			add("u", name)
			add(name, name)
		}
		text := rapid.OneOf(rapid.StringN(0, 32, 64), rapid.Map(rapid.SliceOfN(rapid.Byte(), 0, 64), func(b []byte) string { return string(b) }))
		for i := range 300 {
			add(text.Example(i), text.Example(i+1000))
		}
		require.Greater(t, len(pairs), 200)
		checkVerbatim(t, s, pairs)
	})
}

// checkVerbatim sells one unit to each pair of user and key, the whole way, and looks
// for it on every station.
func checkVerbatim(t *testing.T, s *storetest.Stores, pairs [][2]string) {
	ctx := context.Background()
	sl := s.LoadedSale(int64(len(pairs)), sale.MaxQuantity)
	ids := sale.NewIDs(7, time.Now)
	b := &sale.Batch{ID: ids.Next(0), SaleID: sl.ID, Epoch: sl.Epoch}
	want := map[sale.ID][2]string{}
	for _, p := range pairs {
		o := sale.Order{ID: ids.Next(sale.ShardOf(p[0])), SaleID: sl.ID, UserID: p[0], RequestKey: p[1], Quantity: 1, AmountCents: sl.PriceCents}
		b.Orders = append(b.Orders, o)
		want[o.ID] = p
	}
	out := make([]stock.Outcome, len(b.Orders))
	_, err := s.Stock.Reserve(ctx, b, stock.Terms{StartsAt: sl.StartsAt, EndsAt: sl.EndsAt, PerUserLimit: sl.PerUserLimit}, time.Minute, out)
	require.NoError(t, err)
	for i := range out {
		require.Equal(t, stock.Reserved, out[i].Verdict, "%q met another's order", pairs[i])
	}
	state, err := s.Stock.Confirm(ctx, b)
	require.NoError(t, err)
	require.Equal(t, stock.StateConfirmed, state)

	// Redis: the batch, the scan over buyers, and a look-up by name.
	found := map[sale.ID][2]string{}
	require.NoError(t, s.Stock.Batches(ctx, sl.ID, func(batches []stock.BatchRecord) error {
		for _, batch := range batches {
			for _, o := range batch.Orders {
				found[o.ID] = [2]string{o.UserID, o.RequestKey}
			}
		}
		return nil
	}))
	require.Equal(t, want, found, "in the batch")
	clear(found)
	require.NoError(t, s.Stock.Buyers(ctx, sl.ID, func(records []stock.Record) error {
		for _, r := range records {
			found[r.OrderID] = [2]string{r.UserID, r.RequestKey}
		}
		return nil
	}))
	require.Equal(t, want, found, "in the buyers' records")

	// The bus.
	body, err := bus.Encode(b)
	require.NoError(t, err)
	carried, err := bus.Decode(body)
	require.NoError(t, err)
	require.Equal(t, b, carried)

	// The ledger: none of them is another's duplicate.
	applied := s.Apply(carried)
	require.Equal(t, len(pairs), applied.Orders)
	require.Zero(t, applied.Cancelled)
	for id, p := range want {
		o, err := s.Ledger.Order(ctx, id)
		require.NoError(t, err)
		require.Equal(t, p, [2]string{o.UserID, o.RequestKey})
		byKey, err := s.Ledger.OrderByKey(ctx, sl.ID, p[0], p[1])
		require.NoError(t, err)
		require.Equal(t, id, byKey.ID, "%q", p)
		mine, err := s.Stock.Lookup(ctx, sl.ID, p[0])
		require.NoError(t, err)
		for _, r := range mine {
			require.Equal(t, p[0], want[r.OrderID][0], "another's order")
		}
		list, err := s.Ledger.OrdersOf(ctx, p[0], sl.ID, len(pairs))
		require.NoError(t, err)
		require.Len(t, list, len(mine), "%q", p[0])
	}

	// Redis again, loaded from the ledger.
	s.LoseRedis(sl.ID)
	again := *sl
	again.Epoch++
	loaded, err := s.Stock.Load(ctx, &again, stock.LoadSource{Orders: func(_ context.Context, each func([]stock.LoadedOrder) error) error {
		var rows []stock.LoadedOrder
		for id := range want {
			o, err := s.Ledger.Order(ctx, id)
			if err != nil {
				return err
			}
			rows = append(rows, stock.LoadedOrder{Order: o.Order, BatchID: o.BatchID})
		}
		return each(rows)
	}})
	require.NoError(t, err)
	require.True(t, loaded)
	clear(found)
	require.NoError(t, s.Stock.Buyers(ctx, sl.ID, func(records []stock.Record) error {
		for _, r := range records {
			found[r.OrderID] = [2]string{r.UserID, r.RequestKey}
		}
		return nil
	}))
	require.Equal(t, want, found, "in the buyers' records, after a rebuild")
}
