package limits

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// Lease takes up to want tokens of a bucket that all gateways share, and says how many
// gateways there are. name is the bucket's; size is what it is held to.
type Lease func(ctx context.Context, name string, size Bucket, want int64) (granted int64, gateways int, err error)

const (
	// leaseInterval is between two looks at a share that was not all granted; and how
	// much of the common rate, in time, a gateway may have in hand. N gateways are off
	// by N of these at most, once: 2 % of ten seconds for ten gateways.
	leaseInterval = 20 * time.Millisecond
	// leaseHeartbeat is how often a share that needs nothing is asked for all the same,
	// so that the gateways are counted.
	leaseHeartbeat = 500 * time.Millisecond
	// leaseCredit is how much of the common rate, in time, a gateway may spend before it
	// is leased: a rush that begins, or a keeper that is late on a busy machine, is no
	// reason to refuse while the common bucket is not empty. The next lease pays it back.
	leaseCredit = 100 * time.Millisecond
	// leasePatience is how long Redis may take before a gateway goes by its own part:
	// what is in hand, and the credit, last about that long.
	leasePatience = 100 * time.Millisecond
	// leaseTimeout bounds a call.
	leaseTimeout = time.Second
	// leaseRetry is between two calls while Redis is away.
	leaseRetry = 250 * time.Millisecond
)

// share is one gateway's part of a limit that all gateways keep together: tokens leased
// from Redis in slices, or, while Redis is away, a bucket of its own of an Nth.
type share struct {
	name  string
	lease Lease // nil: Redis is away for good
	rules atomic.Pointer[shareRules]
	own   atomic.Pointer[bucket] // the Nth, while Redis is away; nil otherwise
	hand  atomic.Int64           // tokens leased and not spent; below 0, spent on credit
	short atomic.Bool            // the last lease was not all granted
	low   chan struct{}          // wakes the keeper

	mu       sync.Mutex // held while own, hand or rules are changed
	asking   bool
	gateways int // as Redis told; 0 = not yet
}

// shareRules are those of a share while the limit is on; nil = it is off.
type shareRules struct {
	size    Bucket
	slice   int64 // tokens in hand at most
	credit  int64 // tokens owed at most
	assumed int   // gateways, until Redis has told
}

func newShare(c Class, lease Lease) *share {
	return &share{name: c.String(), lease: lease, low: make(chan struct{}, 1)}
}

// follow puts another size in force.
func (s *share) follow(c *Cluster, size Bucket) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !c.Enabled {
		s.rules.Store(nil)
		return
	}
	was := s.rules.Load()
	next := &shareRules{
		size:    size,
		slice:   max(int64(size.Rate*leaseInterval.Seconds()), 1),
		credit:  min(int64(size.Rate*leaseCredit.Seconds()), int64(size.Burst)),
		assumed: c.Gateways,
	}
	if was != nil && *was == *next {
		return
	}
	switch own := s.own.Load(); {
	case was == nil:
		s.own.Store(newBucket(s.part(next))) // until the first lease
	case own != nil:
		s.own.Store(own.carryOver(s.part(next), time.Now()))
	}
	s.rules.Store(next)
	s.hand.Store(min(s.hand.Load(), next.slice))
}

// part is what one of the gateways may do by itself.
func (s *share) part(r *shareRules) Bucket {
	n := s.gateways
	if n == 0 {
		n = r.assumed
	}
	return Bucket{Rate: r.size.Rate / float64(n), Burst: max(r.size.Burst/n, 1)}
}

// take takes one token.
func (s *share) take(now time.Time) (retryAfter time.Duration, ok bool) {
	if own := s.own.Load(); own != nil {
		return own.take(now)
	}
	r := s.rules.Load()
	if r == nil {
		return 0, true // turned off this instant
	}
	left, credit := s.hand.Add(-1), int64(0)
	if !s.short.Load() {
		credit = r.credit
		if left < r.slice/2 {
			select {
			case s.low <- struct{}{}:
			default:
			}
		}
	}
	if left >= -credit {
		return 0, true
	}
	s.hand.Add(1)
	return max(leaseInterval, time.Duration(float64(time.Second)/r.size.Rate)), false
}

// keep leases until ctx ends.
func (s *share) keep(ctx context.Context) {
	tick := time.NewTicker(leaseInterval)
	defer tick.Stop()
	var next time.Time // a full hand, or a Redis that is away, is asked for again
	for {
		woken := false
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-s.low:
			woken = true
		}
		r := s.rules.Load()
		if r == nil {
			continue
		}
		want := r.slice - s.hand.Load()
		away := s.own.Load() != nil
		if time.Now().Before(next) && (away || !woken && want <= r.slice/2) {
			continue
		}
		if s.renew(ctx, r, want) {
			next = time.Now().Add(leaseHeartbeat)
		} else {
			next = time.Now().Add(leaseRetry)
		}
	}
}

// renew asks for want tokens. While Redis takes long, the gateway goes by its own part.
func (s *share) renew(ctx context.Context, r *shareRules, want int64) (ok bool) {
	ctx, cancel := context.WithTimeout(ctx, leaseTimeout)
	defer cancel()
	s.mu.Lock()
	s.asking = true
	s.mu.Unlock()
	patience := time.AfterFunc(leasePatience, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.asking {
			s.goAlone()
		}
	})
	defer patience.Stop()
	granted, gateways, err := s.lease(ctx, s.name, r.size, want)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asking = false
	if err != nil {
		s.goAlone()
		return false
	}
	s.gateways = max(gateways, 1)
	s.short.Store(granted < want)
	s.hand.Add(granted)
	if s.rules.Load() == r { // else it is for the next lease, of the new size, to end the own part
		s.own.Store(nil)
	}
	return true
}

// goAlone goes over to the own part, which begins empty: what was leased is spent first
// or lost.
func (s *share) goAlone() {
	r := s.rules.Load()
	if r == nil || s.own.Load() != nil {
		return
	}
	part := s.part(r)
	own := newBucket(part)
	own.spend(part.Burst, time.Now())
	s.own.Store(own)
	s.hand.Store(0)
}

// KeepShares leases this gateway's part of the limits that all gateways keep together,
// until ctx ends; then it returns. Without a Lease there is nothing to keep.
func (l *Limiter) KeepShares(ctx context.Context) {
	var keepers sync.WaitGroup
	for _, s := range l.shares {
		if s.lease != nil {
			keepers.Go(func() { s.keep(ctx) })
		}
	}
	keepers.Wait()
}
