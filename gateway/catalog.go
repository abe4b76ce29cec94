package gateway

import (
	"context"
	"log/slog"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"flashgate/internal/sale"
	"flashgate/internal/stock"
)

// Bounds of the catalog.
const (
	// listMax is how many sales GET /v1/sales shows: the latest to start.
	listMax = 1000
	// stocksMax is how many sales one call to Redis asks for.
	stocksMax = 512
	// stockAfterEndMinutes is how long after its end a sale's stock is still read:
	// units may come back that long, and nobody looks for them later.
	stockAfterEndMinutes = 60
	// stockMaxAgeMillis is the age at which a number from Redis is no longer shown:
	// far above the refresh, so that only an outage turns it into null.
	stockMaxAgeMillis = 1000
	// saleReadMillis and stockReadMillis bound one refresh.
	saleReadMillis  = 2000
	stockReadMillis = 500
	// freshMillis is the age up to which a view proves that a sale does not exist.
	freshMillis = 2000
)

// catalog is the gateway's view of the published sales: their terms from the
// ledger, their stock from Redis. Readers take no lock. An engine that is away
// leaves the last view in place.
type catalog struct {
	ledger     Ledger
	stock      Stock
	log        *slog.Logger
	now        func() time.Time
	saleEvery  time.Duration
	stockEvery time.Duration

	view      atomic.Pointer[view] // nil until the ledger has answered once
	stockRead atomic.Int64         // when the last complete reading began, Unix ms; 0 = never
}

// view is one state of the ledger's sales. It is never changed.
type view struct {
	readAt   time.Time // when the reading began
	listings []*listing
	byID     map[string]*listing
}

// listing is one published sale.
type listing struct {
	sale    sale.Sale
	reading *atomic.Pointer[reading] // the same one from view to view
	shutter *shutter                 // likewise
	head    []byte                   // its JSON up to the value of status
}

// reading is a sale's stock as it was at an instant.
type reading struct {
	units  int64
	loaded bool // false: Redis does not have the sale
	at     time.Time
}

// find returns a published sale. ready false: no view of the sales yet, so a sale
// that is not found may exist.
func (c *catalog) find(id []byte) (l *listing, ready bool) {
	v := c.view.Load()
	if v == nil {
		return nil, false
	}
	return v.byID[string(id)], true
}

// lacks reports that there is no published sale with this id: a fresh view has none.
func (c *catalog) lacks(id string) bool {
	v := c.view.Load()
	return v != nil && v.byID[id] == nil && c.now().Sub(v.readAt) < freshMillis*time.Millisecond
}

// refresh reads the sales once.
func (c *catalog) refresh(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, saleReadMillis*time.Millisecond)
	defer cancel()
	began := c.now()
	sales, err := c.ledger.Sales(ctx)
	if err != nil {
		return err
	}
	old := c.view.Load()
	next := &view{readAt: began, byID: make(map[string]*listing, len(sales))}
	for i := range sales {
		s := &sales[i]
		if s.Status != sale.Opened && s.Status != sale.Paused {
			continue
		}
		l := next.add(s, old)
		next.byID[s.ID] = l
		next.listings = append(next.listings, l)
	}
	// A sale is first shown with its stock, unless Redis is away.
	var fresh []*listing
	for _, l := range next.listings {
		if l.reading.Load() == nil && c.live(l, began) {
			fresh = append(fresh, l)
		}
	}
	if err := c.readStock(ctx, fresh); err != nil {
		c.log.Debug("the stock of new sales was not read", "err", err)
	}
	c.view.Store(next)
	return nil
}

func (v *view) add(s *sale.Sale, old *view) *listing {
	if old != nil {
		if was := old.byID[s.ID]; was != nil {
			if was.sale == *s {
				return was
			}
			return &listing{sale: *s, reading: was.reading, shutter: was.shutter, head: appendHead(nil, s)}
		}
	}
	return &listing{sale: *s, reading: new(atomic.Pointer[reading]), shutter: new(shutter), head: appendHead(nil, s)}
}

// refreshStock reads the stock of the sales that still sell or just did.
func (c *catalog) refreshStock(ctx context.Context) error {
	v := c.view.Load()
	if v == nil {
		return nil
	}
	began := c.now()
	var live []*listing
	for _, l := range v.listings {
		if c.live(l, began) {
			live = append(live, l)
		}
	}
	if err := c.readStock(ctx, live); err != nil {
		return err
	}
	c.stockRead.Store(began.UnixMilli())
	return nil
}

// live reports whether a sale's stock can still change and be looked for.
func (c *catalog) live(l *listing, now time.Time) bool {
	return now.Before(l.sale.EndsAt.Add(stockAfterEndMinutes * time.Minute))
}

func (c *catalog) readStock(ctx context.Context, listings []*listing) error {
	ctx, cancel := context.WithTimeout(ctx, stockReadMillis*time.Millisecond)
	defer cancel()
	for part := range slices.Chunk(listings, stocksMax) {
		ids := make([]string, len(part))
		for i, l := range part {
			ids[i] = l.sale.ID
		}
		units, ok := make([]int64, len(part)), make([]bool, len(part))
		at := c.now()
		if err := c.stock.Stocks(ctx, ids, units, ok); err != nil {
			return err
		}
		for i, l := range part {
			if units[i] != stock.UnknownUnits {
				l.reading.Store(&reading{units: units[i], loaded: ok[i], at: at})
			}
		}
	}
	return nil
}

// run refreshes both until ctx ends.
func (c *catalog) run(ctx context.Context) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.repeat(ctx, c.stockEvery, "stock", c.refreshStock)
	}()
	c.repeat(ctx, c.saleEvery, "sales", c.refresh)
	<-done
}

func (c *catalog) repeat(ctx context.Context, every time.Duration, what string, refresh func(context.Context) error) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	failing := false
	for {
		err := refresh(ctx)
		if ctx.Err() != nil {
			return
		}
		// Once an outage, not once a try.
		if err != nil && !failing {
			c.log.Warn("view cannot be refreshed; the last one stays", "of", what, "err", err)
		} else if err == nil && failing {
			c.log.Info("view is refreshed again", "of", what)
		}
		failing = err != nil
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (c *catalog) age(now time.Time) time.Duration {
	if v := c.view.Load(); v != nil {
		return now.Sub(v.readAt)
	}
	return now.Sub(time.Unix(0, 0))
}

func (c *catalog) stockAge(now time.Time) time.Duration {
	return now.Sub(time.UnixMilli(c.stockRead.Load()))
}

func appendHead(dst []byte, s *sale.Sale) []byte {
	dst = append(dst, `{"id":`...)
	dst = appendJSONString(dst, s.ID)
	dst = append(dst, `,"title":`...)
	dst = appendJSONString(dst, s.Title)
	dst = append(dst, `,"price_cents":`...)
	dst = strconv.AppendInt(dst, s.PriceCents, 10)
	dst = append(dst, `,"currency":`...)
	dst = appendJSONString(dst, s.Currency)
	dst = append(dst, `,"total":`...)
	dst = strconv.AppendInt(dst, s.Total, 10)
	dst = append(dst, `,"per_user_limit":`...)
	dst = strconv.AppendInt(dst, int64(s.PerUserLimit), 10)
	dst = append(dst, `,"starts_at":`...)
	dst = appendTime(dst, s.StartsAt)
	dst = append(dst, `,"ends_at":`...)
	dst = appendTime(dst, s.EndsAt)
	return append(dst, `,"status":"`...)
}

// append writes the sale as a shopper sees it at now. Stock that is not known (not
// loaded, or Redis away) is null, and the sale is then taken to have some.
func (l *listing) append(dst []byte, now time.Time) []byte {
	r := l.reading.Load()
	known := r != nil && r.loaded && now.Sub(r.at) < stockMaxAgeMillis*time.Millisecond
	left := int64(1)
	if known {
		left = max(0, r.units)
	}
	dst = append(dst, l.head...)
	dst = append(dst, l.sale.PhaseAt(now, left)...)
	dst = append(dst, `","stock_left":`...)
	if known {
		dst = strconv.AppendInt(dst, left, 10)
	} else {
		dst = append(dst, `null`...)
	}
	dst = append(dst, `,"server_time":`...)
	dst = appendTime(dst, now)
	return append(dst, '}')
}

// append writes the body of GET /v1/sales.
func (v *view) append(dst []byte, now time.Time) []byte {
	dst = append(dst, `{"sales":[`...)
	for i, l := range v.listings[max(0, len(v.listings)-listMax):] {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = l.append(dst, now)
	}
	return append(dst, `]}`...)
}
