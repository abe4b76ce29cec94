package limits

import (
	"context"
	"encoding/binary"
	"math"
	"net/netip"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// generous is the shipped file with limits that never bite.
func generous(t testing.TB) *Rules {
	t.Helper()
	r := shipped(t)
	wide := Bucket{Rate: 1e11, Burst: 1e11}
	for _, p := range []*PerClass{&r.Gateway, &r.Address, &r.User, &r.Sale} {
		p.Purchase, p.Read = wide, wide
	}
	r.Flow.PurchaseQPS, r.Flow.ReadQPS = 1e11, 1e11
	r.Hotspot, r.System.InboundQPS = Hotspot{1e11, 1e11}, 1e11
	return r
}

func shipped(t testing.TB) *Rules {
	t.Helper()
	r, err := Load("../../configs/limits.yaml")
	require.NoError(t, err)
	return r
}

func newLimiter(t testing.TB, r *Rules, o Options) *Limiter {
	t.Helper()
	l, err := New(r, o)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, l.Close()) })
	return l
}

func BenchmarkAllowAddress(b *testing.B) {
	l, ip := newLimiter(b, generous(b), Options{}), netip.MustParseAddr("2001:db8::1")
	b.ReportAllocs()
	for b.Loop() {
		l.AllowAddress(Purchase, ip, l.now())
	}
}

func BenchmarkAllowUser(b *testing.B) {
	l := newLimiter(b, generous(b), Options{})
	users := make([][]byte, 1<<14)
	for i := range users {
		users[i] = []byte("user-" + strconv.Itoa(i))
	}
	i := 0
	b.ReportAllocs()
	for b.Loop() {
		l.AllowUser(Purchase, users[i%len(users)], l.now())
		i++
	}
}

func BenchmarkAllowUserParallel(b *testing.B) {
	l := newLimiter(b, generous(b), Options{})
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			l.AllowUser(Purchase, []byte("a user"), l.now())
		}
	})
}

// A storm of a million users a second at whose end a million buckets are not full: each
// request is a new user's, or one's who has a bucket.
func BenchmarkTable(b *testing.B) {
	const users = 1_000_000
	for name, keys := range map[string]int{"new": math.MaxInt, "known": users} {
		b.Run(name, func(b *testing.B) {
			now, size := time.Unix(1_800_000_000, 0), Bucket{Rate: 1, Burst: 20}
			t, i := newTable(now), 0
			key := make([]byte, 0, 32)
			take := func() {
				now = now.Add(time.Second / users)
				key = strconv.AppendInt(append(key[:0], "user-"...), int64(i%keys), 10)
				t.takeUser(key, size, users, now)
				i++
			}
			for range users {
				take()
			}
			b.ReportAllocs()
			for b.Loop() {
				take()
			}
		})
	}
}

func BenchmarkNewcomersToFullTable(b *testing.B) {
	now, size := time.Unix(1_800_000_000, 0), Bucket{Rate: 1, Burst: 20}
	t, key := newTable(now), make([]byte, 8)
	i := uint64(0)
	b.ReportAllocs()
	for b.Loop() {
		binary.LittleEndian.PutUint64(key, i)
		t.takeUser(key, size, 1024, now)
		i++
	}
}

func BenchmarkEnter(b *testing.B) {
	l := newLimiter(b, generous(b), Options{})
	b.ReportAllocs()
	for b.Loop() {
		pass, _, _, ok := l.Enter(Purchase, l.now())
		if !ok {
			b.Fatal("refused")
		}
		pass.Exit()
	}
}

func BenchmarkBreaker(b *testing.B) {
	breaker := newLimiter(b, generous(b), Options{}).Breaker(Redis, func(error) bool { return true })
	ctx := b.Context()
	b.ReportAllocs()
	for b.Loop() {
		_ = breaker.Do(ctx, func(context.Context) error { return nil })
	}
}
