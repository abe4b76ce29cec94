package limits

import (
	"math"
	"time"

	"golang.org/x/time/rate"
)

// newBucket makes a full bucket.
func newBucket(b Bucket) *rate.Limiter { return rate.NewLimiter(rate.Limit(b.Rate), b.Burst) }

// take takes one token. When there is none, it says when there will be.
func take(l *rate.Limiter, now time.Time) (retryAfter time.Duration, ok bool) {
	if l.AllowN(now, 1) {
		return 0, true
	}
	missing := 1 - l.TokensAt(now)
	return time.Duration(math.Ceil(max(missing, 0) / float64(l.Limit()) * float64(time.Second))), false
}

// carryOver makes a bucket of another size in which what was spent of the old one is
// spent: a raised burst is there at once, and a change is no way to a fresh bucket.
func carryOver(old *rate.Limiter, to Bucket, now time.Time) *rate.Limiter {
	spent := math.Round(float64(old.Burst()) - old.TokensAt(now))
	l := newBucket(to)
	l.AllowN(now, int(min(max(spent, 0), float64(to.Burst))))
	return l
}
