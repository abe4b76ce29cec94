package gateway

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"flashgate/internal/ledger"
	"flashgate/internal/limits"
	"flashgate/internal/sale"
	"flashgate/internal/stock"
)

// Bounds of the reads of orders.
const (
	// ordersMax is how many orders a list shows, the newest.
	ordersMax = 100
	// fanOutMax is how many sales are asked in Redis when a poll names none; with
	// more than that running, the shopper is asked to name the sale.
	fanOutMax = 64
	// fanOutAtOnce is how many of them are asked side by side.
	fanOutAtOnce = 8
	// orderReadsAtOnce is how many reads of orders by their ids are under way in the
	// ledger, and orderReadMax of how many orders one is: those whom a sale has told
	// PROCESSING all come back within a second.
	orderReadsAtOnce = 4
	orderReadMax     = 256
	// skewMinutes is how far a gateway's clock, which dates order ids, may be from
	// Redis's, by which a sale begins and ends.
	skewMinutes = 5
)

var errBusy = errors.New("gateway: as many reads as allowed are under way")

// readContext bounds a read for a shopper. A RequestCtx is no deadline context.
func (g *Gateway) readContext(d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), d)
}

// read runs do in one of the slots for reads, behind a breaker.
func (g *Gateway) read(ctx context.Context, b Breaker, do func(context.Context) error) error {
	select {
	case g.reads <- struct{}{}:
	case <-ctx.Done():
		return errBusy
	}
	defer func() { <-g.reads }()
	if b == nil {
		return do(ctx)
	}
	return b.Do(ctx, do)
}

// storedOrder is what the ledger has under an id.
type storedOrder struct {
	order ledger.Order
	found bool
}

// readOrders reads some orders at once.
func (g *Gateway) readOrders(ctx context.Context, ids []sale.ID) ([]storedOrder, error) {
	answers := make([]storedOrder, len(ids))
	do := func(ctx context.Context) error {
		stored, err := g.o.Ledger.OrdersByID(ctx, ids)
		for i, id := range ids {
			if o := stored[id]; o != nil {
				answers[i] = storedOrder{*o, true}
			}
		}
		return err
	}
	if g.o.LedgerBreaker == nil {
		return answers, do(ctx)
	}
	return answers, g.o.LedgerBreaker.Do(ctx, do)
}

// readOrder reads one order, together with those that others ask for meanwhile.
func (g *Gateway) readOrder(ctx context.Context, id sale.ID) (o ledger.Order, found bool, err error) {
	err = g.read(ctx, nil, func(ctx context.Context) error {
		stored, err := g.orderReads.Do(ctx, id)
		if err == nil {
			o, found = stored[0].order, stored[0].found
		}
		return err
	})
	return o, found, err
}

func (g *Gateway) readOrderByKey(ctx context.Context, saleID, user, key string) (o ledger.Order, err error) {
	err = g.read(ctx, g.o.LedgerBreaker, func(ctx context.Context) (err error) {
		o, err = g.o.Ledger.OrderByKey(ctx, saleID, user, key)
		return err
	})
	return o, err
}

// saleQuery is the sale_id of the query, or "".
func saleQuery(c *call) (string, refusal) {
	id := c.ctx.QueryArgs().Peek("sale_id")
	if len(id) == 0 {
		return "", refusal{}
	}
	if s := string(id); sale.ValidID(s) {
		return s, refusal{}
	}
	return "", refuseWith(sale.CodeInvalid, "sale_id: want 1–64 of A–Z a–z 0–9 _ -")
}

// saleRead is saleQuery within the limits of the sale that is named, if there is one.
func (g *Gateway) saleRead(c *call) (string, refusal) {
	id, no := saleQuery(c)
	if no.code != "" || id == "" {
		return id, no
	}
	if l, _ := g.catalog.find([]byte(id)); l != nil {
		no = g.allowSale(c, limits.Read, l)
	}
	return id, no
}

// reader lets a signed-in user read within his limits.
func (g *Gateway) reader(c *call) refusal {
	if no := g.authenticate(c); no.code != "" {
		return no
	}
	return g.allowUser(c, limits.Read)
}

// order is GET /v1/orders/{id}. The ledger is asked first; an order that it does
// not have yet is looked for in Redis, where it stands from before its 202.
func (g *Gateway) order(c *call, rawID []byte) refusal {
	if no := g.reader(c); no.code != "" {
		return no
	}
	saleID, no := g.saleRead(c)
	if no.code != "" {
		return no
	}
	id, err := sale.ParseID(string(rawID))
	if err != nil {
		return refuse(sale.CodeOrderNotFound)
	}
	o, inLedger, err := g.ledgerOrder(id)
	if !inLedger {
		if o, no = g.promisedOrder(string(c.user), saleID, id, err != nil); no.code != "" {
			return no
		}
	}
	if o.UserID != string(c.user) {
		return refuse(sale.CodeOrderNotFound)
	}
	return g.answerOrders(c, []ledger.Order{o}, false)
}

// ledgerOrder reads one order; err means that the ledger can't be asked.
func (g *Gateway) ledgerOrder(id sale.ID) (o ledger.Order, found bool, err error) {
	ctx, cancel := g.readContext(g.o.ReadWait)
	defer cancel()
	return g.readOrder(ctx, id)
}

// promisedOrder finds an order that the ledger did not have, or, when it is away,
// could not be asked about. Only one that was promised counts: a reservation's id
// is known to nobody yet.
func (g *Gateway) promisedOrder(user, saleID string, id sale.ID, away bool) (o ledger.Order, no refusal) {
	sales, no := g.salesOf(saleID, id.Time())
	if no.code != "" {
		return o, no
	}
	found, no := g.lookUp(sales, user)
	if no.code != "" {
		return o, no
	}
	for i := range found {
		r := &found[i]
		if r.OrderID != id || !promised(r) {
			continue
		}
		if !away && (r.Returned || r.Batch == stock.StateSettled) {
			// It reached the ledger after the ledger was asked.
			if o, ok, _ := g.ledgerOrder(id); ok {
				return o, refusal{}
			}
		}
		if r.Returned {
			return o, refuseWith(sale.CodeUnavailable, detailAway)
		}
		return g.processing(r)
	}
	if away {
		return o, refuseWith(sale.CodeUnavailable, detailAway)
	}
	return o, refuse(sale.CodeOrderNotFound)
}

// orders is GET /v1/orders[?sale_id=]: what Redis holds is read first, so that
// whatever it knows to be in the ledger is in the ledger's list, read afterwards.
func (g *Gateway) orders(c *call) refusal {
	if no := g.reader(c); no.code != "" {
		return no
	}
	saleID, no := g.saleRead(c)
	if no.code != "" {
		return no
	}
	sales, no := g.salesOf(saleID, g.o.Now())
	if no.code != "" {
		return no
	}
	user := string(c.user)
	records, no := g.lookUp(sales, user)
	if no.code != "" {
		return no
	}
	list, err := g.ledgerOrders(user, saleID)
	if err != nil && (saleID == "" || len(sales) == 0) {
		return refuseWith(sale.CodeUnavailable, detailAway)
	}
	known := make(map[sale.ID]bool, len(list))
	for i := range list {
		known[list[i].ID] = true
	}
	oldest := sale.ID(0)
	if len(list) == ordersMax {
		oldest = list[len(list)-1].ID
	}
	for i := range records {
		r := &records[i]
		if known[r.OrderID] || r.OrderID < oldest || !promised(r) {
			continue
		}
		if r.Returned {
			// Why, and since when, only the ledger can say.
			return refuseWith(sale.CodeUnavailable, detailAway)
		}
		o, no := g.processing(r)
		if no.code == "" && r.Batch == stock.StateConfirmed {
			no = g.replicated(&o)
		}
		if no.code != "" {
			return no
		}
		list = append(list, o)
	}
	slices.SortFunc(list, func(a, b ledger.Order) int { return cmp.Compare(b.ID, a.ID) })
	return g.answerOrders(c, list[:min(len(list), ordersMax)], true)
}

func (g *Gateway) ledgerOrders(user, saleID string) (list []ledger.Order, err error) {
	ctx, cancel := g.readContext(g.o.ReadWait)
	defer cancel()
	err = g.read(ctx, g.o.LedgerBreaker, func(ctx context.Context) (err error) {
		list, err = g.o.Ledger.OrdersOf(ctx, user, saleID, ordersMax)
		return err
	})
	return list, err
}

const detailAway = "orders cannot be looked up now; try again"

// record is a user's record and the sale it is of.
type record struct {
	stock.Record
	saleID string
}

// promised reports whether a shopper may have been told of the record's order. A
// reservation may still come to nothing.
func promised(r *record) bool {
	return r.Returned || r.Batch == stock.StateConfirmed || r.Batch == stock.StateSettled
}

// salesOf are the sales in whose Redis data an order made at t can be: the one that
// is named, or every one that may have been selling then.
func (g *Gateway) salesOf(saleID string, t time.Time) ([]string, refusal) {
	now := g.o.Now()
	kept := func(s *sale.Sale) bool { return now.Before(s.EndsAt.Add(sale.Retention)) }
	v := g.catalog.view.Load()
	if saleID != "" {
		if v != nil && v.byID[saleID] != nil && !kept(&v.byID[saleID].sale) {
			return nil, refusal{}
		}
		return []string{saleID}, refusal{}
	}
	if v == nil {
		return nil, refuseWith(sale.CodeUnavailable, detailAway)
	}
	var ids []string
	for _, l := range v.listings {
		const skew = skewMinutes * time.Minute
		if s := &l.sale; kept(s) && t.After(s.StartsAt.Add(-skew)) && t.Before(s.EndsAt.Add(skew)) {
			ids = append(ids, s.ID)
		}
	}
	if len(ids) > fanOutMax {
		return nil, refuseWith(sale.CodeInvalid, "many sales are running: name yours with ?sale_id=")
	}
	return ids, refusal{}
}

// lookUp reads a user's records in some sales.
func (g *Gateway) lookUp(saleIDs []string, user string) ([]record, refusal) {
	ctx, cancel := g.readContext(g.o.ReadWait)
	defer cancel()
	if len(saleIDs) == 1 {
		return g.lookUpOne(ctx, saleIDs[0], user)
	}
	found, nos := make([][]record, len(saleIDs)), make([]refusal, len(saleIDs))
	slots := make(chan struct{}, fanOutAtOnce)
	var wg sync.WaitGroup
	for i, id := range saleIDs {
		slots <- struct{}{}
		wg.Go(func() {
			found[i], nos[i] = g.lookUpOne(ctx, id, user)
			<-slots
		})
	}
	wg.Wait()
	for _, no := range nos {
		if no.code != "" {
			return nil, no
		}
	}
	return slices.Concat(found...), refusal{}
}

// lookUpOne reads a user's records in one sale. A sale that is not loaded says
// nothing about the orders it had, so that is no "not found".
func (g *Gateway) lookUpOne(ctx context.Context, saleID, user string) ([]record, refusal) {
	var records []stock.Record
	err := g.read(ctx, g.o.RedisBreaker, func(ctx context.Context) (err error) {
		records, err = g.o.Stock.Lookup(ctx, saleID, user)
		return err
	})
	switch {
	case errors.Is(err, stock.ErrNotReady) && g.catalog.lacks(saleID):
		return nil, refusal{}
	case err != nil:
		return nil, refuseWith(sale.CodeUnavailable, detailAway)
	}
	found := make([]record, len(records))
	for i := range records {
		found[i] = record{records[i], saleID}
	}
	return found, refusal{}
}

// processing is the order of a record that has not reached the ledger.
func (g *Gateway) processing(r *record) (o ledger.Order, no refusal) {
	l, _ := g.catalog.find([]byte(r.saleID))
	if l == nil {
		return o, refuseWith(sale.CodeUnavailable, detailAway)
	}
	return ledger.Order{
		Order: sale.Order{
			ID: r.OrderID, SaleID: r.saleID, UserID: r.UserID, RequestKey: r.RequestKey,
			Quantity: r.Quantity, AmountCents: int64(r.Quantity) * l.sale.PriceCents,
		},
		BatchID: r.BatchID,
		Status:  sale.Processing,
	}, refusal{}
}

// replicated makes sure that an order which only Redis has is on its replicas too: a
// list may show it before its own 202 has waited for them, and once it is shown it
// must not vanish. Confirming is idempotent; epoch 0 is no sale's, so that nothing
// is written should the batch be gone.
func (g *Gateway) replicated(o *ledger.Order) refusal {
	ctx, cancel := g.readContext(g.o.ReadWait)
	defer cancel()
	err := g.read(ctx, g.o.RedisBreaker, func(ctx context.Context) error {
		b := sale.Batch{ID: o.BatchID, SaleID: o.SaleID, Orders: []sale.Order{o.Order}}
		state, err := g.o.Stock.Confirm(ctx, &b)
		if err == nil && state != stock.StateConfirmed && state != stock.StateSettled {
			err = errUnconfirmed
		}
		return err
	})
	if err != nil {
		return refuseWith(sale.CodeUnavailable, detailAway)
	}
	return refusal{}
}

var errUnconfirmed = errors.New("gateway: a confirmed batch is confirmed no more")

// answerOrders writes one order, or a list.
func (g *Gateway) answerOrders(c *call, orders []ledger.Order, list bool) refusal {
	c.buf = c.buf[:0]
	if list {
		c.buf = append(c.buf, `{"orders":[`...)
	}
	for i := range orders {
		o := &orders[i]
		l, _ := g.catalog.find([]byte(o.SaleID))
		if l == nil { // the view is older than the sale
			return refuseWith(sale.CodeUnavailable, detailAway)
		}
		if i > 0 {
			c.buf = append(c.buf, ',')
		}
		c.buf = appendOrderHead(c.buf, &o.Order, l.sale.Currency)
		c.buf = append(c.buf, o.Status...)
		c.buf = append(c.buf, `","reason":`...)
		c.buf = appendJSONString(c.buf, o.Reason)
		c.buf = append(c.buf, `,"created_at":`...)
		c.buf = appendTime(c.buf, o.CreatedAt())
		c.buf = append(c.buf, '}')
	}
	if list {
		c.buf = append(c.buf, `]}`...)
	}
	c.answer(200)
	return refusal{}
}
