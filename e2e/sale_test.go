package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestE2EStorm is the whole path on the real engines, by the load driver: two
// gateways, two workers, a reconciler; every shopper sends twice with one key; every
// answer, every order and the audit are checked (invariants 1, 2, 3, 4, 8, 9).
func TestE2EStorm(t *testing.T) {
	f := newFolder(t).realEngines()
	c := f.command(bench, "storm", "--start", "daemons", "--flashgate", flashgate, "--config", f.file, "--mysql",
		"--shoppers", "2000", "--total", "100", "--connections", "64")
	out := runBounded(t, c, loadTimeout)
	require.Contains(t, out, "storm: good")
}

// TestE2EDrift plants differences of every kind by hand, in a sale that sells: they are
// found and repaired, and no shopper notices (invariants 1, 4, 6, 8, 9).
func TestE2EDrift(t *testing.T) {
	f := newFolder(t).realEngines()
	c := f.command(bench, "drift", "--start", "daemons", "--flashgate", flashgate, "--config", f.file,
		"--orders", "1,20", "--rate", "20", "--last", "50", "--watermark", "1s", "--longest", loadTimeout.String(), "--connections", "64")
	out := runBounded(t, c, loadTimeout)
	require.Contains(t, out, "drift: good")
}

func runBounded(t *testing.T, c *exec.Cmd, timeout time.Duration) string {
	t.Helper()
	timer := time.AfterFunc(timeout, func() { _ = c.Process.Kill() })
	defer timer.Stop()
	out, err := c.CombinedOutput()
	require.NoError(t, err, "%s", out)
	return string(out)
}

// TestE2ERefusals: each refusal has its documented status and code, and nothing is
// reserved by any of them.
func TestE2ERefusals(t *testing.T) {
	f := newFolder(t).realEngines()
	f.must("migrate")
	now := time.Now().UTC()
	at := func(d time.Duration) string { return now.Add(d).Format(time.RFC3339) }
	id := func(name string) string { return fmt.Sprintf("%s-%d", name, now.UnixNano()) }
	open, future, past, paused, draft := id("open"), id("future"), id("past"), id("paused"), id("draft")
	f.openSale(open, "--total", "10", "--per-user-limit", "2", "--ends-at", at(time.Hour))
	f.openSale(future, "--total", "10", "--starts-at", at(time.Hour), "--ends-at", at(2*time.Hour))
	f.openSale(past, "--total", "10", "--starts-at", at(-2*time.Hour), "--ends-at", at(-time.Hour))
	f.openSale(paused, "--total", "10", "--ends-at", at(time.Hour))
	f.must("sale", "pause", paused)
	f.must("sale", "create", "--id", draft, "--title", "T", "--total", "10", "--price-cents", "1", "--ends-at", at(time.Hour))
	g := f.start("gateway").ready()
	worker := f.start("worker").ready()

	alice := strings.TrimSpace(f.must("token", "--user", "alice"))
	expired := strings.TrimSpace(f.must("token", "--user", "eve", "--ttl", "1s"))
	url := func(sale string) string { return "http://" + g.shoppers + "/v1/sales/" + sale + "/purchases" }
	for _, c := range []struct {
		name              string
		sale, token, body string
		status            int
		code              string
	}{
		{"quantity over the limit", open, alice, `{"quantity":3}`, 409, "LIMIT_REACHED"},
		{"no token", open, "", "", 401, "UNAUTHENTICATED"},
		{"another's signature", open, alice[:len(alice)-6] + "AAAAAA", "", 401, "UNAUTHENTICATED"},
		{"an expired token", open, expired, "", 401, "UNAUTHENTICATED"},
		{"an unknown sale", "nothing-" + open, alice, "", 404, "SALE_NOT_FOUND"},
		{"a draft", draft, alice, "", 404, "SALE_NOT_FOUND"},
		{"a sale not begun", future, alice, "", 409, "NOT_STARTED"},
		{"a sale that ended", past, alice, "", 409, "ENDED"},
		{"a paused sale", paused, alice, "", 409, "PAUSED"},
		{"malformed JSON", open, alice, `{"quantity":`, 400, "INVALID_REQUEST"},
		{"an unknown field", open, alice, `{"quantity":1,"x":1}`, 400, "INVALID_REQUEST"},
		{"a quantity of 0", open, alice, `{"quantity":0}`, 400, "INVALID_REQUEST"},
		{"an oversized body", open, alice, `{"quantity":1` + strings.Repeat(" ", 5000) + `}`, 413, "BODY_TOO_LARGE"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.token == expired {
				// The leeway for clocks is part of the contract of exp.
				eventually(t, waitTimeout, "the token has expired", func() bool {
					return send(t, http.MethodPost, url(past), expired, "", "").status == 401
				})
			}
			a := send(t, http.MethodPost, url(c.sale), c.token, "k", c.body)
			require.Equal(t, c.status, a.status, a.body)
			require.Equal(t, "application/problem+json", a.header.Get("Content-Type"))
			var problem struct{ Code string }
			require.NoError(t, json.Unmarshal([]byte(a.body), &problem))
			require.Equal(t, c.code, problem.Code)
		})
	}
	for _, line := range strings.Split(f.must("sale", "list"), "\n")[1:] {
		if fields := strings.Fields(line); len(fields) > 0 {
			want := []string{"10", "10", "0", "0", "10", "0"}
			if fields[0] == draft {
				want = append(want[:4], "not", "loaded", "-")
			}
			require.Equal(t, want, fields[4:], "nothing was reserved: %s", line)
		}
	}

	t.Run("a key reused with another quantity", func(t *testing.T) {
		require.Equal(t, 202, send(t, http.MethodPost, url(open), alice, "mine", `{"quantity":1}`).status)
		a := send(t, http.MethodPost, url(open), alice, "mine", `{"quantity":2}`)
		require.Equal(t, 422, a.status, a.body)
		require.Contains(t, a.body, "IDEMPOTENCY_KEY_REUSED")
	})
	t.Run("an operator's change is there within a second", func(t *testing.T) {
		bob := strings.TrimSpace(f.must("token", "--user", "bob"))
		f.must("sale", "open", paused)
		began := time.Now()
		eventually(t, waitTimeout, "the sale sells", func() bool {
			return send(t, http.MethodPost, url(paused), bob, "", "").status == 202
		})
		require.Less(t, time.Since(began), 1500*time.Millisecond, "1 s, and what a request takes under -race")
		f.must("sale", "restock", paused, "--add", "5")
		eventually(t, waitTimeout, "the new total is shown", func() bool {
			return strings.Contains(send(t, http.MethodGet, "http://"+g.shoppers+"/v1/sales/"+paused, "", "", "").body, `"total":15`)
		})
	})
	eventually(t, waitTimeout, "the orders are persisted and the audit is clean", func() bool {
		out, err := f.try("audit", "--json")
		return err == nil && strings.Contains(out, `"open_batches": 0`) && !strings.Contains(out, `"open_batches": 1`)
	})
	g.stop()
	worker.stop()
}

// TestE2EEmbeddedSurvivesKill: one command sells; after kill -9 the order is there, the
// stock is right, and another shopper can buy (invariants 2, 3, 4).
func TestE2EEmbeddedSurvivesKill(t *testing.T) {
	f := newFolder(t).embedded()
	first := f.start().ready()
	line := ""
	eventually(t, waitTimeout, "a line that buys is printed", func() bool {
		for _, l := range strings.Split(first.output(), "\n") {
			if strings.HasPrefix(l, "curl ") {
				line = l
			}
		}
		return line != ""
	})
	token := between(t, line, "Authorization: Bearer ", "'")
	key := between(t, line, "Idempotency-Key: ", "'")
	purchases := func(d *daemon) string { return "http://" + d.shoppers + "/v1/sales/demo/purchases" }
	require.Contains(t, line, purchases(first))

	bought := send(t, http.MethodPost, purchases(first), token, key, "")
	require.Equal(t, 202, bought.status, bought.body)
	require.Empty(t, bought.header.Get("Idempotent-Replayed"))
	again := send(t, http.MethodPost, purchases(first), token, key, "")
	require.Equal(t, "true", again.header.Get("Idempotent-Replayed"))
	require.Equal(t, orderID(t, bought), orderID(t, again))
	eventually(t, time.Second+waitTimeout, "the order's Location says PENDING_PAYMENT", func() bool {
		return strings.Contains(send(t, http.MethodGet, "http://"+first.shoppers+bought.header.Get("Location"), token, "", "").body, "PENDING_PAYMENT")
	})

	// Killed with a purchase that was answered a moment ago.
	carol := strings.TrimSpace(f.must("token", "--user", "carol"))
	last := send(t, http.MethodPost, purchases(first), carol, "", "")
	require.Equal(t, 202, last.status, last.body)
	first.kill()

	second := f.start().ready()
	require.Contains(t, send(t, http.MethodGet, "http://"+second.shoppers+"/v1/sales/demo", "", "", "").body, `"stock_left":98`)
	for _, c := range []struct{ token, key, id string }{{token, key, orderID(t, bought)}, {carol, "", orderID(t, last)}} {
		a := send(t, http.MethodPost, purchases(second), c.token, c.key, "")
		require.Equal(t, 202, a.status, a.body)
		require.Equal(t, c.id, orderID(t, a), "the order survived")
		require.Equal(t, "true", a.header.Get("Idempotent-Replayed"))
	}
	dave := strings.TrimSpace(f.must("token", "--user", "dave"))
	require.Equal(t, 202, send(t, http.MethodPost, purchases(second), dave, "", "").status)

	// Commands work beside the running process, and without one.
	require.Contains(t, f.must("sale", "list"), "demo")
	f.must("audit")
	second.stop()
	require.Contains(t, f.must("audit"), "no invariant is broken")
}

func between(t *testing.T, s, after, before string) string {
	t.Helper()
	_, s, ok := strings.Cut(s, after)
	require.True(t, ok, "%q is printed", after)
	s, _, ok = strings.Cut(s, before)
	require.True(t, ok)
	return s
}

func orderID(t *testing.T, a answer) string {
	t.Helper()
	var order struct {
		OrderID string `json:"order_id"`
	}
	require.NoError(t, json.Unmarshal([]byte(a.body), &order), a.body)
	require.NotEmpty(t, order.OrderID)
	return order.OrderID
}
