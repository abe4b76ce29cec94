package limits

import (
	"hash/maphash"
	"math"
	"sync"
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

const (
	// tableShards keeps cores from waiting for one lock; a power of two.
	tableShards = 64
	// evictionScanEntries bounds the work a newcomer can cause in a full shard.
	evictionScanEntries = 8
)

// table holds a bucket a key, no more than a bound of them. The room of a key is given
// to another only when its bucket is full again: then forgetting it changes nothing,
// and making many keys is no way to be forgotten. While a shard has no such bucket,
// newcomers to it share one, of the size of a key's.
type table[K comparable] struct {
	seed   maphash.Seed
	clone  func(K) K // a key safe to keep
	shards [tableShards]shard[K]
}

type shard[K comparable] struct {
	mu       sync.Mutex
	entries  map[K]*entry[K]
	oldest   entry[K] // the ring's root: next is the least, prev the most recently used
	overflow *entry[K]
	shared   int // requests that went to overflow
	_        [64]byte
}

type entry[K comparable] struct {
	key        K
	size       Bucket
	bucket     *rate.Limiter
	prev, next *entry[K]
}

func newTable[K comparable](clone func(K) K) *table[K] {
	t := &table[K]{seed: maphash.MakeSeed(), clone: clone}
	for i := range t.shards {
		s := &t.shards[i]
		s.entries = map[K]*entry[K]{}
		s.oldest.prev, s.oldest.next = &s.oldest, &s.oldest
	}
	return t
}

func (t *table[K]) shardOf(key K) int {
	return int(maphash.Comparable(t.seed, key) % tableShards)
}

// take takes a token of key's bucket, which is of the given size; the table holds at
// most about maxKeys.
func (t *table[K]) take(key K, size Bucket, maxKeys int, now time.Time) (retryAfter time.Duration, ok bool) {
	s := &t.shards[t.shardOf(key)]
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.entries[key]
	if e == nil {
		e = s.admit(key, t.clone, size, max(maxKeys/tableShards, 1), now)
	} else {
		s.unlink(e)
		s.link(e)
	}
	if e.size != size {
		e.bucket, e.size = carryOver(e.bucket, size, now), size
	}
	return take(e.bucket, now)
}

// admit finds room for a key that has none: its entry, or the shared one.
func (s *shard[K]) admit(key K, clone func(K) K, size Bucket, maxKeys int, now time.Time) *entry[K] {
	var e *entry[K]
	for range evictionScanEntries {
		if len(s.entries) < maxKeys {
			break
		}
		old := s.oldest.next
		s.unlink(old)
		if old.bucket.TokensAt(now) < float64(old.size.Burst) {
			s.link(old) // still owing: look at the next, and at this one a round later
			continue
		}
		delete(s.entries, old.key)
		e = old
	}
	if len(s.entries) >= maxKeys {
		s.shared++
		if s.overflow == nil {
			s.overflow = &entry[K]{size: size, bucket: newBucket(size)}
		}
		return s.overflow
	}
	if e == nil {
		e = &entry[K]{size: size, bucket: newBucket(size)}
	}
	e.key = clone(key)
	s.entries[e.key] = e
	s.link(e)
	return e
}

// link makes e the most recently used.
func (s *shard[K]) link(e *entry[K]) {
	e.prev, e.next = s.oldest.prev, &s.oldest
	e.prev.next, e.next.prev = e, e
}

func (s *shard[K]) unlink(e *entry[K]) {
	e.prev.next, e.next.prev = e.next, e.prev
}

// counts is how many keys have a bucket, and how many requests went to shared ones.
func (t *table[K]) counts() (keys, shared int) {
	for i := range t.shards {
		s := &t.shards[i]
		s.mu.Lock()
		keys += len(s.entries)
		shared += s.shared
		s.mu.Unlock()
	}
	return keys, shared
}
