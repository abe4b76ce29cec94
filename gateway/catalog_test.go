package gateway

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"flashgate/internal/sale"
)

const springJSON = `{"id":"spring","title":"Tea \"Longjing\" <1 kg>","price_cents":1999,"currency":"CNY","total":1000,"per_user_limit":2,` +
	`"starts_at":"2026-03-01T10:00:00.000Z","ends_at":"2026-03-01T11:00:00.000Z","status":"%s","stock_left":%s,"server_time":"2026-03-01T10:30:00.000Z"}`

func TestSales(t *testing.T) {
	x := newEdge(t, accept)
	want := fmt.Sprintf(springJSON, "OPEN", "700")
	x.eventually(func() bool { return x.do("GET", "/v1/sales/spring", "").body == want })
	r := x.do("GET", "/v1/sales", "")
	require.Equal(t, 200, r.status)
	require.Equal(t, `{"sales":[`+want+`]}`, r.body)
	require.Equal(t, "application/json", r.header.Get("Content-Type"))
	require.Equal(t, "no-store", r.header.Get("Cache-Control"))
	head := x.do("HEAD", "/v1/sales/spring", "")
	require.Equal(t, 200, head.status)
	require.Empty(t, head.body)
	require.True(t, json.Valid([]byte(r.body)))
}

func TestPhases(t *testing.T) {
	x := newEdge(t, accept)
	for _, c := range []struct {
		name   string
		change func(*sale.Sale)
		stock  int64
		phase  string
		left   string
	}{
		{"open", func(*sale.Sale) {}, 3, "OPEN", "3"},
		{"sold out", func(*sale.Sale) {}, 0, "SOLD_OUT", "0"},
		{"paused", func(s *sale.Sale) { s.Status = sale.Paused }, 3, "PAUSED", "3"},
		{"upcoming", func(s *sale.Sale) { s.StartsAt = clock().Add(1) }, 3, "UPCOMING", "3"},
		{"at its end", func(s *sale.Sale) { s.EndsAt = clock() }, 3, "ENDED", "3"},
	} {
		s := flashSale()
		c.change(&s)
		x.engines.change(func() { x.engines.sales[0], x.engines.stocks["spring"] = s, c.stock })
		x.eventually(func() bool {
			r := x.do("GET", "/v1/sales/spring", "")
			return r.field(t, "status") == c.phase && fmt.Sprint(r.field(t, "stock_left")) == c.left
		})
	}
}

// still clock, hand-turned refreshes: what is shown follows the engines, and
// survives them.
func TestCatalog(t *testing.T) {
	ctx := context.Background()
	e := &engines{ledgerAway: true, stocks: map[string]int64{}}
	now := clock()
	c := &catalog{ledger: e, stock: e, now: func() time.Time { return now }}
	require.ErrorIs(t, c.refresh(ctx), errAway)
	_, ready := c.find([]byte("spring"))
	require.False(t, ready, "nobody knows whether it exists")
	require.False(t, c.lacks("spring"))
	require.NoError(t, c.refreshStock(ctx))

	e.ledgerAway, e.sales = false, []sale.Sale{flashSale()}
	require.NoError(t, c.refresh(ctx))
	l, ready := c.find([]byte("spring"))
	require.True(t, ready)
	require.False(t, c.lacks("spring"))
	require.True(t, c.lacks("other"))
	shown := func() string {
		l, _ := c.find([]byte("spring"))
		return string(l.append(nil, clock()))
	}
	require.Equal(t, fmt.Sprintf(springJSON, "OPEN", "null"), shown(), "not read yet")
	require.NoError(t, c.refreshStock(ctx))
	require.Equal(t, fmt.Sprintf(springJSON, "OPEN", "null"), shown(), "not loaded")
	e.stocks["spring"] = 9
	require.NoError(t, c.refreshStock(ctx))
	require.Equal(t, fmt.Sprintf(springJSON, "OPEN", "9"), shown())
	e.stocks["spring"] = -4 // Redis learned late that units are gone
	require.NoError(t, c.refreshStock(ctx))
	require.Equal(t, fmt.Sprintf(springJSON, "SOLD_OUT", "0"), shown())
	e.stocks["spring"] = 9
	require.NoError(t, c.refreshStock(ctx))

	// The stock stays with a sale whose terms change; what has not changed is kept.
	e.sales[0].Total++
	require.NoError(t, c.refresh(ctx))
	changed, _ := c.find([]byte("spring"))
	require.NotSame(t, l, changed)
	require.Contains(t, shown(), `"total":1001`)
	require.Contains(t, shown(), `"stock_left":9`)
	require.NoError(t, c.refresh(ctx))
	same, _ := c.find([]byte("spring"))
	require.Same(t, changed, same)

	// Redis away: the last number stays for a while, and is no number afterwards.
	e.redisAway = true
	require.ErrorIs(t, c.refreshStock(ctx), errAway)
	require.Contains(t, shown(), `"stock_left":9`)
	old := same.reading.Load().at.Add(stockMaxAgeMillis * time.Millisecond)
	require.Contains(t, string(same.append(nil, old)), `"status":"OPEN","stock_left":null`)

	// The ledger away: the last view stays, but proves nothing any more.
	e.ledgerAway = true
	require.Error(t, c.refresh(ctx))
	now = now.Add(freshMillis * time.Millisecond)
	_, ready = c.find([]byte("spring"))
	require.True(t, ready)
	require.False(t, c.lacks("other"))
	require.Equal(t, 2*time.Second, c.age(now))
	require.Equal(t, 2*time.Second, c.stockAge(now))

	// Long after its end nobody asks Redis for a sale.
	e.redisAway, now = false, same.sale.EndsAt.Add(stockAfterEndMinutes*time.Minute)
	before := same.reading.Load()
	require.NoError(t, c.refreshStock(ctx))
	require.Same(t, before, same.reading.Load())
}

func TestManySales(t *testing.T) {
	e := &engines{stocks: map[string]int64{}}
	for i := range listMax + stocksMax {
		s := flashSale()
		s.ID = fmt.Sprintf("s%04d", i)
		e.sales = append(e.sales, s)
		e.stocks[s.ID] = int64(i + 1)
	}
	c := &catalog{ledger: e, stock: e, now: clock}
	require.NoError(t, c.refresh(context.Background()))
	require.NoError(t, c.refreshStock(context.Background()))
	var list struct {
		Sales []struct {
			ID   string `json:"id"`
			Left int64  `json:"stock_left"`
		}
	}
	require.NoError(t, json.Unmarshal(c.view.Load().append(nil, clock()), &list))
	require.Len(t, list.Sales, listMax)
	for i, s := range list.Sales {
		require.Equal(t, fmt.Sprintf("s%04d", i+stocksMax), s.ID, "the latest")
		require.Equal(t, int64(i+stocksMax+1), s.Left)
	}
}

func TestNoViewYet(t *testing.T) {
	x := newEdge(t, accept, func(o *Options) { o.Ledger = &engines{ledgerAway: true} })
	x.problem(x.do("GET", "/v1/sales", ""), 503, sale.CodeUnavailable)
	x.problem(x.do("GET", "/v1/sales/spring", ""), 503, sale.CodeUnavailable)
	x.problem(x.buy(), 503, sale.CodeUnavailable)
	x.problem(x.do("GET", "/v1/orders", "", "Authorization", "Bearer user-alice"), 503, sale.CodeUnavailable)
	require.Error(t, x.g.Ready())
}
