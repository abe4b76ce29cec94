package gateway

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"flashgate/internal/sale"
	"flashgate/internal/stock"
)

// cutoff refuses the shoppers of sold-out sales without asking Redis, where it knows
// every buyer there can be.
//
// Once a purchase was answered SOLD_OUT it takes a sold-out lease of the sale, during
// which reserve sells nothing anywhere, and reads who has a record. The set is complete if
// the lease's mark is the same before the reading and after it; whoever is not in it has
// no order, and can get none before the lease lapses. All others go the usual way: a
// winner, too, whose answer was lost a millisecond ago and who is unknown here, since
// then the lease has lapsed, or was given after he had won. The lease is renewed as long
// as many ask for the sale, and ends by itself; errors only end it.
type cutoff struct {
	stock     Stock
	log       *slog.Logger
	lease     time.Duration // of one renewal; 0 = there is no cut-off
	buyersMax int           // of one sale
	keepsMax  int           // sales
	worth     int64         // shoppers a second and sale from which a lease pays

	ctx    context.Context // of everything it does
	cancel context.CancelFunc
	keeps  sync.WaitGroup
	mu     sync.Mutex // stopped, and adding to keeps
	calls  chan struct{}

	stopped  bool
	keeping  atomic.Int64 // sales
	holding  atomic.Int64 // sales of which a view is held
	buyers   atomic.Int64 // in all views
	refusals prometheus.Counter
}

const (
	// cutoffCallsMax bounds the calls to Redis under way: confirmations share the
	// connections on which they wait for replicas. With more sold-out sales than these
	// can serve, leases lapse now and then, and Redis is asked.
	cutoffCallsMax = 4
	// cutoffFullSales is how many sales with as many buyers as allowed are remembered.
	cutoffFullSales = 32
	// cutoffWorth is how many shoppers of a sale must come in a second: keeping the lease
	// costs Redis as much as to answer about so many.
	cutoffWorth = 50
	// cutoffPauseMillis is how long a sale is let be after an error, or when it has too
	// many buyers.
	cutoffPauseMillis = 1_000
	// cutoffReadShare bounds the reading of all buyers of a sale, at every change of one
	// record, to this part of the time.
	cutoffReadShare = 20
	// cutoffMarginMillis is taken off every lease for clocks that do not run alike; they
	// differ by less than a thousandth.
	cutoffMarginMillis = 1
	// cutoffAwayMillis is how near its end a sale must not be, by this gateway's clock:
	// whether it has ended is for Redis to say.
	cutoffAwayMillis = 2_000
)

func newCutoff(s Stock, lease time.Duration, buyersMax, salesMax int, log *slog.Logger) *cutoff {
	k := &cutoff{
		stock: s, log: log, lease: lease, buyersMax: buyersMax, keepsMax: salesMax, worth: cutoffWorth, calls: make(chan struct{}, cutoffCallsMax),
		refusals: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "flashgate_cutoff_refusals_total",
			Help: "Purchases answered SOLD_OUT without asking Redis.",
		}),
	}
	k.ctx, k.cancel = context.WithCancel(context.Background())
	return k
}

// shutter is what is known of one sale.
type shutter struct {
	view  atomic.Pointer[soldOut]
	asks  atomic.Int64 // shoppers that were told SOLD_OUT
	kept  atomic.Bool  // somebody takes care of the view
	later atomic.Int64 // not to be kept before, Unix ms
	begun atomic.Int64 // the sale's start, Unix ms, that had come when Redis said SOLD_OUT last

	second atomic.Int64 // Unix time in which Redis said SOLD_OUT last
	before atomic.Int64 // asks at its beginning
}

// ask counts a shopper whom Redis told SOLD_OUT, and returns how many there were in this
// second, about.
func (s *shutter) ask(at time.Time) int64 {
	asks := s.asks.Add(1)
	if second := at.Unix(); s.second.Swap(second) != second {
		s.before.Store(asks - 1)
	}
	return asks - s.before.Load()
}

// soldOut is a sale's buyers, and until when there can be no others. It is never changed.
type soldOut struct {
	until  time.Time
	wall   int64 // the same, Unix ns: the monotonic clock of a suspended machine stands still
	mark   stock.BuyersMark
	buyers map[string]struct{}
}

// holds reports whether the lease is held at a moment.
func (v *soldOut) holds(at time.Time) bool {
	return v != nil && at.Before(v.until) && at.UnixNano() < v.wall
}

// refuses reports whether a purchase that was there at a moment is certainly SOLD_OUT: the
// user has no order, the sale none to sell, and nothing else would be said first. now is
// the time by which sales begin and end.
func (k *cutoff) refuses(l *listing, user []byte, quantity int, at, now time.Time) bool {
	v := l.shutter.view.Load()
	if !v.holds(at) {
		return false
	}
	if _, known := v.buyers[string(user)]; known {
		return false
	}
	s := &l.sale
	if s.Status != sale.Opened || quantity > s.PerUserLimit {
		return false
	}
	// The rush is in the first seconds of a sale, so the first SOLD_OUT must do to tell
	// that it has begun; of a start that was moved since, Redis is asked again.
	const away = cutoffAwayMillis * time.Millisecond
	if l.shutter.begun.Load() != s.StartsAt.UnixMilli() || now.Before(s.StartsAt) || now.After(s.EndsAt.Add(-away)) {
		return false
	}
	l.shutter.asks.Add(1)
	k.refusals.Inc()
	return true
}

// soldOut hears that a shopper was answered SOLD_OUT by Redis.
func (k *cutoff) soldOut(l *listing, at time.Time) {
	s := l.shutter
	s.begun.Store(l.sale.StartsAt.UnixMilli())
	if k.lease == 0 || s.ask(at) < k.worth || at.UnixMilli() < s.later.Load() {
		return
	}
	if !s.kept.CompareAndSwap(false, true) {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.stopped || k.keeping.Load() >= int64(k.keepsMax) {
		s.kept.Store(false)
		return
	}
	k.keeping.Add(1)
	k.keeps.Go(func() { k.keep(l.sale.ID, s) })
}

// keep holds a view of a sale as long as it is sold out and much asked for.
func (k *cutoff) keep(saleID string, s *shutter) {
	keeper := keeper{cutoff: k, saleID: saleID, shutter: s}
	pause := keeper.run()
	keeper.drop()
	s.later.Store(time.Now().Add(pause).UnixMilli())
	k.keeping.Add(-1)
	s.kept.Store(false)
}

// keeper keeps the view of one sale.
type keeper struct {
	*cutoff
	saleID  string
	shutter *shutter
	buyers  map[string]struct{} // of mark
	mark    stock.BuyersMark
	readAt  time.Time // not to read the buyers before
}

// run renews until there is a reason not to, and returns how long to let the sale be.
func (k *keeper) run() time.Duration {
	renew := time.NewTimer(0)
	defer renew.Stop()
	asks, counted := k.shutter.asks.Load(), time.Now()
	for {
		select {
		case <-renew.C:
		case <-k.ctx.Done():
			return 0
		}
		began := time.Now()
		if began.Sub(counted) >= time.Second {
			now := k.shutter.asks.Load()
			if now-asks < k.worth {
				return 0
			}
			asks, counted = now, began
		}
		switch l, err := k.renew(); {
		case err != nil:
			k.log.Debug("no sold-out lease", "sale", k.saleID, "err", err)
			return cutoffPauseMillis * time.Millisecond
		case l.Many:
			k.log.Debug("no cut-off: too many buyers", "sale", k.saleID, "max", k.buyersMax)
			return cutoffPauseMillis * time.Millisecond
		case l.Left == 0:
			return k.lease
		}
		// Well before it lapses, and once more if that fails.
		renew.Reset(time.Until(began.Add(k.lease * 2 / 5)))
	}
}

// renew takes the lease once, reads the buyers if they are others than those known, and
// shows what it then knows.
func (k *keeper) renew() (l stock.Lease, err error) {
	var before time.Time
	err = k.call(func(ctx context.Context) (err error) {
		before = time.Now()
		l, err = k.stock.SoldOut(ctx, k.saleID, k.lease, k.buyersMax)
		return err
	})
	if err != nil || l.Left == 0 {
		return l, err
	}
	if k.buyers == nil || l.Mark != k.mark {
		if before.Before(k.readAt) || k.cutoff.buyers.Load()+int64(l.Buyers) > cutoffFullSales*int64(k.buyersMax) {
			return l, nil // the view that there was lapses
		}
		mark := l.Mark
		var users []string
		err = k.call(func(ctx context.Context) (err error) {
			before = time.Now()
			users, l, err = k.stock.SoldOutBuyers(ctx, k.saleID, k.lease, k.buyersMax)
			return err
		})
		if err != nil || l.Left == 0 {
			return l, err
		}
		k.readAt = before.Add(time.Since(before) * cutoffReadShare)
		if l.Mark != mark {
			return l, nil // somebody came between; the next renewal reads again
		}
		k.know(users, mark)
	}
	until := before.Add(l.Left - cutoffMarginMillis*time.Millisecond)
	if k.shutter.view.Swap(&soldOut{until, until.UnixNano(), k.mark, k.buyers}) == nil {
		k.holding.Add(1)
	}
	return l, nil
}

// call does one call to Redis, which is of no use when it takes as long as the lease.
func (k *keeper) call(do func(context.Context) error) error {
	select {
	case k.calls <- struct{}{}:
	case <-k.ctx.Done():
		return k.ctx.Err()
	}
	defer func() { <-k.calls }()
	ctx, cancel := context.WithTimeout(k.ctx, k.lease)
	defer cancel()
	return do(ctx)
}

func (k *keeper) know(users []string, mark stock.BuyersMark) {
	k.cutoff.buyers.Add(int64(len(users) - len(k.buyers)))
	k.buyers, k.mark = make(map[string]struct{}, len(users)), mark
	for _, user := range users {
		k.buyers[user] = struct{}{}
	}
}

// drop ends the view.
func (k *keeper) drop() {
	k.cutoff.buyers.Add(-int64(len(k.buyers)))
	if k.shutter.view.Swap(nil) != nil {
		k.holding.Add(-1)
	}
}

// stop ends all views and whatever keeps them.
func (k *cutoff) stop() {
	k.mu.Lock()
	k.stopped = true
	k.mu.Unlock()
	k.cancel()
	k.keeps.Wait()
}
