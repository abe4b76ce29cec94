package limits

import (
	"math"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// bucket is a token bucket from which many requests take at once. They read the clock
// before they have the lock, and so come a little out of order; rate.Limiter would go
// back to the time of a late one, and give the tokens from there on again. Here time
// stands still for it.
type bucket struct {
	mu     sync.Mutex
	tokens *rate.Limiter
	latest time.Time
}

// newBucket makes a full bucket.
func newBucket(size Bucket) *bucket {
	return &bucket{tokens: rate.NewLimiter(rate.Limit(size.Rate), size.Burst)}
}

// is reports whether the bucket is of a size.
func (b *bucket) is(size Bucket) bool {
	return b.tokens.Limit() == rate.Limit(size.Rate) && b.tokens.Burst() == size.Burst
}

// take takes one token. When there is none, it says when there will be.
func (b *bucket) take(now time.Time) (retryAfter time.Duration, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now = b.onward(now)
	if b.tokens.AllowN(now, 1) {
		return 0, true
	}
	missing := 1 - b.tokens.TokensAt(now)
	return time.Duration(math.Ceil(max(missing, 0) / float64(b.tokens.Limit()) * float64(time.Second))), false
}

// spend takes n tokens, if they are there.
func (b *bucket) spend(n int, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.tokens.AllowN(b.onward(now), n)
}

// carryOver makes a bucket of another size in which what was spent of this one is
// spent: a raised burst is there at once, and a change is no way to a fresh bucket.
func (b *bucket) carryOver(to Bucket, now time.Time) *bucket {
	b.mu.Lock()
	defer b.mu.Unlock()
	now = b.onward(now)
	spent := math.Round(float64(b.tokens.Burst()) - b.tokens.TokensAt(now))
	next := newBucket(to)
	next.spend(int(min(max(spent, 0), float64(to.Burst))), now)
	return next
}

// onward is now, or the latest time that was seen. The bucket is locked.
func (b *bucket) onward(now time.Time) time.Time {
	if now.After(b.latest) {
		b.latest = now
	}
	return b.latest
}
