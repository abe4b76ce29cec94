package bus

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"flashgate/internal/sale"
)

// FuzzEncode holds the codec against encoding/json and against itself: what Encode
// takes is standard JSON and comes back equal; what it refuses, no message may carry.
func FuzzEncode(f *testing.F) {
	f.Add(int64(1), "spring", int64(0), int64(2), "user", "key", 1, int64(1999))
	f.Add(int64(1), "spring", int64(3), int64(2), "\"\\\x00\x1f\x7f\u2028日本<>&", "", sale.MaxQuantity, int64(0))
	f.Add(int64(1<<62), "S", int64(1<<62), int64(1<<62), strings.Repeat("é", 32), "\xff", 1, int64(1<<62))
	f.Fuzz(func(t *testing.T, batchID int64, saleID string, epoch, orderID int64, user, key string, quantity int, amount int64) {
		o := sale.Order{ID: sale.ID(orderID), SaleID: saleID, UserID: user, RequestKey: key, Quantity: quantity, AmountCents: amount}
		b := &sale.Batch{ID: sale.ID(batchID), SaleID: saleID, Epoch: epoch, Orders: []sale.Order{o, o}}
		body, err := Encode(b)
		if err != nil {
			legal := batchID > 0 && sale.ValidID(saleID) && epoch >= 0 && orderID > 0 &&
				user != "" && len(user) <= sale.MaxUserIDBytes && utf8.ValidString(user) &&
				len(key) <= sale.MaxRequestKeyBytes && utf8.ValidString(key) &&
				quantity >= 1 && quantity <= sale.MaxQuantity && amount >= 0
			require.False(t, legal, "refused: %v", err)
			return
		}
		require.True(t, json.Valid(body), "%s", body)
		var generic struct {
			Orders []map[string]any `json:"orders"`
		}
		require.NoError(t, json.Unmarshal(body, &generic))
		require.Equal(t, user, generic.Orders[1]["user_id"])
		require.Equal(t, key, generic.Orders[1]["request_key"])
		got, err := Decode(body)
		require.NoError(t, err)
		require.Equal(t, b, got)
	})
}

// FuzzDecode: whatever comes is refused, or is a batch that Encode takes.
func FuzzDecode(f *testing.F) {
	body, err := Encode(newBatch(2))
	require.NoError(f, err)
	f.Add(body)
	f.Add([]byte(`{"v":1}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, body []byte) {
		b, err := Decode(body)
		if own, ok := scanOwn(string(body)); ok && utf8.Valid(body) {
			general, err := decodeJSON(body)
			require.NoError(t, err)
			require.Equal(t, general, own, "both ways")
		}
		if err != nil {
			require.Nil(t, b)
			return
		}
		again, err := Encode(b)
		require.NoError(t, err)
		got, err := Decode(again)
		require.NoError(t, err)
		require.Equal(t, b, got)
	})
}

func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := &sale.Batch{
			ID:     sale.ID(rapid.Int64Min(1).Draw(t, "batch")),
			SaleID: rapid.StringMatching(`[A-Za-z0-9_-]{1,64}`).Draw(t, "sale"),
			Epoch:  rapid.Int64Min(0).Draw(t, "epoch"),
		}
		for range rapid.IntRange(1, 20).Draw(t, "orders") {
			b.Orders = append(b.Orders, sale.Order{
				ID:     sale.ID(rapid.Int64Min(1).Draw(t, "order")),
				SaleID: b.SaleID,
				UserID: rapid.StringN(1, -1, sale.MaxUserIDBytes).Draw(t, "user"),

				RequestKey:  rapid.StringN(0, -1, sale.MaxRequestKeyBytes).Draw(t, "key"),
				Quantity:    rapid.IntRange(1, sale.MaxQuantity).Draw(t, "quantity"),
				AmountCents: rapid.Int64Min(0).Draw(t, "amount"),
			})
		}
		body, err := Encode(b)
		require.NoError(t, err)
		got, err := Decode(body)
		require.NoError(t, err)
		require.Equal(t, b, got)
		general, err := decodeJSON(body)
		require.NoError(t, err)
		require.Equal(t, b, general)
	})
}

// Whatever is left out, put in or changed in a body, both ways of reading it agree.
func TestBothWaysOfReadingAgree(t *testing.T) {
	body, err := Encode(newBatch(2))
	require.NoError(t, err)
	taken := 0
	for i := range body {
		for _, piece := range []string{"", "0", "-", "1", `"`, `\`, " ", "\x01", ",", "}", "9999999999999999999", "é"} {
			for _, skip := range []int{0, 1} {
				changed := append(append(slices.Clone(body[:i]), piece...), body[i+skip:]...)
				own, ok := scanOwn(string(changed))
				if !ok {
					continue
				}
				taken++
				general, err := decodeJSON(changed)
				require.NoError(t, err, "%s", changed)
				require.Equal(t, general, own, "%s", changed)
			}
		}
	}
	require.Greater(t, taken, 100)
	_, ok := scanOwn(string(body))
	require.True(t, ok, "the quick way is taken")
}

// What shoppers write makes no room for orders that are not there.
func TestRoomIsForOrdersAlone(t *testing.T) {
	b := newBatch(2)
	for i := range b.Orders {
		b.Orders[i].RequestKey = strings.Repeat("{", sale.MaxRequestKeyBytes)
	}
	body, err := Encode(b)
	require.NoError(t, err)
	got, ok := scanOwn(string(body))
	require.True(t, ok)
	require.Equal(t, b, got)
	require.Equal(t, 2, cap(got.Orders))
}

// The body's form is a contract: workers of the next version read it.
func TestEncodedForm(t *testing.T) {
	b := &sale.Batch{ID: 7, SaleID: "spring", Epoch: 2, Orders: []sale.Order{
		{ID: 1 << 22, SaleID: "spring", UserID: `a"b`, RequestKey: "k", Quantity: 2, AmountCents: 3998},
	}}
	body, err := Encode(b)
	require.NoError(t, err)
	require.Equal(t, `{"v":1,"batch_id":"7","sale_id":"spring","epoch":2,"orders":[{"order_id":"4194304",`+
		`"user_id":"a\"b","request_key":"k","quantity":2,"amount_cents":3998,"created_ms":1735689600001}]}`, string(body))
}

func TestDecodeRefuses(t *testing.T) {
	order := map[string]any{
		"order_id": "4194304", "user_id": "u", "request_key": "k",
		"quantity": 1, "amount_cents": 1999, "created_ms": 1735689600001,
	}
	whole := map[string]any{"v": 1, "batch_id": "7", "sale_id": "spring", "epoch": 2, "orders": []any{order}}
	encode := func(m map[string]any, change string, value any) []byte {
		changed := map[string]any{}
		for k, v := range m {
			changed[k] = v
		}
		if value == nil {
			delete(changed, change)
		} else {
			changed[change] = value
		}
		body, err := json.Marshal(changed)
		require.NoError(t, err)
		return body
	}
	inOrder := func(change string, value any) []byte {
		return encode(whole, "orders", []json.RawMessage{encode(order, change, value)})
	}
	_, err := Decode(encode(whole, "more", "fields"))
	require.NoError(t, err, "the body that the cases spoil")

	cases := map[string]struct {
		body []byte
		says string
	}{
		"empty":                   {nil, "unexpected end"},
		"cut":                     {[]byte(`{"v":1,"batch_id":"7"`), "unexpected end"},
		"trailing":                {slices.Concat(encode(whole, "v", 1), []byte("{}")), "after top-level value"},
		"not UTF-8":               {[]byte("{\"v\":1,\"sale_id\":\"\xff\"}"), "not UTF-8"},
		"later version":           {encode(whole, "v", 2), "version 2"},
		"version of another form": {[]byte(`{"v":2,"batch_id":7}`), "version 2"},
		"no version":              {encode(whole, "v", nil), "version 0"},
		"no batch id":             {encode(whole, "batch_id", nil), "batch_id"},
		"batch id a number":       {encode(whole, "batch_id", 7), "not an id"},
		"batch id signed":         {encode(whole, "batch_id", "+7"), "not an id"},
		"batch id too long":       {encode(whole, "batch_id", "9223372036854775808"), "not an id"},
		"no sale":                 {encode(whole, "sale_id", nil), "sale_id"},
		"sale with a space":       {encode(whole, "sale_id", "a b"), "sale_id"},
		"no epoch":                {encode(whole, "epoch", nil), "epoch"},
		"epoch below 0":           {encode(whole, "epoch", -1), "epoch"},
		"no orders":               {encode(whole, "orders", nil), "no orders"},
		"orders empty":            {encode(whole, "orders", []any{}), "no orders"},
		"no order id":             {inOrder("order_id", nil), "order 0"},
		"order id 0":              {inOrder("order_id", "0"), "not an id"},
		"no user":                 {inOrder("user_id", nil), "user_id"},
		"user too long":           {inOrder("user_id", strings.Repeat("u", 65)), "user_id has 65 bytes"},
		"no key":                  {inOrder("request_key", nil), "request_key"},
		"key too long":            {inOrder("request_key", strings.Repeat("k", 65)), "request_key has 65 bytes"},
		"no quantity":             {inOrder("quantity", nil), "quantity 0"},
		"quantity below 1":        {inOrder("quantity", -1), "quantity -1"},
		"quantity a fraction":     {inOrder("quantity", 1.5), "quantity"},
		"quantity too big":        {inOrder("quantity", sale.MaxQuantity+1), "quantity 10001"},
		"no amount":               {inOrder("amount_cents", nil), "amount_cents"},
		"amount below 0":          {inOrder("amount_cents", -1), "amount_cents"},
		"no time":                 {inOrder("created_ms", nil), "created_ms"},
		"time not the order's":    {inOrder("created_ms", 1735689600002), "created_ms"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			b, err := Decode(c.body)
			require.Nil(t, b)
			require.ErrorContains(t, err, c.says)
		})
	}
}

func TestEncodeAllocatesOnce(t *testing.T) {
	b := newBatch(50)
	require.LessOrEqual(t, testing.AllocsPerRun(100, func() { _, _ = Encode(b) }), 1.0)
}

func BenchmarkEncode(b *testing.B) {
	batch := newBatch(50)
	body, err := Encode(batch)
	require.NoError(b, err)
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Encode(batch); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDecode(b *testing.B) {
	body, err := Encode(newBatch(50))
	require.NoError(b, err)
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Decode(body); err != nil {
			b.Fatal(err)
		}
	}
}
