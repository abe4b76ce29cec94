package limits

import (
	"math"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/time/rate"
	"pgregory.net/rapid"
)

func anyBucket() *rapid.Generator[Bucket] {
	return rapid.Custom(func(t *rapid.T) Bucket {
		return Bucket{
			Rate:  rapid.OneOf(rapid.Float64Range(1, 20), rapid.Float64Range(1, 1e11), rapid.Just(1e11)).Draw(t, "rate"),
			Burst: rapid.OneOf(rapid.IntRange(1, 5), rapid.IntRange(1, 1e11), rapid.Just(int(1e11))).Draw(t, "burst"),
		}
	})
}

// Whatever the size: never more than burst + rate × time, to the nanosecond that clocks
// have, the burst at once, and after retryAfter there is a token.
func TestBucketKeepsItsWord(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size, now := anyBucket().Draw(t, "size"), time.Unix(1_800_000_000, 0)
		l, start, granted := newBucket(size), now, 0.0
		for range rapid.IntRange(1, 50).Draw(t, "requests") {
			now = now.Add(time.Duration(rapid.OneOf(rapid.Just(0), rapid.IntRange(0, 1e9), rapid.IntRange(0, math.MaxInt32*1000)).Draw(t, "later")))
			after, ok := take(l, now)
			if !ok && granted < float64(size.Burst) {
				t.Fatalf("refused after %v of a burst of %d", granted, size.Burst)
			}
			if !ok {
				if after <= 0 || after > time.Second {
					t.Fatalf("retry after %s at %v a second", after, size.Rate)
				}
				now = now.Add(after + time.Nanosecond)
				if _, ok = take(l, now); !ok {
					t.Fatalf("no token after the %s that were advised", after)
				}
			}
			granted++
			if most := float64(size.Burst) + size.Rate*(now.Sub(start)+time.Nanosecond).Seconds(); granted > most+1e-3 {
				t.Fatalf("granted %v, at most %v", granted, most)
			}
		}
	})
}

// A bounded table decides every request of a key that has a bucket of its own as an
// unbounded one would: forgetting a key never gives it anything.
func TestEvictionForgetsNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const maxKeys = 3
		size := Bucket{Rate: rapid.Float64Range(1, 4).Draw(t, "rate"), Burst: rapid.IntRange(1, 3).Draw(t, "burst")}
		s := shard[string]{entries: map[string]*entry[string]{}}
		s.oldest.prev, s.oldest.next = &s.oldest, &s.oldest
		now := time.Unix(1_800_000_000, 0)
		model := map[string]*rate.Limiter{}
		for range rapid.IntRange(1, 200).Draw(t, "requests") {
			now = now.Add(time.Duration(rapid.IntRange(0, 5e8).Draw(t, "later")))
			key := strconv.Itoa(rapid.IntRange(0, 8).Draw(t, "key"))
			e, own := s.entries[key], true
			if e == nil {
				e = s.admit(key, strings.Clone, size, maxKeys, now)
				own = e != s.overflow
			}
			_, ok := take(e.bucket, now)
			if len(s.entries) > maxKeys {
				t.Fatalf("%d keys", len(s.entries))
			}
			if !own {
				continue
			}
			if model[key] == nil {
				model[key] = newBucket(size)
			}
			if _, want := take(model[key], now); ok != want {
				t.Fatalf("key %s: %v, want %v", key, ok, want)
			}
		}
	})
}

// spreadKeys makes keys of which every shard gets perShard: a bound holds a shard, and
// which shard a key goes to is drawn anew for each table.
func spreadKeys(table *table[string], prefix string, perShard int) []string {
	var keys []string
	var count [tableShards]int
	for i := 0; len(keys) < perShard*tableShards; i++ {
		key := prefix + strconv.Itoa(i)
		if at := table.shardOf(key); count[at] < perShard {
			count[at]++
			keys = append(keys, key)
		}
	}
	return keys
}

func TestTableIsBounded(t *testing.T) {
	const maxKeys = 640
	size, now := Bucket{Rate: 1, Burst: 2}, time.Unix(1_800_000_000, 0)
	table := newTable(strings.Clone)
	refused := 0
	for i := range 100 * maxKeys {
		if _, ok := table.take("flood-"+strconv.Itoa(i), size, maxKeys, now); !ok {
			refused++
		}
	}
	keys, shared := table.counts()
	require.Equal(t, maxKeys, keys)
	require.Equal(t, 99*maxKeys, shared, "the rest share a bucket a shard")
	require.Equal(t, 99*maxKeys-2*tableShards, refused)

	// A second later every bucket is full again, and makes room.
	now = now.Add(time.Second)
	for _, key := range spreadKeys(table, "late-", maxKeys/4/tableShards) {
		_, ok := table.take(key, size, maxKeys, now)
		require.True(t, ok)
	}
	keys, sharedNow := table.counts()
	require.LessOrEqual(t, keys, maxKeys)
	require.Equal(t, shared, sharedNow)

	// A smaller bound is reached as newcomers come.
	now = now.Add(time.Minute)
	for _, key := range spreadKeys(table, "later-", 1) {
		table.take(key, size, maxKeys/2, now)
	}
	keys, _ = table.counts()
	require.LessOrEqual(t, keys, maxKeys/2)
}

// One who owes cannot be flushed out by keys of his own making.
func TestFloodDoesNotFreeADebtor(t *testing.T) {
	const maxKeys = 640
	size, now := Bucket{Rate: 1, Burst: 5}, time.Unix(1_800_000_000, 0)
	table := newTable(strings.Clone)
	for range size.Burst {
		_, ok := table.take("debtor", size, maxKeys, now)
		require.True(t, ok)
	}
	for i := range 50 * maxKeys {
		now = now.Add(10 * time.Microsecond) // half a second in all
		table.take("flood-"+strconv.Itoa(i), size, maxKeys, now)
	}
	_, ok := table.take("debtor", size, maxKeys, now)
	require.False(t, ok)
}

func TestCarryOver(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	spend := func(l *rate.Limiter) (n int) {
		for ; n < 1000; n++ {
			if !l.AllowN(now, 1) {
				break
			}
		}
		return n
	}
	for name, tc := range map[string]struct {
		from  Bucket
		spent int
		to    Bucket
		left  int
	}{
		"raised":           {Bucket{10, 20}, 5, Bucket{10, 50}, 45},
		"raised when dry":  {Bucket{10, 20}, 20, Bucket{10, 50}, 30},
		"cut":              {Bucket{10, 20}, 5, Bucket{10, 10}, 5},
		"cut below spent":  {Bucket{10, 20}, 15, Bucket{10, 10}, 0},
		"another rate":     {Bucket{10, 20}, 5, Bucket{1, 20}, 15},
		"from the largest": {Bucket{1e11, 1e11}, 7, Bucket{10, 20}, 13},
		"to the largest":   {Bucket{10, 20}, 20, Bucket{1, 1e11}, 1000},
	} {
		l := newBucket(tc.from)
		require.True(t, l.AllowN(now, tc.spent))
		require.Equal(t, tc.left, spend(carryOver(l, tc.to, now)), name)
	}
}
