package limits

import (
	"hash/maphash"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
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

// Both kinds of bucket, whatever the size: never more than burst + rate × time, to the nanosecond that clocks
// have, the burst at once, and after retryAfter there is a token.
func TestBucketKeepsItsWord(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size, now := anyBucket().Draw(t, "size"), time.Unix(1_800_000_000, 0)
		start, granted := now, 0.0
		l, many := newBucket(size), newTable(now)
		ask := func() (time.Duration, bool) { return l.take(now) }
		if rapid.Bool().Draw(t, "in a table") {
			ask = func() (time.Duration, bool) { return many.takeUser([]byte("key"), size, 1024, now) }
		}
		for range rapid.IntRange(1, 50).Draw(t, "requests") {
			now = now.Add(time.Duration(rapid.OneOf(rapid.Just(0), rapid.IntRange(0, 1e9), rapid.IntRange(0, math.MaxInt32*1000)).Draw(t, "later")))
			after, ok := ask()
			if !ok && granted < float64(size.Burst) {
				t.Fatalf("refused after %v of a burst of %d", granted, size.Burst)
			}
			if !ok {
				if after <= 0 || after > time.Second {
					t.Fatalf("retry after %s at %v a second", after, size.Rate)
				}
				now = now.Add(after + time.Nanosecond)
				if _, ok = ask(); !ok {
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

// Requests that read the clock before others, and ask after them, bring no time that
// passes twice.
func TestLateRequestsBringNoTokens(t *testing.T) {
	size, began := Bucket{Rate: 200_000, Burst: 20_000}, time.Unix(1_800_000_000, 0)
	const asked, seconds = 400_000, 2
	for _, late := range []time.Duration{0, 20 * time.Microsecond, 5 * time.Millisecond} {
		one, many, random := newBucket(size), newTable(began), rand.New(rand.NewPCG(1, 2))
		of := map[string]int{}
		for i := range asked * seconds {
			now := began.Add(time.Duration(i) * time.Second / asked)
			if late > 0 {
				now = now.Add(-time.Duration(random.Int64N(int64(late))))
			}
			if _, ok := one.take(now); ok {
				of["bucket"]++
			}
			if _, ok := many.takeUser([]byte("key"), size, 1024, now); ok {
				of["table"]++
			}
		}
		for kind, granted := range of {
			require.InDelta(t, size.Burst+int(size.Rate)*seconds, granted, 50, "%s, up to %s late", kind, late)
		}
		require.Len(t, of, 2)
	}
}

// A second that has ended does not come again.
func TestLateRequestsAreCounted(t *testing.T) {
	p, second := new(pace), time.Unix(1_800_000_000, 0)
	for range 40 {
		require.True(t, p.calm(second, 100))
	}
	require.True(t, p.calm(second.Add(-time.Nanosecond), 100), "read the clock before its turn")
	for range 8 {
		require.True(t, p.calm(second, 100))
	}
	require.False(t, p.calm(second, 100), "half of the threshold")
	require.True(t, p.calm(second.Add(-time.Hour), 100), "a clock that is set back")
}

func TestCarryOver(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	spend := func(take func() bool) (n int) {
		for n < 1000 && take() {
			n++
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
		l.spend(tc.spent, now)
		l = l.carryOver(tc.to, now)
		require.Equal(t, tc.left, spend(func() bool {
			_, ok := l.take(now)
			return ok
		}), name)

		// A table's bucket, and that which newcomers share, go the same way.
		in, back := newTable(now.Add(-time.Hour)), time.Hour.Seconds()
		for i := range in.shards {
			in.shards[i].resize(tc.from)
			in.shards[i].overflow = back*tc.from.Rate + float64(tc.spent)
		}
		for range tc.spent {
			_, ok := in.takeUser([]byte("key"), tc.from, 1024, now)
			require.True(t, ok, name)
		}
		require.Equal(t, tc.left, spend(func() bool {
			_, ok := in.takeUser([]byte("key"), tc.to, 1024, now)
			return ok
		}), name)
		s := &in.shards[maphash.String(in.seed, "key")%tableShards]
		require.Equal(t, back*tc.to.Rate+float64(min(tc.spent, tc.to.Burst)), s.overflow, name)
	}
}
