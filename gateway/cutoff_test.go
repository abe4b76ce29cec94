package gateway

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"flashgate/internal/bus"
	"flashgate/internal/purchase"
	"flashgate/internal/sale"
	"flashgate/internal/stock"
	"flashgate/internal/storetest"
)

// closedEdge is a gateway whose Redis says SOLD_OUT to everybody, and gives leases of an
// hour while the buyers are bob and cy. asked counts the purchases that Redis was asked.
func closedEdge(t *testing.T, change ...func(*Options)) (x *edge, asked *atomic.Int64) {
	t.Helper()
	asked = new(atomic.Int64)
	run := func(s *sale.Sale, requests []*purchase.Request) {
		asked.Add(int64(len(requests)))
		answering(purchase.Answer{Code: sale.CodeSoldOut})(s, requests)
	}
	x = newEdge(t, run, append([]func(*Options){func(o *Options) { o.CutoffLease = 20 * time.Millisecond }}, change...)...)
	x.g.cutoff.worth = 1
	x.engines.change(func() {
		x.engines.lease = func() (stock.Lease, error) {
			return stock.Lease{Left: time.Hour, Mark: stock.BuyersMark{Epoch: 1, Moves: 5, Process: "p"}, Buyers: 2}, nil
		}
		x.engines.buyers = []string{"bob", "cy"}
	})
	return x, asked
}

// shut has the gateway hold a view.
func (x *edge) shut() {
	x.t.Helper()
	x.eventually(func() bool {
		x.problem(x.buy(), 409, sale.CodeSoldOut)
		return x.g.cutoff.holding.Load() == 1
	})
}

func (x *edge) refusals() float64 { return testutil.ToFloat64(x.g.cutoff.refusals) }

func TestCutoffRefuses(t *testing.T) {
	x, asked := closedEdge(t)
	x.shut()
	before, refused := asked.Load(), x.refusals()
	x.problem(x.buy(), 409, sale.CodeSoldOut)
	require.Equal(t, before, asked.Load(), "Redis was not asked")
	require.Equal(t, refused+1, x.refusals())

	// Whoever may have an order, or may be told something else, is Redis's business.
	x.problem(x.buy("Authorization", "Bearer user-bob"), 409, sale.CodeSoldOut)
	require.Equal(t, before+1, asked.Load())
	x.do("POST", "/v1/sales/spring/purchases", `{"quantity":3}`, asAlice...)
	require.Equal(t, before+2, asked.Load(), "more than one user may hold")
	require.Equal(t, refused+1, x.refusals())
	x.problem(x.buy("Authorization", "Bearer forged"), 401, sale.CodeUnauthenticated)
	require.Equal(t, 2.0, float64(x.g.cutoff.buyers.Load()))
}

// What the sale's terms may say comes from Redis: that it has begun, once, and in the
// seconds around its end everything.
func TestCutoffLeavesTermsToRedis(t *testing.T) {
	v := &soldOut{until: time.Now().Add(time.Hour), wall: time.Now().Add(time.Hour).UnixNano(), buyers: map[string]struct{}{"bob": {}}}
	k := newCutoff(nil, time.Millisecond, 1, 1, nil)
	refuses := func(change func(s *sale.Sale), now time.Time) bool {
		l := &listing{sale: flashSale(), shutter: new(shutter)}
		k.soldOut(l, time.Now())
		change(&l.sale)
		l.shutter.view.Store(v)
		return k.refuses(l, []byte("alice"), 1, time.Now(), now)
	}
	same := func(*sale.Sale) {}
	s := flashSale()
	require.True(t, refuses(same, clock()))
	require.False(t, refuses(func(s *sale.Sale) { s.Status = sale.Paused }, clock()))
	require.False(t, refuses(func(s *sale.Sale) { s.PerUserLimit = 0 }, clock()))
	require.True(t, refuses(same, s.StartsAt), "the first moment is the busiest")
	require.False(t, refuses(same, s.StartsAt.Add(-time.Millisecond)), "this clock is behind Redis's")
	require.False(t, refuses(func(s *sale.Sale) { s.StartsAt = s.StartsAt.Add(time.Minute) }, clock()), "the start was moved")
	require.True(t, refuses(same, s.EndsAt.Add(-3*time.Second)))
	require.False(t, refuses(same, s.EndsAt.Add(-time.Second)))
}

// A lease that has lapsed by either clock is none, however long a request waited.
func TestCutoffEndsWithItsLease(t *testing.T) {
	now := time.Now()
	v := &soldOut{until: now.Add(time.Second), wall: now.Add(time.Second).UnixNano()}
	require.True(t, v.holds(now))
	require.False(t, v.holds(now.Add(time.Second)))
	v.wall = now.Add(-time.Hour).UnixNano()
	require.False(t, v.holds(now), "the machine was suspended")
	require.False(t, (*soldOut)(nil).holds(now))
}

// It lasts from before the call, not from the reply.
func TestCutoffCountsFromBeforeTheCall(t *testing.T) {
	for name, slow := range map[string]int{"first call": 1, "reading": 2} {
		t.Run(name, func(t *testing.T) {
			calls := 0
			var sent, replied time.Time
			e := &engines{buyers: []string{"bob"}}
			e.lease = func() (stock.Lease, error) {
				if calls++; calls == slow {
					sent = time.Now()
					for time.Since(sent) < 5*time.Millisecond { // the reply is late
					}
					replied = time.Now()
				} else {
					sent = time.Now()
				}
				return stock.Lease{Left: time.Minute, Mark: stock.BuyersMark{Moves: 1}}, nil
			}
			k := keeper{cutoff: newCutoff(e, time.Second, 10, 1, nil), shutter: new(shutter)}
			_, err := k.renew()
			require.NoError(t, err)
			if slow == 1 { // the second call is the one that counts; a renewal has the first alone
				calls = 0
				_, err = k.renew()
				require.NoError(t, err)
			}
			until := k.shutter.view.Load().until
			require.False(t, until.After(sent.Add(time.Minute)))
			require.True(t, until.Before(replied.Add(time.Minute)))
		})
	}
}

// The buyers are known only when nothing came between the two looks at the mark.
func TestCutoffReadsBuyers(t *testing.T) {
	mark := stock.BuyersMark{Epoch: 1, Moves: 1, Process: "p"}
	e := &engines{buyers: []string{"bob"}}
	e.lease = func() (stock.Lease, error) { return stock.Lease{Left: time.Minute, Mark: mark, Buyers: 1}, nil }
	k := keeper{cutoff: newCutoff(e, time.Second, 10, 1, nil), shutter: new(shutter)}
	view := func() *soldOut {
		k.readAt = time.Time{}
		_, err := k.renew()
		require.NoError(t, err)
		return k.shutter.view.Load()
	}
	moving := func() (stock.Lease, error) {
		mark.Moves++
		return stock.Lease{Left: time.Minute, Mark: mark, Buyers: 1}, nil
	}
	still := e.lease
	e.lease = moving
	require.Nil(t, view(), "a record changed while they were read")
	require.Nil(t, view())
	e.lease = still
	first := view()
	require.Contains(t, first.buyers, "bob")
	read := e.buyersAsked
	require.Equal(t, first.buyers, view().buyers)
	require.Equal(t, read, e.buyersAsked, "the same mark, the same buyers")

	for name, change := range map[string]func(){
		"a move":          func() { mark.Moves++ },
		"another process": func() { mark.Process = "q" },
		"a load":          func() { mark.Epoch++ },
	} {
		change()
		e.buyers = append(e.buyers, name)
		require.Contains(t, view().buyers, name)
	}
	require.Equal(t, int64(4), k.cutoff.buyers.Load())

	old := view()
	e.lease = moving
	e.buyers = nil
	require.Same(t, old, view(), "what there was lapses, and is not made longer")
	k.drop()
	require.Zero(t, k.cutoff.buyers.Load())
	require.Zero(t, k.holding.Load())
}

// Whatever ends a lease ends the view, and the sale is asked for again.
func TestCutoffEnds(t *testing.T) {
	for name, lease := range map[string]func() (stock.Lease, error){
		"open":   func() (stock.Lease, error) { return stock.Lease{}, nil },
		"error":  func() (stock.Lease, error) { return stock.Lease{}, stock.ErrNotReplicated },
		"crowds": func() (stock.Lease, error) { return stock.Lease{Many: true}, nil },
	} {
		t.Run(name, func(t *testing.T) {
			x, asked := closedEdge(t)
			x.shut()
			x.engines.change(func() { x.engines.lease = lease })
			x.eventually(func() bool {
				before := asked.Load()
				x.buy()
				return x.g.cutoff.holding.Load() == 0 && asked.Load() > before
			})
			require.Zero(t, x.g.cutoff.buyers.Load())
		})
	}
	t.Run("nobody asks", func(t *testing.T) {
		x, _ := closedEdge(t)
		x.shut()
		x.eventually(func() bool { return x.g.cutoff.keeping.Load() == 0 })
		require.Zero(t, x.g.cutoff.holding.Load())
	})
	t.Run("few ask", func(t *testing.T) {
		x, asked := closedEdge(t)
		x.g.cutoff.worth = 1 << 40
		for range 20 {
			x.problem(x.buy(), 409, sale.CodeSoldOut)
		}
		require.Equal(t, int64(20), asked.Load())
		require.Zero(t, x.engines.leasesAsked)
	})
	t.Run("off", func(t *testing.T) {
		x, asked := closedEdge(t, func(o *Options) { o.CutoffLease = 0 })
		for range 20 {
			x.problem(x.buy(), 409, sale.CodeSoldOut)
		}
		require.Equal(t, int64(20), asked.Load())
		require.Zero(t, x.engines.leasesAsked)
	})
}

// halves is a bus that stores every half message.
type halves struct{}

func (halves) Send(_ context.Context, _ *sale.Batch, local func() bus.Decision) error {
	local()
	return nil
}

// twoEdges are two gateways that sell one sale of the stores.
func twoEdges(t *testing.T, s *storetest.Stores, sl *sale.Sale) [2]*edge {
	var edges [2]*edge
	for i := range edges {
		ids := sale.NewIDs(900+i, time.Now)
		protocol := purchase.New(purchase.Options{
			Stock: s.Stock, Bus: halves{}, IDs: ids, Hold: time.Minute, HalfTimeout: 10 * time.Second, ReleaseTimeout: 10 * time.Second,
		})
		edges[i] = newEdge(t, nil, func(o *Options) {
			o.Ledger.(*engines).change(func() { o.Ledger.(*engines).sales = []sale.Sale{*sl} })
			o.Stock, o.Runner, o.IDs, o.Now = s.Stock, protocol, ids, time.Now
			o.CutoffLease, o.CutoffBuyers, o.PurchaseTimeout = 100*time.Millisecond, 10_000, 20*time.Second
		})
		edges[i].client.Timeout, edges[i].g.cutoff.worth = time.Minute, 1
	}
	return edges
}

// ask asks one of the gateways for one unit, and returns the order or the code.
func ask(x *edge, sl *sale.Sale, user string) (order sale.ID, code string, err error) {
	r, err := x.send("POST", "/v1/sales/"+sl.ID+"/purchases", "", "Authorization", "Bearer user-"+user, "Idempotency-Key", "k")
	if err != nil {
		return 0, "", err
	}
	var body struct {
		OrderID string `json:"order_id"`
		Code    string
	}
	if err := json.Unmarshal([]byte(r.body), &body); err != nil {
		return 0, "", fmt.Errorf("%s: %w", r.body, err)
	}
	if r.status != 202 {
		return 0, body.Code, nil
	}
	id, err := sale.ParseID(body.OrderID)
	return id, "", err
}

// A shopper who won through one gateway gets the order from the other at once, though
// that one was refusing everybody a moment ago.
func TestCutoffKnowsWinnersOfOthers(t *testing.T) {
	storetest.Each(t, func(t *testing.T, s *storetest.Stores) {
		sl := s.LoadedSale(1, 1)
		edges := twoEdges(t, s, sl)
		const rounds, crowd = 30, 4
		var stop atomic.Bool
		won := make(chan sale.ID, crowd)
		var all sync.WaitGroup
		for n := range crowd {
			rng := rand.New(rand.NewPCG(uint64(n), 6))
			all.Go(func() {
				for i := 0; !stop.Load(); i++ {
					user, first := fmt.Sprintf("u%d-%d", n, i), rng.IntN(2)
					order, code, err := ask(edges[first], sl, user)
					if err != nil || code != "" && code != string(sale.CodeSoldOut) {
						t.Errorf("%s: %s %v", user, code, err)
						return
					}
					if code != "" {
						continue
					}
					again, code, err := ask(edges[1-first], sl, user)
					if err != nil || again != order {
						t.Errorf("%s has %v from gateway %d; the other says %v %s %v", user, order, first, again, code, err)
					}
					won <- order
				}
			})
		}
		version := int64(1)
		for round := range rounds {
			order := <-won
			// The unit comes again as a restock, or as the winner's, who does not pay. First
			// both gateways have to have refused somebody by themselves again.
			seen := [2]float64{edges[0].refusals(), edges[1].refusals()}
			require.Eventually(t, func() bool {
				return t.Failed() || edges[0].refusals() > seen[0] && edges[1].refusals() > seen[1]
			}, time.Minute, time.Millisecond)
			if round%2 == 0 {
				version++
				_, err := s.Stock.Adjust(context.Background(), sl.ID, version, version)
				require.NoError(t, err)
				continue
			}
			_, err := s.Stock.Restore(context.Background(), &sale.Order{ID: order, SaleID: sl.ID, UserID: userOf(t, s, sl, order), RequestKey: "k", Quantity: 1}, 1)
			require.NoError(t, err)
		}
		<-won
		stop.Store(true)
		all.Wait()
	})
}

func userOf(t *testing.T, s *storetest.Stores, sl *sale.Sale, id sale.ID) (user string) {
	require.NoError(t, s.Stock.Buyers(context.Background(), sl.ID, func(records []stock.Record) error {
		for _, r := range records {
			if r.OrderID == id {
				user = r.UserID
			}
		}
		return nil
	}))
	return user
}

// What comes back is sold by every gateway as soon as the lease has lapsed by Redis's
// clock, which is not longer than shoppers may wait for it.
func TestCutoffSeesWhatComesBack(t *testing.T) {
	storetest.Each(t, func(t *testing.T, s *storetest.Stores) {
		sl := s.LoadedSale(1, 1)
		edges := twoEdges(t, s, sl)
		last, _, err := ask(edges[0], sl, "first")
		require.NoError(t, err)
		for round := range 6 {
			x := edges[round%2]
			for i := 0; ; i++ {
				before := x.refusals()
				_, code, err := ask(x, sl, fmt.Sprint("nobody", round, i))
				require.NoError(t, err)
				require.Equal(t, string(sale.CodeSoldOut), code)
				if x.refusals() > before {
					break
				}
			}
			if round%3 == 0 {
				_, err := s.Stock.Restore(context.Background(), &sale.Order{ID: last, SaleID: sl.ID, UserID: userOf(t, s, sl, last), RequestKey: "k", Quantity: 1}, 1)
				require.NoError(t, err)
			} else {
				_, err := s.Stock.Adjust(context.Background(), sl.ID, int64(round)+2, int64(round)+2)
				require.NoError(t, err)
			}
			seen := s.Snapshot(sl.ID).Now
			lapses := lapses(t, s, sl)
			require.LessOrEqual(t, lapses.Sub(seen), stock.MaxLease)
			require.Eventually(t, func() bool { return s.Snapshot(sl.ID).Now.After(lapses) }, time.Minute, time.Millisecond)
			require.False(t, lapsesLater(t, s, sl, lapses), "made longer with a unit there")
			for free := s.Snapshot(sl.ID).Stock; free > 0; free-- {
				var code string
				last, code, err = ask(x, sl, fmt.Sprint("next", round, free))
				require.NoError(t, err)
				require.Empty(t, code)
			}
		}
	})
}

// lapses is when the sale's lease does, by Redis time; the zero time: there is none.
func lapses(t *testing.T, s *storetest.Stores, sl *sale.Sale) time.Time {
	closed, err := s.Redis.Do(context.Background(), s.Redis.B().Hmget().Key("fg:{"+sl.ID+"}:meta").Field("closed").Build()).AsStrSlice()
	require.NoError(t, err)
	text, _, _ := strings.Cut(closed[0], " ")
	if text == "" {
		return time.Time{}
	}
	millis, err := strconv.ParseInt(text, 10, 64)
	require.NoError(t, err)
	return time.UnixMilli(millis)
}

func lapsesLater(t *testing.T, s *storetest.Stores, sl *sale.Sale, than time.Time) bool {
	return lapses(t, s, sl).After(than)
}
