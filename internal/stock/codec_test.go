package stock

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"flashgate/internal/sale"
)

func drawOrder(t *rapid.T) sale.Order {
	anyKey := rapid.OneOf(
		rapid.StringMatching(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`),
		rapid.StringMatching(`[0-9A-F]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`),
		rapid.StringN(0, -1, sale.MaxRequestKeyBytes),
	)
	return sale.Order{
		ID:         sale.ID(rapid.Int64Min(1).Draw(t, "id")),
		SaleID:     "s",
		UserID:     rapid.StringN(1, -1, sale.MaxUserIDBytes).Filter(func(s string) bool { return s != "" }).Draw(t, "user"),
		RequestKey: anyKey.Draw(t, "key"),
		Quantity:   rapid.IntRange(1, sale.MaxQuantity).Draw(t, "quantity"),
	}
}

// TestCodecRoundTrip: what is packed is read back, for all users, keys and quantities.
func TestCodecRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		orders := rapid.SliceOf(rapid.Custom(drawOrder)).Draw(t, "orders")
		packed, err := packOrders(orders)
		require.NoError(t, err)
		b, err := readBatch("s", packID(42), "C"+packed)
		require.NoError(t, err)
		require.Equal(t, sale.ID(42), b.ID)
		require.Len(t, b.Orders, len(orders))
		var records []byte
		var want []Record
		for i := range orders {
			require.Equal(t, orders[i], b.Orders[i])
			loaded := LoadedOrder{Order: orders[i], BatchID: sale.ID(i + 1), Returned: i%2 == 1}
			row, err := appendRow(nil, &loaded)
			require.NoError(t, err)
			require.Equal(t, loaded.UserID, string(row[1:1+row[0]]))
			records = append(records, row[1+len(loaded.UserID):]...)
			want = append(want, Record{
				OrderID: loaded.ID, BatchID: loaded.BatchID, UserID: "u", RequestKey: loaded.RequestKey,
				Quantity: loaded.Quantity, Returned: loaded.Returned,
			})
		}
		got, err := appendRecords(nil, string(records), "u")
		require.NoError(t, err)
		require.Equal(t, want, got)
	})
}

// TestKeysStayApart: two request keys have one packed form only if they are the same.
func TestKeysStayApart(t *testing.T) {
	uuid := "0190b3a0-7c1e-7d3a-9d0a-5b6f2f1e8c4d"
	raw := string([]byte{0x01, 0x90, 0xb3, 0xa0, 0x7c, 0x1e, 0x7d, 0x3a, 0x9d, 0x0a, 0x5b, 0x6f, 0x2f, 0x1e, 0x8c, 0x4d})
	keys := []string{uuid, raw, strings.ToUpper(uuid), strings.ReplaceAll(uuid, "-", ""), "", "\x00", "\x90" + raw}
	seen := map[string]string{}
	for _, k := range keys {
		entry, err := appendEntry(nil, &sale.Order{ID: 1, UserID: "u", RequestKey: k, Quantity: 1})
		require.NoError(t, err)
		require.NotContains(t, seen, string(entry[10:]), "%q", k)
		seen[string(entry[10:])] = k
	}
	entry, err := appendEntry(nil, &sale.Order{ID: 1, UserID: "u", RequestKey: uuid, Quantity: 1})
	require.NoError(t, err)
	require.Equal(t, "\x90"+raw, string(entry[10:]))
}

// FuzzRead: no bytes make a reader panic, and what it reads it writes and reads again.
func FuzzRead(f *testing.F) {
	row, err := appendRow(nil, &LoadedOrder{Order: sale.Order{ID: 5, UserID: "u", RequestKey: "0190b3a0-7c1e-7d3a-9d0a-5b6f2f1e8c4d", Quantity: 2}, BatchID: 7})
	require.NoError(f, err)
	f.Add(string(row[2:]), "C"+string(row[:1])+"u"+string(row[3:len(row)-idBytes]))
	f.Add("H", "V1763717500123")
	f.Add("", "R")
	f.Fuzz(func(t *testing.T, records, batch string) {
		if got, err := appendRecords(nil, records, "u"); err == nil {
			var again []byte
			for _, r := range got {
				o := sale.Order{ID: r.OrderID, UserID: "u", RequestKey: r.RequestKey, Quantity: r.Quantity}
				row, err := appendRow(nil, &LoadedOrder{Order: o, BatchID: r.BatchID, Returned: r.Returned})
				if err != nil {
					return // out of the domain's limits
				}
				again = append(again, row[2:]...)
			}
			// A UUID that was written out in full is read, and written short.
			require.LessOrEqual(t, len(again), len(records))
			reread, err := appendRecords(nil, string(again), "u")
			require.NoError(t, err)
			require.Equal(t, got, reread)
		}
		if got, err := readBatch("s", packID(1), batch); err == nil && got.State == StateConfirmed {
			packed, err := packOrders(got.Orders)
			if err != nil {
				return
			}
			reread, err := readBatch("s", packID(1), "C"+packed)
			require.NoError(t, err)
			require.Equal(t, got, reread)
		}
	})
}
