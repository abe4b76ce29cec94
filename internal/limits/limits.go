// Package limits stands in front of the sale and says no early: token buckets for
// the whole gateway, a client's address and a user, Sentinel's flow and concurrency
// rules, and one circuit breaker an engine. It rejects, it never sleeps. Its rules
// come from configs/limits.yaml and can be swapped while it runs.
package limits

import (
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"
)

// Class is the kind of a request; each has limits of its own.
type Class uint8

// The classes.
const (
	Purchase Class = iota // POST …/purchases
	Read                  // everything else a shopper can ask
	classes
)

func (c Class) String() string { return [...]string{"purchase", "read"}[c] }

// trafficRetryAfter is what Sentinel's refusals advise: its flow rule counts over one
// second, and a request under way ends within about that.
const trafficRetryAfter = time.Second

// ipv6KeyBits is how much of an IPv6 address is one client: a /64 is the least a
// household or a phone is given, so its holder can make addresses at will.
const ipv6KeyBits = 64

// Options are what a Limiter needs besides its rules; the zero value works.
type Options struct {
	Now        func() time.Time      // nil = time.Now; the token buckets' clock
	Registerer prometheus.Registerer // nil = metrics that nobody sees
	Log        *slog.Logger          // nil = slog.Default()
}

// Limiter holds every limit of one gateway. All methods may be called at once.
type Limiter struct {
	now      func() time.Time
	log      *slog.Logger
	metrics  *metrics
	rules    atomic.Pointer[inForce]
	address  [classes]*table[netip.Addr]
	user     [classes]*table[string]
	flow     [classes]*flowRule
	underWay [classes]underWay
	circuits map[Engine]*circuit
	swapping sync.Mutex
}

// inForce is what a request is held against, swapped as a whole.
type inForce struct {
	Rules
	gateway       [classes]*rate.Limiter
	address, user [classes]Bucket
	concurrency   [classes]int64
}

// underWay counts the requests of a class between Enter and Exit.
type underWay struct {
	atomic.Int64
	_ [56]byte // a cache line a class
}

// New makes a Limiter that follows r. It fails only if Sentinel does not start, or if
// its metrics are registered already.
func New(r *Rules, o Options) (*Limiter, error) {
	if err := startSentinel(); err != nil {
		return nil, err
	}
	l := &Limiter{now: o.Now, log: o.Log, metrics: newMetrics(), circuits: map[Engine]*circuit{}}
	if l.now == nil {
		l.now = time.Now
	}
	if l.log == nil {
		l.log = slog.Default()
	}
	for c := range classes {
		l.address[c] = newTable(func(a netip.Addr) netip.Addr { return a })
		l.user[c] = newTable(strings.Clone)
	}
	suffix := resources()
	for c := range classes {
		l.flow[c] = newFlowRule(c.String() + suffix)
	}
	for _, e := range Engines {
		l.circuits[e] = newCircuit(e, suffix,
			l.metrics.breakerRefused.WithLabelValues(string(e)), l.metrics.breakerOpened.WithLabelValues(string(e)))
	}
	err := l.Swap(r)
	if err == nil && o.Registerer != nil {
		err = l.metrics.register(l, o.Registerer)
	}
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// AllowAddress takes a token from the bucket of a client's address (IPv6: of its
// /64). When there is none, ok is false, limit names the limit for logs and
// metrics, and retryAfter is when the next token is there.
func (l *Limiter) AllowAddress(c Class, ip netip.Addr) (retryAfter time.Duration, limit string, ok bool) {
	r := l.rules.Load()
	retryAfter, ok = l.address[c].take(client(ip), r.address[c], r.Tracked.Addresses, l.now())
	if ok {
		return 0, "", true
	}
	return l.refuse(limitAddress, c, retryAfter)
}

// client is the part of an address that stands for a client.
func client(ip netip.Addr) netip.Addr {
	ip = ip.Unmap()
	if ip.Is6() {
		if p, err := ip.Prefix(ipv6KeyBits); err == nil {
			return p.Addr()
		}
	}
	return ip
}

// AllowUser takes a token from a user's bucket; see AllowAddress. The string is
// copied if it is kept.
func (l *Limiter) AllowUser(c Class, user string) (retryAfter time.Duration, limit string, ok bool) {
	r := l.rules.Load()
	retryAfter, ok = l.user[c].take(user, r.user[c], r.Tracked.Users, l.now())
	if ok {
		return 0, "", true
	}
	return l.refuse(limitUser, c, retryAfter)
}

// Enter asks the limits of the whole gateway: how many requests are under way, its
// bucket, and Sentinel's flow rule. If ok, the request is under way until pass.Exit,
// which must be called once.
func (l *Limiter) Enter(c Class) (pass Pass, retryAfter time.Duration, limit string, ok bool) {
	r := l.rules.Load()
	pass = Pass{&l.underWay[c].Int64}
	kind := limitConcurrency
	if pass.count.Add(1) > r.concurrency[c] {
		retryAfter = trafficRetryAfter
	} else if retryAfter, ok = take(r.gateway[c], l.now()); !ok {
		kind = limitGateway
	} else if ok = l.flow[c].allow(); !ok {
		kind, retryAfter = limitFlow, trafficRetryAfter
	}
	if ok {
		return pass, 0, "", true
	}
	pass.Exit()
	retryAfter, limit, ok = l.refuse(kind, c, retryAfter)
	return Pass{}, retryAfter, limit, ok
}

// Pass is a request under way.
type Pass struct{ count *atomic.Int64 }

// Exit ends it; that of a Pass that was refused does nothing.
func (p Pass) Exit() {
	if p.count != nil {
		p.count.Add(-1)
	}
}

func (l *Limiter) refuse(k limitKind, c Class, after time.Duration) (retryAfter time.Duration, limit string, ok bool) {
	l.metrics.refused[k][c].Inc()
	return after, limitNames[k][c], false
}

// Swap follows r from now on. Buckets whose rate and burst stay the same keep their
// state; of the others, what was spent stays spent.
func (l *Limiter) Swap(r *Rules) error {
	l.swapping.Lock()
	defer l.swapping.Unlock()
	next := &inForce{
		Rules:   *r,
		address: [classes]Bucket{r.Address.Purchase, r.Address.Read},
		user:    [classes]Bucket{r.User.Purchase, r.User.Read},

		concurrency: [classes]int64{int64(r.Concurrency.Purchase), int64(r.Concurrency.Read)},
	}
	old := l.rules.Load()
	for c, size := range [classes]Bucket{r.Gateway.Purchase, r.Gateway.Read} {
		switch {
		case old == nil:
			next.gateway[c] = newBucket(size)
		case old.gateway[c].Limit() == rate.Limit(size.Rate) && old.gateway[c].Burst() == size.Burst:
			next.gateway[c] = old.gateway[c]
		default:
			next.gateway[c] = carryOver(old.gateway[c], size, l.now())
		}
	}
	if err := errors.Join(
		l.flow[Purchase].follow(r.Flow.PurchaseQPS),
		l.flow[Read].follow(r.Flow.ReadQPS),
		l.circuits[Redis].follow(r.Breakers.Redis),
		l.circuits[RocketMQ].follow(r.Breakers.RocketMQ),
		l.circuits[MySQL].follow(r.Breakers.MySQL),
	); err != nil {
		return err
	}
	l.rules.Store(next)
	return nil
}

// Breaker is the circuit breaker of an engine, seen by one caller: failed says which
// of the errors of its calls count against the engine (never called with nil). All
// callers of an engine share its state.
func (l *Limiter) Breaker(e Engine, failed func(error) bool) *Breaker {
	c := l.circuits[e]
	if c == nil {
		panic("BUG: no breaker for engine " + string(e))
	}
	return &Breaker{circuit: c, failed: failed}
}

// Close takes the limiter's rules out of Sentinel, which is one for the process. What
// is asked of the limiter afterwards is answered by the token buckets alone.
func (l *Limiter) Close() error {
	var errs []error
	for c := range classes {
		errs = append(errs, l.flow[c].forget())
	}
	for _, e := range Engines {
		errs = append(errs, l.circuits[e].forget())
	}
	return errors.Join(errs...)
}
