package limits

import (
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// slots is how many buckets the table has memory for.
func (t *table) slots() (n int) {
	for i := range t.shards {
		n += len(t.shards[i].sets) * setSlots
	}
	return n
}

func TestSlotIsSmall(t *testing.T) {
	require.EqualValues(t, 16, unsafe.Sizeof(slot{}))
	const maxKeys = 1 << 20
	now := time.Unix(1_800_000_000, 0)
	table := newTable(now)
	require.Zero(t, table.slots(), "no memory before it is used")
	for hash := range uint64(tableShards) {
		table.take(hash, Bucket{1, 1}, maxKeys, now)
	}
	require.Equal(t, 2*maxKeys, table.slots(), "32 bytes a key")
}

// A key's bucket in a table and x/time/rate's decide alike, step by step: over sizes and
// times, a size that changes, a table that is old, and requests that come out of order.
func TestTableDecidesAsRateDoes(t *testing.T) {
	size := rapid.Custom(func(t *rapid.T) Bucket {
		return Bucket{
			Rate:  math.Pow(10, rapid.OneOf(rapid.Float64Range(0, 3), rapid.Float64Range(0, 6)).Draw(t, "rate, log10")),
			Burst: rapid.OneOf(rapid.IntRange(1, 5), rapid.IntRange(1, 50), rapid.IntRange(1, 1e11)).Draw(t, "burst"),
		}
	})
	rapid.Check(t, func(t *rapid.T) {
		made := time.Unix(1_800_000_000, 0)
		of, now := size.Draw(t, "size"), made.Add(time.Duration(rapid.OneOf(rapid.Just(0.0), rapid.Float64Range(0, 1)).Draw(t, "years")*365*24)*time.Hour)
		table, oracle := newTable(made), newBucket(of)
		table.take(1<<32, size.Draw(t, "size before"), 1024, now) // by another key of the shard
		latest := now
		for range rapid.IntRange(1, 200).Draw(t, "requests") {
			// From no time to a few tokens' worth, odd so that no token is back at that very instant.
			later := rapid.OneOf(rapid.Just(0.0), rapid.Float64Range(0, 2)).Draw(t, "tokens later")
			now = now.Add(time.Duration(later / of.Rate * float64(time.Second)))
			at := now.Add(-time.Duration(rapid.OneOf(rapid.Just(0), rapid.IntRange(0, 1e9)).Draw(t, "earlier")))
			if at.After(latest) {
				latest = at
			}
			if next := size.Draw(t, "another size"); next != of && rapid.IntRange(0, 19).Draw(t, "changes") == 0 {
				// Which way half a token is rounded is nobody's promise.
				spent := float64(of.Burst) - oracle.tokens.TokensAt(latest)
				if math.Abs(spent-math.Floor(spent)-0.5) > 1e-3 {
					of, oracle = next, oracle.carryOver(next, latest)
				}
			}
			tokens := oracle.tokens.TokensAt(latest)
			wantAfter, want := oracle.take(latest)
			after, ok := table.take(0, of, 1024, at)
			if ok != want {
				// A clock's nanosecond and what an age of a year leaves of one are within the tie.
				if tie := math.Abs(tokens-1) / of.Rate; tie > 50e-9 {
					t.Fatalf("%v at %v tokens of %+v, want %v", ok, tokens, of, want)
				}
				return // from here on the histories differ
			}
			if off := (after - wantAfter).Abs(); off > time.Microsecond {
				t.Fatalf("retry after %s of %+v, want %s", after, of, wantAfter)
			}
		}
	})
}

// The whole burst is there at once, and not one more, however old the table.
func TestBurstIsExact(t *testing.T) {
	made := time.Unix(1_800_000_000, 0)
	for _, uptime := range []time.Duration{0, time.Hour + 7, 26*24*time.Hour + 11, 400*24*time.Hour + 13} {
		for _, rate := range []float64{1, 3, 7.7, 10, 200, 999.9, 12_345.6, 1e6} {
			table, now := newTable(made), made.Add(uptime)
			for _, burst := range []int{1, 2, 7, 20, 400, 10_000} {
				key, granted := fmt.Sprint(burst), 0
				size := Bucket{rate, burst}
				for {
					after, ok := table.takeUser([]byte(key), size, 1024, now)
					if !ok {
						require.InDelta(t, 1/rate, after.Seconds(), 1e-7)
						break
					}
					granted++
				}
				require.Equal(t, burst, granted, "%+v after %s", size, uptime)
				// A token comes back when it was said.
				later := now.Add(time.Duration(math.Ceil(1e9/rate)) + 50)
				_, ok := table.takeUser([]byte(key), size, 1024, later)
				require.True(t, ok)
				now = later.Add(time.Second)
			}
		}
	}
}

// Where the count of tokens passes a power of two, a sum of it loses a bit.
func TestBurstIsExactWhereSumsAreRounded(t *testing.T) {
	size, made := Bucket{Rate: 1e6, Burst: 20}, time.Unix(1_800_000_000, 0)
	table := newTable(made)
	for i := range 100 {
		seconds := float64(1<<45)/size.Rate - 15e-6 + float64(i)*8e-9 // after a year and six weeks
		now, granted := made.Add(time.Duration(seconds*1e9)), 0
		for range 2 * size.Burst {
			if _, ok := table.takeUser([]byte(strconv.Itoa(i)), size, 1024, now); ok {
				granted++
			}
		}
		require.Equal(t, size.Burst, granted, now)
	}
}

// A table decides every request of a key that has a bucket of its own as an unbounded
// one would: forgetting a key never gives it anything, nor does another bound.
func TestTableForgetsNobody(t *testing.T) {
	filled := 0
	rapid.Check(t, func(t *rapid.T) {
		r := rand.New(rand.NewPCG(1, rapid.Uint64().Draw(t, "seed")))
		size := Bucket{Rate: rapid.Float64Range(1, 4).Draw(t, "rate"), Burst: rapid.IntRange(1, 3).Draw(t, "burst")}
		now := time.Unix(1_800_000_000, 0)
		table, maxKeys := newTable(now), 1024
		s := &table.shards[0] // all keys are of one shard, of 128 slots
		hashes := make([]uint64, 300)
		for i := range hashes {
			hashes[i] = r.Uint64() / tableShards * tableShards
		}
		model := map[uint64]*bucket{}
		for range 2000 {
			if r.IntN(500) == 0 {
				maxKeys = []int{1024, 8192, 10_000, 16_384}[r.IntN(4)]
			}
			now = now.Add(time.Duration(r.IntN(1e6)))
			hash, shared := hashes[r.IntN(len(hashes))], s.shared
			_, ok := table.take(hash, size, maxKeys, now)
			if s.shared != shared {
				continue
			}
			if model[hash] == nil {
				model[hash] = newBucket(size)
			}
			if tokens := model[hash].tokens.TokensAt(now); math.Abs(tokens-1)/size.Rate < 2e-9 {
				return // a tie: from here on the histories may differ
			}
			if _, want := model[hash].take(now); ok != want {
				t.Fatalf("key %x: %v, want %v", hash, ok, want)
			}
		}
		if s.shared > 0 {
			filled++
		}
	})
	require.NotZero(t, filled, "runs in which there was no room for some")
}

// Of maxKeys keys that all owe, every one has a bucket of its own.
func TestTableHasRoomForItsBound(t *testing.T) {
	size, now := Bucket{Rate: 1, Burst: 2}, time.Unix(1_800_000_000, 0)
	for _, tc := range []struct{ maxKeys, seeds int }{{1024, 60}, {4096, 10}, {5000, 10}, {131_072, 2}, {1_000_000, 1}} {
		for seed := range tc.seeds {
			r, table, now := rand.New(rand.NewPCG(2, uint64(seed))), newTable(now), now
			// A second fills the table, another replaces every key by another.
			for range 2 * tc.maxKeys {
				now = now.Add(time.Second/time.Duration(tc.maxKeys) + 1)
				table.take(r.Uint64(), size, tc.maxKeys, now)
			}
			keys, shared := table.counts(now)
			require.Zero(t, shared, "%d keys, seed %d", tc.maxKeys, seed)
			require.InDelta(t, tc.maxKeys, keys, 0.01*float64(tc.maxKeys))
		}
	}
}

func TestTableIsBounded(t *testing.T) {
	const maxKeys = 8192
	size, now := Bucket{Rate: 1, Burst: 2}, time.Unix(1_800_000_000, 0)
	table := newTable(now)
	refused, flood := 0, 20*maxKeys
	for i := range flood {
		after, ok := table.takeUser([]byte("flood-"+strconv.Itoa(i)), size, maxKeys, now)
		if !ok {
			refused++
			require.Equal(t, time.Second, after)
		}
	}
	keys, shared := table.counts(now)
	require.Equal(t, slotsPerKey*maxKeys, table.slots())
	require.Greater(t, keys, slotsPerKey*maxKeys*9/10, "as good as all")
	require.Equal(t, flood-keys, shared)
	require.Equal(t, shared-2*tableShards, refused, "the rest share a bucket a shard")

	// A second later every bucket is full again, and makes room.
	now = now.Add(time.Second)
	keys, _ = table.counts(now)
	require.Zero(t, keys)
	for i := range maxKeys {
		_, ok := table.takeUser([]byte("late-"+strconv.Itoa(i)), size, maxKeys, now)
		require.True(t, ok)
	}
	keys, sharedNow := table.counts(now)
	require.Equal(t, maxKeys, keys)
	require.Equal(t, shared, sharedNow)
}

// Another bound takes the buckets along. One that is too small for all who owe is put
// off: the room before stays, until they fit.
func TestBoundChanges(t *testing.T) {
	size, now := Bucket{Rate: 1, Burst: 1}, time.Unix(1_800_000_000, 0)
	table := newTable(now)
	refusedAll := func(maxKeys int) {
		t.Helper()
		for i := range 60_000 {
			_, ok := table.takeUser([]byte("key-"+strconv.Itoa(i)), size, maxKeys, now)
			require.False(t, ok)
		}
		keys, shared := table.counts(now)
		require.Equal(t, 60_000, keys)
		require.Zero(t, shared)
	}
	for i := range 60_000 {
		_, ok := table.takeUser([]byte("key-"+strconv.Itoa(i)), size, 65_536, now)
		require.True(t, ok)
	}
	refusedAll(65_536)
	refusedAll(1_000_000)
	require.Equal(t, slots(1_000_000), table.slots())
	refusedAll(65_536)
	require.Equal(t, slots(65_536), table.slots())
	refusedAll(1024)
	require.Equal(t, slots(65_536), table.slots())
	now = now.Add(time.Second)
	for i := range 1024 {
		_, ok := table.takeUser([]byte("late-"+strconv.Itoa(i)), size, 1024, now)
		require.True(t, ok)
	}
	require.Equal(t, slots(1024), table.slots())
	keys, shared := table.counts(now)
	require.Equal(t, 1024, keys)
	require.Zero(t, shared)
}

// slots is how many a table makes for a bound.
func slots(maxKeys int) int {
	const per = tableShards * setSlots
	return max((2*maxKeys+per-1)/per, 16) * per
}

// One who owes cannot be flushed out by keys of his own making.
func TestFloodDoesNotFreeADebtor(t *testing.T) {
	const maxKeys = 640
	size, now := Bucket{Rate: 1, Burst: 5}, time.Unix(1_800_000_000, 0)
	table := newTable(now)
	for range size.Burst {
		_, ok := table.takeUser([]byte("debtor"), size, maxKeys, now)
		require.True(t, ok)
	}
	for i := range 50 * maxKeys {
		now = now.Add(10 * time.Microsecond) // a third of a second in all
		table.takeUser([]byte("flood-"+strconv.Itoa(i)), size, maxKeys, now)
	}
	_, shared := table.counts(now)
	require.NotZero(t, shared)
	_, ok := table.takeUser([]byte("debtor"), size, maxKeys, now)
	require.False(t, ok)
}

// A clock that is set back, or far ahead, gives nobody anything and takes nothing away.
func TestTableSurvivesAnyClock(t *testing.T) {
	size, start := Bucket{Rate: 10, Burst: 3}, time.Unix(1_800_000_000, 0)
	table := newTable(start)
	spend := func(now time.Time) (n int) {
		for range 10 {
			after, ok := table.takeUser([]byte("key"), size, 1024, now)
			if ok {
				n++
			} else {
				require.LessOrEqual(t, after, 100*time.Millisecond)
				require.Positive(t, after)
			}
		}
		return n
	}
	require.Equal(t, 3, spend(start.Add(time.Hour)))
	require.Equal(t, 0, spend(start.Add(time.Minute)), "set back")
	require.Equal(t, 0, spend(start.Add(-time.Hour)), "before the table was made")
	require.Equal(t, 0, spend(time.Time{}))
	require.Equal(t, 1, spend(start.Add(time.Hour+100*time.Millisecond)), "it goes on where it was")
	require.Equal(t, 3, spend(start.AddDate(290, 0, 0)))
	require.Equal(t, 0, spend(start))
	keys, _ := table.counts(time.Time{})
	require.Equal(t, 1, keys)
	spend(time.Unix(1<<60, 0))
	require.False(t, math.IsNaN(table.shards[0].latest))
}

func TestBucketOfNoSizePanics(t *testing.T) {
	for _, size := range []Bucket{{}, {1, 0}, {0, 1}, {-1, 1}, {math.NaN(), 1}, {math.Inf(1), 1}} {
		table := newTable(time.Now())
		table.takeUser([]byte("key"), Bucket{1, 1}, 1024, time.Now())
		require.Panics(t, func() { table.takeUser([]byte("key"), size, 1024, time.Now()) }, "%+v", size)
	}
}

func TestAddressesAreToldApart(t *testing.T) {
	size, now := Bucket{Rate: 1, Burst: 1}, time.Unix(1_800_000_000, 0)
	table := newTable(now)
	take := func(text string) bool {
		ip := netip.Addr{}
		if text != "" {
			ip = netip.MustParseAddr(text)
		}
		_, ok := table.takeAddr(ip, size, 1024, now)
		return ok
	}
	for _, text := range []string{"", "192.0.2.1", "192.0.2.2", "2001:db8::", "2001:db8:0:1::"} {
		require.True(t, take(text), text)
		require.False(t, take(text), text)
	}
	require.False(t, take("::ffff:192.0.2.1"), "the same in IPv6")
}

// However many ask at once, while others are counted and sizes and bounds change: the
// burst is granted once.
func TestTableUnderLoad(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	table := newTable(now)
	var granted atomic.Int64
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 5000 {
				size, maxKeys := Bucket{Rate: float64(1 + i%2), Burst: 500}, 1024<<(i/100%6)
				if _, ok := table.takeUser([]byte("key"), size, maxKeys, now); ok {
					granted.Add(1)
				}
				table.takeUser([]byte(strconv.Itoa(g*5000+i)), size, maxKeys, now)
				if i%500 == 0 {
					table.counts(now)
				}
			}
		})
	}
	wg.Wait()
	require.EqualValues(t, 500, granted.Load())
}

func TestTableDoesNotAllocate(t *testing.T) {
	size, now := Bucket{Rate: 1, Burst: 1}, time.Unix(1_800_000_000, 0)
	table, i := newTable(now), uint64(0)
	for i := range uint64(tableShards) {
		table.take(i, size, 1024, now)
	}
	var key [16]byte
	require.Zero(t, testing.AllocsPerRun(10_000, func() {
		i++
		copy(key[:], strconv.AppendUint(key[:0], i, 10))
		table.takeUser(key[:], size, 1024, now)
		table.takeAddr(netip.AddrFrom16(key), size, 1024, now)
	}))
}
