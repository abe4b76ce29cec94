package limits

import (
	"context"
	"errors"
	"math"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// redis stands for the script quota: one bucket, and who asked lately.
type redis struct {
	mu     sync.Mutex
	tokens float64
	at     time.Time
	seen   map[string]time.Time
	away   bool
	slow   time.Duration
	leases int
}

func (r *redis) lease(member string) Lease {
	return func(ctx context.Context, _ string, size Bucket, want int64) (int64, int, error) {
		r.mu.Lock()
		slow := r.slow
		r.mu.Unlock()
		select {
		case <-time.After(slow):
		case <-ctx.Done():
			return 0, 0, ctx.Err()
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.away {
			return 0, 0, errors.New("redis is away")
		}
		r.leases++
		now := time.Now()
		if r.seen == nil {
			r.seen, r.tokens, r.at = map[string]time.Time{}, float64(size.Burst), now
		}
		r.seen[member] = now
		r.tokens = math.Min(r.tokens+size.Rate*now.Sub(r.at).Seconds(), float64(size.Burst))
		r.at = now
		granted := min(want, int64(r.tokens))
		if want > int64(r.tokens) && granted > 0 {
			granted = max(granted/int64(len(r.seen)), 1)
		}
		r.tokens -= float64(granted)
		return granted, len(r.seen), nil
	}
}

func (r *redis) set(away bool, slow time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.away, r.slow = away, slow
}

// site is gateways that keep a limit together, in a bubble.
type site struct {
	t      *testing.T
	redis  *redis
	shares []*share
	stop   func()
}

func newSite(t *testing.T, gateways int, c Cluster) *site {
	s := &site{t: t, redis: &redis{}}
	ctx, cancel := context.WithCancel(t.Context())
	var keepers sync.WaitGroup
	for i := range gateways {
		one := newShare(Purchase, s.redis.lease(string(rune('a'+i))))
		s.shares = append(s.shares, one)
		keepers.Go(func() { one.keep(ctx) })
	}
	s.follow(c)
	s.stop = func() { cancel(); keepers.Wait() }
	return s
}

func (s *site) follow(c Cluster) {
	for _, one := range s.shares {
		one.follow(&c, c.Purchase)
	}
}

// offer offers each gateway so many requests a second, and returns what each let in.
func (s *site) offer(seconds int, perSecond ...int) []int {
	in := make([]int, len(s.shares))
	const step = time.Millisecond
	due := make([]float64, len(s.shares))
	for range seconds * int(time.Second/step) {
		<-time.After(step) // of the bubble's time
		synctest.Wait()
		for i, one := range s.shares {
			for due[i] += float64(perSecond[i]) * step.Seconds(); due[i] >= 1; due[i]-- {
				if _, ok := one.take(time.Now()); ok {
					in[i]++
				}
			}
		}
	}
	return in
}

func total(n []int) (sum int) {
	for _, x := range n {
		sum += x
	}
	return sum
}

func within10(t *testing.T, want float64, got []int) {
	t.Helper()
	require.InDelta(t, want, total(got), 0.1*want, "%v", got)
}

// A total that all gateways keep together within 10 %, wherever the requests arrive.
func TestGatewaysKeepATotalTogether(t *testing.T) {
	for name, offered := range map[string][]int{
		"one":            {9000},
		"two":            {9000, 9000},
		"unevenly":       {8000, 200},
		"one has none":   {9000, 0},
		"ten":            {1000, 1000, 1000, 1000, 1000, 1000, 1000, 1000, 1000, 1000},
		"just too many":  {1100, 1100},
		"a share each":   {1100, 100, 100, 1100},
		"far too many":   {60000, 60000},
		"half as needed": {500, 500},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				size := Bucket{Rate: 2000, Burst: 200}
				s := newSite(t, len(offered), Cluster{Enabled: true, Gateways: len(offered), Purchase: size})
				defer s.stop()
				s.offer(1, offered...) // the burst, and getting to know each other
				const seconds = 5
				want := math.Min(size.Rate, float64(total(offered))) * seconds
				within10(t, want, s.offer(seconds, offered...))
			})
		})
	}
}

func TestClusterWithoutRedis(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		size := Bucket{Rate: 2000, Burst: 100}
		cluster := Cluster{Enabled: true, Gateways: 4, Purchase: size}
		s := newSite(t, 2, cluster)
		defer s.stop()
		s.redis.set(true, 0)
		in := s.offer(5, 5000, 5000)
		within10(t, 2*5*size.Rate/4, in) // each its part of the four that the file names

		s.redis.set(false, 0)
		s.offer(1, 5000, 5000)
		within10(t, 5*size.Rate, s.offer(5, 5000, 5000))

		s.redis.set(true, 0)
		s.offer(1, 5000, 5000)
		in = s.offer(5, 5000, 0)
		within10(t, 5*size.Rate/2, in) // of the two that Redis knew

		// One that hangs is as good as away, within a moment.
		s.redis.set(false, 0)
		s.offer(1, 5000, 5000)
		s.redis.set(false, time.Hour)
		s.offer(1, 5000, 5000)
		within10(t, 5*size.Rate, s.offer(5, 5000, 5000))
		require.NotNil(t, s.shares[0].own.Load())
	})
}

func TestClusterIsTuned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cluster := Cluster{Enabled: true, Gateways: 2, Purchase: Bucket{Rate: 1000, Burst: 50}}
		s := newSite(t, 2, cluster)
		defer s.stop()
		s.offer(1, 5000, 5000)
		within10(t, 5*1000, s.offer(5, 5000, 5000))
		cluster.Purchase = Bucket{Rate: 4000, Burst: 200}
		s.follow(cluster)
		s.offer(1, 5000, 5000)
		within10(t, 5*4000, s.offer(5, 5000, 5000))
		cluster.Purchase = Bucket{Rate: 100, Burst: 10}
		s.follow(cluster)
		s.offer(1, 5000, 5000)
		within10(t, 20*100, s.offer(20, 5000, 5000))
		cluster.Enabled = false
		s.follow(cluster)
		require.Equal(t, []int{5000, 5000}, s.offer(1, 5000, 5000), "off")
		cluster.Enabled = true
		s.follow(cluster)
		s.offer(1, 5000, 5000)
		within10(t, 20*100, s.offer(20, 5000, 5000))
	})
}

// A rush that begins is not refused for want of a lease that is on its way, and what it
// was let in on credit is paid back.
func TestARushBeginsOnCredit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		size := Bucket{Rate: 2000, Burst: 400}
		s := newSite(t, 2, Cluster{Enabled: true, Gateways: 2, Purchase: size})
		defer s.stop()
		s.redis.set(false, 40*time.Millisecond)
		s.offer(1, 0, 0)
		rush := 0
		for range 1000 {
			if _, ok := s.shares[0].take(time.Now()); ok {
				rush++
			}
		}
		require.Equal(t, 40+200, rush, "20 ms' worth in hand, and 100 ms' on credit")
		in := s.offer(1, 9000, 0)
		within10(t, size.Rate+float64(size.Burst), []int{rush + in[0]})
		within10(t, 5*size.Rate, s.offer(5, 9000, 9000))
	})
}

// A gateway with nothing to do asks for little.
func TestIdleGatewaysLeaveRedisAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, 1, Cluster{Enabled: true, Gateways: 1, Purchase: Bucket{Rate: 2000, Burst: 200}})
		defer s.stop()
		s.offer(1, 0)
		asked := func() int {
			s.redis.mu.Lock()
			defer s.redis.mu.Unlock()
			return s.redis.leases
		}
		before := asked()
		s.offer(10, 0)
		require.InDelta(t, 10*time.Second/leaseHeartbeat, asked()-before, 2)
	})
}
