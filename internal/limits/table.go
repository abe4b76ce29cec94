package limits

import (
	"fmt"
	"hash/maphash"
	"math"
	"math/bits"
	"net/netip"
	"sync"
	"time"
)

const (
	// tableShards keeps cores from waiting for one lock; a power of two.
	tableShards = 64
	// setSlots is how many buckets lie side by side: 128 bytes, two cache lines.
	setSlots = 8
	// slotsPerKey leaves so much room that of maxKeys keys practically none finds both
	// its sets full.
	slotsPerKey = 2
	// setsPerShardMin is for small tables, whose keys fall unevenly on the shards.
	setsPerShardMin = 16
	// regrowSeconds is between two attempts to bring a shard to another bound.
	regrowSeconds = 1
	// countSets is how many sets are counted under one hold of a shard's lock: some
	// microseconds' worth.
	countSets = 512
)

// table holds a token bucket a key, with room for at least maxKeys of them. A bucket
// that is full again is the same as none, so its room is anybody's. The room of a bucket
// on which something is owed is nobody else's: making many keys is no way to be
// forgotten. A newcomer who finds no room shares one bucket, of the size of a key's,
// with the others of his shard.
//
// A bucket is 16 bytes without a pointer, in one of two sets of slots that its key's hash
// names: no list to keep, nothing for the garbage collector to follow, and two places to
// look. Keys are known by their hash alone. Two that have the same share a bucket: of a
// million keys, any two do with a probability of 3 in 100 million (n²/2⁶⁵), and the seed
// keeps it from being brought about.
type table struct {
	seed   maphash.Seed
	made   time.Time
	shards [tableShards]shard
}

// slot is a bucket. Time is told in tokens: by the count of those that could have come
// back since the table was made. A token then costs exactly 1, whatever the rate, and the
// tokens of a burst add up without rounding (up to a count of 2⁵³: at 10⁸ a second, for
// two years).
type slot struct {
	hash   uint64
	fullAt float64 // the count at which nothing is owed any more
}

type set [setSlots]slot

type shard struct {
	mu       sync.Mutex
	sets     []set
	size     Bucket  // that fullAt and overflow are told by
	maxKeys  int     // that sets has room for
	regrowAt float64 // in seconds; not before
	latest   float64 // time, in seconds since the table was made
	overflow float64 // fullAt of the bucket that is shared
	shared   int     // requests that went to it
	_        [64]byte
}

func newTable(now time.Time) *table { return &table{seed: maphash.MakeSeed(), made: now} }

// takeUser takes a token of key's bucket, which is of the given size. When there is
// none, it says when there will be.
func (t *table) takeUser(key []byte, size Bucket, maxKeys int, now time.Time) (retryAfter time.Duration, ok bool) {
	return t.take(maphash.Bytes(t.seed, key), size, maxKeys, now)
}

// takeAddr is takeUser for an address; an IPv4 one is the same in IPv6.
func (t *table) takeAddr(key netip.Addr, size Bucket, maxKeys int, now time.Time) (retryAfter time.Duration, ok bool) {
	bytes := key.As16()
	return t.take(maphash.Bytes(t.seed, bytes[:]), size, maxKeys, now)
}

func (t *table) take(hash uint64, size Bucket, maxKeys int, now time.Time) (retryAfter time.Duration, ok bool) {
	s := &t.shards[hash%tableShards]
	seconds := now.Sub(t.made).Seconds()
	s.mu.Lock()
	defer s.mu.Unlock()
	// Requests come a little out of order: for one that is late, time has stood still. So
	// it does for a clock that is set back, until it has caught up.
	s.latest = max(s.latest, seconds)
	if s.size != size {
		s.resize(size)
	}
	if s.maxKeys != maxKeys && s.latest >= s.regrowAt {
		s.regrow(maxKeys)
	}
	back := s.latest * size.Rate // the tokens that have come back by now
	fullAt := s.find(hash, back)
	after := max(*fullAt, back) + 1
	// Where the sum passes a power of two it is rounded, by less than 2⁻⁵² of it: four
	// times that, 28 ns after a year, is forgiven, so that the whole burst is there at once.
	// A wait shorter than the nanosecond of clocks is none, as in x/time/rate.
	missing := after - back - float64(size.Burst) - after*0x1p-50
	if wait := missing / size.Rate * float64(time.Second); wait >= 1 {
		return time.Duration(math.Ceil(wait)), false
	}
	*fullAt = after
	return 0, true
}

// find returns the bucket of a key: its own, which may be new to it, or the shared one.
func (s *shard) find(hash uint64, back float64) (fullAt *float64) {
	first, second := choose(s.sets, hash)
	for i := range setSlots {
		if first[i].hash == hash {
			return &first[i].fullAt
		}
		if second[i].hash == hash {
			return &second[i].fullAt
		}
	}
	if free := room(first, second, back); free != nil {
		free.hash = hash
		return &free.fullAt
	}
	s.shared++
	return &s.overflow
}

// choose returns the two sets in which a key may be. They are never the same: the
// choice is what fills the sets evenly.
func choose(sets []set, hash uint64) (first, second *set) {
	n := uint64(len(sets))
	i, _ := bits.Mul64(hash, n)       // by the upper half of the hash
	j, _ := bits.Mul64(hash<<32, n-1) // by the lower, of which the shard took the last bits
	if j >= i {
		j++
	}
	return &sets[i], &sets[j]
}

// room returns a free slot of the emptier set; nil: there is none.
func room(first, second *set, back float64) *slot {
	a, freeA := first.free(back)
	b, freeB := second.free(back)
	switch {
	case freeA == 0 && freeB == 0:
		return nil
	case freeA >= freeB:
		return &first[a]
	default:
		return &second[b]
	}
}

// free counts the slots of which nothing is owed, and returns the last of them.
func (s *set) free(back float64) (last, n int) {
	for i := range s {
		if s[i].fullAt <= back {
			last = i
			n++
		}
	}
	return last, n
}

// resize makes buckets of another size, in which what was spent of the old ones is
// spent, in whole tokens: see carryOver.
func (s *shard) resize(to Bucket) {
	if !(to.Rate > 0) || math.IsInf(to.Rate, 0) || to.Burst < 1 {
		panic(fmt.Sprintf("BUG: a bucket of %+v", to))
	}
	was, is := s.latest*s.size.Rate, s.latest*to.Rate
	carry := func(fullAt float64) float64 {
		spent := math.Round(max(fullAt-was, 0))
		return is + min(spent, float64(to.Burst))
	}
	for i := range s.sets {
		for j := range s.sets[i] {
			of := &s.sets[i][j]
			of.fullAt = carry(of.fullAt)
		}
	}
	s.overflow = carry(s.overflow)
	s.size = to
}

// regrow gives the shard room for its part of maxKeys keys. While some on whom something
// is owed find no place in it, the room before stays: a smaller bound forgets nobody.
func (s *shard) regrow(maxKeys int) {
	const per = tableShards * setSlots
	sets := make([]set, max((slotsPerKey*maxKeys+per-1)/per, setsPerShardMin))
	back := s.latest * s.size.Rate
	for i := range s.sets {
		for _, of := range s.sets[i] {
			if of.fullAt <= back {
				continue
			}
			first, second := choose(sets, of.hash)
			to := room(first, second, back)
			if to == nil {
				s.regrowAt = s.latest + regrowSeconds
				return
			}
			*to = of
		}
	}
	s.sets, s.maxKeys = sets, maxKeys
}

// counts is how many keys have a bucket that is not full, and how many requests went to
// shared ones.
func (t *table) counts(now time.Time) (keys, shared int) {
	seconds := now.Sub(t.made).Seconds()
	for i := range t.shards {
		s := &t.shards[i]
		for from, more := 0, true; more; from += countSets {
			var n int
			n, more = s.owing(from, seconds)
			keys += n
		}
		s.mu.Lock()
		shared += s.shared
		s.mu.Unlock()
	}
	return keys, shared
}

// owing counts the buckets that are not full in countSets sets, and says whether there
// are more sets.
func (s *shard) owing(from int, seconds float64) (n int, more bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sets := s.sets[min(from, len(s.sets)):min(from+countSets, len(s.sets))]
	for i := range sets {
		_, free := sets[i].free(max(seconds, s.latest) * s.size.Rate)
		n += setSlots - free
	}
	return n, from+countSets < len(s.sets)
}
