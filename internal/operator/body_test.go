package operator

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"flashgate/internal/sale"
	"flashgate/reconciler"
)

func read(body string, v any) error {
	return readJSON(httptest.NewRequest(http.MethodPost, "/", strings.NewReader(body)), v)
}

// A body is one JSON object that says each thing once, by its exact name: an operator's
// slip must not change more than he wrote.
func TestBodiesAreStrict(t *testing.T) {
	for _, body := range []string{``, ` `, `{}`, `{"add":5}`, ` {"add": 5, "total": 7} ` + "\n"} {
		require.NoError(t, read(body, new(Restock)), body)
	}
	for name, body := range map[string]string{
		"null":                   `null`,
		"a list":                 `[]`,
		"a number":               `5`,
		"unknown":                `{"adds":5}`,
		"another case":           `{"ADD":5}`,
		"twice":                  `{"add":5,"add":-500}`,
		"twice, by an escape":    `{"add":5,"\u0061dd":-500}`,
		"trailing brace":         `{"add":5}}`,
		"trailing bracket":       `{"add":5}]`,
		"trailing value":         `{"add":5}{"add":6}`,
		"cut":                    `{"add":5`,
		"no UTF-8":               "{\"add\":5,\"\xff\":1}",
		"beyond 64 bits":         `{"add":9223372036854775808}`,
		"a fraction":             `{"add":1.5}`,
		"a text":                 `{"add":"5"}`,
		"deep":                   strings.Repeat(`{"add":`, 20000),
		"deep, below a stranger": `{"x":` + strings.Repeat("[", 30000) + strings.Repeat("]", 30000) + `}`,
	} {
		err := read(body, new(Restock))
		require.Equal(t, sale.CodeInvalid, sale.CodeOf(err), "%s: %v", name, err)
		require.LessOrEqual(t, len(err.Error()), 300, name)
	}
	require.Error(t, read(`{"id":"a","ID":"b"}`, new(SaleSpec)))
	for _, body := range []string{`{"trigger":"schedule"}`, `{"Trigger":"schedule"}`, `{"-":"schedule"}`} {
		require.Error(t, read(body, new(reconciler.Query)), "an operator's run is not the schedule's")
	}
	var spec SaleSpec
	require.NoError(t, read(`{"id":"a","starts_at":"2026-11-21T10:00:00Z"}`, &spec))
	require.Equal(t, "a", spec.ID)
}

// FuzzBodies: what is read is what encoding/json reads of it, and is one object.
func FuzzBodies(f *testing.F) {
	for _, seed := range []string{
		``, `{}`, `null`, `{"add":5}`, `{"add":5}}`, `{"add":5,"add":6}`, `{"sale_id":"s","dry_run":true}`, `{"DRY_RUN":true}`,
		`{"id":"s","title":"T","total":5,"price_cents":1,"currency":"CNY","per_user_limit":1,"starts_at":"2026-11-21T10:00:00Z","ends_at":"2026-11-21T11:00:00Z"}`,
		`{"id":"\ud800"}`, "{\"id\":\"\xff\"}", `{"ends_at":"0000-00-00T00:00:00Z"}`,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, body string) {
		for _, v := range []any{new(SaleSpec), new(Restock), new(reconciler.Query)} {
			if err := read(body, v); err != nil {
				require.Equal(t, sale.CodeInvalid, sale.CodeOf(err))
				continue
			}
			trimmed := strings.TrimSpace(body)
			if trimmed == "" {
				continue
			}
			require.True(t, json.Valid([]byte(body)) && trimmed[0] == '{', "%q", body)
			names := map[string]bool{}
			d := json.NewDecoder(strings.NewReader(body))
			_, err := d.Token()
			require.NoError(t, err)
			for d.More() {
				name, err := d.Token()
				require.NoError(t, err)
				require.False(t, names[name.(string)], "%q twice", name)
				names[name.(string)] = true
				var value json.RawMessage
				require.NoError(t, d.Decode(&value))
			}
			_, err = d.Token()
			require.NoError(t, err)
			_, err = d.Token()
			require.ErrorIs(t, err, io.EOF)
		}
	})
}
