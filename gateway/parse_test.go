package gateway

import (
	"bytes"
	"encoding/json"
	"io"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"flashgate/internal/sale"
)

func TestParseQuantity(t *testing.T) {
	for body, want := range map[string]int{
		`{"quantity":1}`:                    1,
		`{"quantity":10000}`:                10000,
		" \t\r\n{ \"quantity\" : 42 } \n":   42,
		`{}`:                                1,
		`{ }`:                               1,
		`{"quantity":10001}`:                0,
		`{"quantity":0}`:                    0,
		`{"quantity":00}`:                   0,
		`{"quantity":01}`:                   0,
		`{"quantity":-1}`:                   0,
		`{"quantity":+1}`:                   0,
		`{"quantity":1.0}`:                  0,
		`{"quantity":1e1}`:                  0,
		`{"quantity":"1"}`:                  0,
		`{"quantity":null}`:                 0,
		`{"quantity":true}`:                 0,
		`{"quantity":[1]}`:                  0,
		`{"quantity":1x}`:                   0,
		`{"quantity":}`:                     0,
		`{"quantity"}`:                      0,
		`{"quantity":1`:                     0,
		`{"quantity":1,}`:                   0,
		`{"quantity":1,,}`:                  0,
		`{,"quantity":1}`:                   0,
		`{"quantity":1,"quantity":1}`:       0,
		`{"quantity":1,"note":""}`:          0,
		`{"Quantity":1}`:                    0,
		`{"quantit\u0079":1}`:               0,
		`{'quantity':1}`:                    0,
		`{"quantity":1}{}`:                  0,
		`{"quantity":1} x`:                  0,
		`[{"quantity":1}]`:                  0,
		`1`:                                 0,
		`null`:                              0,
		`"`:                                 0,
		`{`:                                 0,
		` `:                                 0,
		"\ufeff{}":                          0,
		"{\"quantity\":1}\x00":              0,
		`{"quantity":18446744073709551617}`: 0,
		`{"quantity":` + strings.Repeat("9", 4000): 0,
	} {
		got, fault := parseQuantity([]byte(body))
		require.Equal(t, want, got*boolInt(fault == ""), body)
		require.Equal(t, want == 0, fault != "", body)
	}
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// Whatever is taken is JSON of one object with that quantity; whatever plain JSON
// of that form there is, is taken.
func FuzzParseQuantity(f *testing.F) {
	for _, seed := range []string{`{"quantity":1}`, `{}`, ` {"quantity" : 9999 } `, `{"quantity":1,"quantity":2}`, `{"quantity":1e3}`, `{"q`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		n, fault := parseQuantity(body)
		plain, ok := plainQuantity(body)
		if (fault == "") != ok || fault == "" && n != plain {
			t.Fatalf("%q: parsed %d (%q), want %d (%t)", body, n, fault, plain, ok)
		}
	})
}

// plainQuantity is parseQuantity by way of encoding/json.
func plainQuantity(body []byte) (int, bool) {
	d := json.NewDecoder(bytes.NewReader(body))
	d.UseNumber()
	if token, err := d.Token(); err != nil || token != json.Delim('{') {
		return 0, false
	}
	n := 1
	if d.More() {
		key, err := d.Token()
		if err != nil || key != "quantity" || !bytes.Contains(body, []byte(`"quantity"`)) {
			return 0, false
		}
		value, err := d.Token()
		number, isNumber := value.(json.Number)
		if err != nil || !isNumber || strings.ContainsAny(number.String(), ".eE") {
			return 0, false
		}
		v, err := number.Int64()
		if err != nil || v < 1 || v > sale.MaxQuantity {
			return 0, false
		}
		n = int(v)
	}
	if token, err := d.Token(); err != nil || token != json.Delim('}') {
		return 0, false
	}
	_, err := d.Token()
	return n, err == io.EOF && json.Valid(body)
}

func TestParseRoute(t *testing.T) {
	for path, want := range map[string]struct {
		r  route
		id string
	}{
		"/v1/sales":                        {routeSales, ""},
		"/v1/sales/":                       {routeUnknown, ""},
		"/v1/sales/a":                      {routeSale, "a"},
		"/v1/sales/a/":                     {routeUnknown, ""},
		"/v1/sales/a/purchases":            {routePurchases, "a"},
		"/v1/sales/purchases":              {routeSale, "purchases"},
		"/v1/sales/a/purchases/":           {routeUnknown, ""},
		"/v1/sales/a/purchases/b":          {routeUnknown, ""},
		"/v1/sales/a/orders":               {routeUnknown, ""},
		"/v1/sales//purchases":             {routeUnknown, ""},
		"/v1/salesx":                       {routeUnknown, ""},
		"/v1/orders":                       {routeOrders, ""},
		"/v1/orders/7":                     {routeOrder, "7"},
		"/v1/orders/7/":                    {routeUnknown, ""},
		"/v1/orders/7/8":                   {routeUnknown, ""},
		"/v1/ordersx":                      {routeUnknown, ""},
		"/v2/sales":                        {routeUnknown, ""},
		"/":                                {routeUnknown, ""},
		"":                                 {routeUnknown, ""},
		"/V1/sales":                        {routeUnknown, ""},
		"/v1/sales/purchases/purchases":    {routePurchases, "purchases"},
		"/v1/sales/a/purchases?quantity=1": {routeUnknown, ""},
	} {
		r, id := parseRoute([]byte(path))
		require.Equal(t, want.r, r, path)
		require.Equal(t, want.id, string(id), path)
	}
}

func FuzzParseRoute(f *testing.F) {
	for _, seed := range []string{"/v1/sales", "/v1/sales/a/purchases", "/v1/orders/7", "/v1/sales//", "/"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, path []byte) {
		r, id := parseRoute(path)
		want, wantID := routeUnknown, ""
		switch p := strings.Split(string(path), "/"); {
		case len(p) < 3 || p[0] != "" || p[1] != "v1":
		case p[2] == "sales" && len(p) == 3:
			want = routeSales
		case p[2] == "sales" && len(p) == 4 && p[3] != "":
			want, wantID = routeSale, p[3]
		case p[2] == "sales" && len(p) == 5 && p[3] != "" && p[4] == "purchases":
			want, wantID = routePurchases, p[3]
		case p[2] == "orders" && len(p) == 3:
			want = routeOrders
		case p[2] == "orders" && len(p) == 4 && p[3] != "":
			want, wantID = routeOrder, p[3]
		}
		if r != want || string(id) != wantID {
			t.Fatalf("%q: route %s id %q, want %s id %q", path, routeNames[r], id, routeNames[want], wantID)
		}
	})
}

func FuzzPlainText(f *testing.F) {
	for _, seed := range []string{"a", "clé", "\x00", "\x7f", "\u0085", "\xff", "\ufffd", ""} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		want := utf8.Valid(b) && !strings.ContainsFunc(string(b), unicode.IsControl)
		if got := plainText(b); got != want {
			t.Fatalf("%q: %t, want %t", b, got, want)
		}
	})
}

func FuzzJSONString(f *testing.F) {
	for _, seed := range []string{"", `"\`, "\n\x1f", "é", "\xff", "<&>", "\u2028"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var got string
		if err := json.Unmarshal(appendJSONString(nil, s), &got); err != nil {
			t.Fatalf("%q: %v", s, err)
		}
		if want := strings.ToValidUTF8(s, "\ufffd"); utf8.ValidString(s) && got != want {
			t.Fatalf("%q became %q", s, got)
		}
	})
}

// One body for each code, and each a document of its own.
func TestProblems(t *testing.T) {
	for code, p := range problems {
		require.Equal(t, code, p.code)
		require.True(t, json.Valid(p.plain), code)
		status, body := Problem(nil, code, `a "detail"`)
		require.Equal(t, p.status, status)
		var m map[string]any
		require.NoError(t, json.Unmarshal(body, &m))
		require.Equal(t, `a "detail"`, m["detail"])
		_, body = Problem([]byte("x"), code, "")
		require.Equal(t, "x"+string(p.plain), string(body))
	}
	status, _ := Problem(nil, "NEW", "")
	require.Equal(t, 500, status)
}
