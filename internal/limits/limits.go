// Package limits stands in front of the sale and says no early: token buckets for the
// whole gateway, a client's address, a user and a sale, Sentinel's flow, hotspot and
// system rules, a limit that all gateways keep together, lists of who is blocked, and
// one circuit breaker an engine. It rejects, it never sleeps. Its rules come from
// configs/limits.yaml and can be swapped while it runs.
package limits

import (
	"errors"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"flashgate/internal/sale"
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

// trafficRetryAfter is what refusals advise that are no bucket's: Sentinel's rules
// count over one second, and a request under way ends within about that.
const trafficRetryAfter = time.Second

// ipv6KeyBits is how much of an IPv6 address is one client: a /64 is the least a
// household or a phone is given, so its holder can make addresses at will.
const ipv6KeyBits = 64

// Options are what a Limiter needs besides its rules; the zero value works.
type Options struct {
	Now        func() time.Time      // nil = time.Now; the clock of those who ask
	Registerer prometheus.Registerer // nil = metrics that nobody sees
	Log        *slog.Logger          // nil = slog.Default()
	Lease      Lease                 // nil = a cluster's limit is kept as if Redis were away
	Tickets    bool                  // a key for tickets is there: without, rules that require them are refused
}

// Limiter holds every limit of one gateway. All methods may be called at once.
type Limiter struct {
	now      func() time.Time
	log      *slog.Logger
	metrics  *metrics
	tickets  bool
	rules    atomic.Pointer[inForce]
	access   atomic.Pointer[access]
	address  [classes]*table
	user     [classes]*table
	sales    sync.Map // id → *oneSale
	flow     [classes]*flowRule
	hotspot  [classes]*hotspotRule
	pace     pace // of all requests
	shares   [classes]*share
	underWay [classes]underWay
	circuits map[Engine]*circuit
	suffix   string // of its resources' names in Sentinel

	swapping sync.Mutex
	made     []sale.AccessRule // by operators
	book     sale.AccessBook   // FollowAccess's own
	history  history
}

// inForce is what a request is held against, swapped as a whole.
type inForce struct {
	Rules
	gateway             [classes]*bucket
	address, user, sale [classes]Bucket
	named               map[string]*namedSale
	hotspot             [classes]float64
	concurrency         [classes]int64
	trusted             *networks
	since               time.Time
}

// underWay counts the requests of a class between Enter and Exit.
type underWay struct {
	atomic.Int64
	_ [56]byte // a cache line a class
}

// New makes a Limiter that follows r. It fails if Sentinel does not start, if its
// metrics are registered already, and if r asks for what o has not.
func New(r *Rules, o Options) (*Limiter, error) {
	if err := startSentinel(); err != nil {
		return nil, err
	}
	l := &Limiter{
		now: o.Now, log: o.Log, metrics: newMetrics(), tickets: o.Tickets,
		circuits: map[Engine]*circuit{}, suffix: resources(),
	}
	if l.now == nil {
		l.now = time.Now
	}
	if l.log == nil {
		l.log = slog.Default()
	}
	for c := range classes {
		l.address[c], l.user[c] = newTable(l.now()), newTable(l.now())
		l.flow[c] = newFlowRule(c.String() + l.suffix)
		l.hotspot[c] = &hotspotRule{c.String() + "_hotspot" + l.suffix}
		l.shares[c] = newShare(c, o.Lease)
	}
	for _, e := range Engines {
		l.circuits[e] = newCircuit(e, l.suffix,
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

// ForwardedHeader names the header in which peer, a proxy that is trusted, tells whom
// it asks for; "" for anyone else, whose headers say nothing.
func (l *Limiter) ForwardedHeader(peer netip.Addr) string {
	r := l.rules.Load()
	if len(r.trusted.bits) == 0 || !r.trusted.has(peer.Unmap()) {
		return ""
	}
	return r.Proxies.Header
}

// Client is the address of the client that peer asks for, by the values of its
// ForwardedHeader: the last address in them that is no trusted proxy's.
func (l *Limiter) Client(peer netip.Addr, values [][]byte) netip.Addr {
	r := l.rules.Load()
	return clientOf(r.trusted, r.Proxies.Header, peer, values)
}

// AllowAddress takes a token from the bucket of a client's address (IPv6: of its
// /64). now is when the request came: one reading of the clock is enough for all its
// limits, and late ones are seen to. When there is no token, ok is false, limit names the limit for the answer, logs and
// metrics, and retryAfter is when the next token is there. Of a blocked address, limit
// is BlockedAddress: waiting does not help.
func (l *Limiter) AllowAddress(c Class, ip netip.Addr, now time.Time) (retryAfter time.Duration, limit string, ok bool) {
	ip = ip.Unmap()
	switch blocked, allowed := l.access.Load().address(ip); {
	case allowed:
		return 0, "", true
	case blocked:
		l.metrics.blockedAddress.Inc()
		return 0, BlockedAddress, false
	}
	r := l.rules.Load()
	retryAfter, ok = l.address[c].takeAddr(client(ip), r.address[c], r.Tracked.Addresses, now)
	if ok {
		return 0, "", true
	}
	return l.refuse(limitAddress, c, retryAfter)
}

// client is the part of an address that stands for a client.
func client(ip netip.Addr) netip.Addr {
	if ip.Is6() {
		if p, err := ip.Prefix(ipv6KeyBits); err == nil {
			return p.Addr()
		}
	}
	return ip
}

// AllowUser takes a token from a user's bucket; see AllowAddress. The name is not
// kept.
func (l *Limiter) AllowUser(c Class, user []byte, now time.Time) (retryAfter time.Duration, limit string, ok bool) {
	switch blocked, allowed := l.access.Load().user(user); {
	case allowed:
		return 0, "", true
	case blocked:
		l.metrics.blockedUser.Inc()
		return 0, BlockedUser, false
	}
	r := l.rules.Load()
	retryAfter, ok = l.user[c].takeUser(user, r.user[c], r.Tracked.Users, now)
	if ok {
		return 0, "", true
	}
	return l.refuse(limitUser, c, retryAfter)
}

// Enter asks the limits of the whole gateway, the cheapest first: how many requests are
// under way, its bucket, the machine's rules, the flow rule, and the share of what all
// gateways let in. If ok, the request is under way until pass.Exit, which must be
// called once.
func (l *Limiter) Enter(c Class, now time.Time) (pass Pass, retryAfter time.Duration, limit string, ok bool) {
	r := l.rules.Load()
	pass = Pass{of: l, class: c}
	var kind limitKind
	if mine := l.underWay[c].Add(1); mine > r.concurrency[c] {
		kind, retryAfter = limitConcurrency, trafficRetryAfter
	} else if mine+l.underWay[1-c].Load() > int64(r.System.Concurrency) {
		kind, retryAfter = limitSystem, trafficRetryAfter
	} else if retryAfter, ok = r.gateway[c].take(now); !ok {
		kind = limitGateway
	} else if pass.watched, ok = l.systemAllows(&r.System, now); !ok {
		kind, retryAfter = limitSystem, trafficRetryAfter
	} else if ok = l.flow[c].allow(now); !ok {
		kind, retryAfter = limitFlow, trafficRetryAfter
	} else if r.Cluster.Enabled {
		retryAfter, ok = l.shares[c].take(now)
		kind = limitCluster
	}
	if pass.watched {
		pass.began = now
	}
	if ok {
		return pass, 0, "", true
	}
	pass.Exit()
	retryAfter, limit, ok = l.refuse(kind, c, retryAfter)
	return Pass{}, retryAfter, limit, ok
}

// Pass is a request under way.
type Pass struct {
	of      *Limiter
	class   Class
	watched bool
	began   time.Time // of one that is watched
}

// Exit ends it; that of a Pass that was refused does nothing.
func (p Pass) Exit() {
	if p.of == nil {
		return
	}
	p.of.underWay[p.class].Add(-1)
	if p.watched {
		unwatch(p.of.now().Sub(p.began))
	}
}

func (l *Limiter) refuse(k limitKind, c Class, after time.Duration) (retryAfter time.Duration, limit string, ok bool) {
	l.metrics.refused[k][c].Inc()
	return after, limitNames[k][c], false
}

// TicketRules says whether a purchase needs a ticket now, and how long one is good.
func (l *Limiter) TicketRules() (required bool, ttl time.Duration) {
	r := l.rules.Load()
	return r.Ticket.Required, r.Ticket.TTL
}

// errNoTicketKey refuses rules that this process could not follow.
var errNoTicketKey = errors.New("ticket.required: this gateway has no key for tickets: want ticket.secret in its config")

// Swap follows r from now on. Buckets whose rate and burst stay the same keep their
// state; of the others, what was spent stays spent. After an error, which comes before
// anything has changed or from Sentinel, the rules before are in force.
func (l *Limiter) Swap(r *Rules) error {
	l.swapping.Lock()
	defer l.swapping.Unlock()
	if r.Ticket.Required && !l.tickets {
		return errNoTicketKey
	}
	old := l.rules.Load()
	next := l.newInForce(r, old)
	if err := l.follow(next); err != nil {
		l.forgetNamed(next, old)
		if old != nil {
			err = errors.Join(err, l.follow(old))
		}
		return err
	}
	l.rules.Store(next)
	l.access.Store(newAccess(r, l.made))
	for c, size := range [classes]Bucket{r.Cluster.Purchase, r.Cluster.Read} {
		l.shares[c].follow(&r.Cluster, size)
	}
	l.forgetNamed(old, next)
	return nil
}

func (l *Limiter) newInForce(r *Rules, old *inForce) *inForce {
	next := &inForce{
		Rules:   *r,
		address: r.Address.classes(), user: r.User.classes(), sale: r.Sale.classes(),
		named:       make(map[string]*namedSale, len(r.Sales)),
		hotspot:     [classes]float64{r.Hotspot.PurchaseQPS, r.Hotspot.ReadQPS},
		concurrency: [classes]int64{int64(r.Concurrency.Purchase), int64(r.Concurrency.Read)},
		trusted:     &networks{},
		since:       time.Now(),
	}
	next.trusted.addTexts(r.Proxies.Trusted)
	for c, size := range r.Gateway.classes() {
		switch {
		case old == nil:
			next.gateway[c] = newBucket(size)
		case old.gateway[c].is(size):
			next.gateway[c] = old.gateway[c]
		default:
			next.gateway[c] = old.gateway[c].carryOver(size, l.now())
		}
	}
	for id, s := range r.Sales {
		n := &namedSale{size: [classes]Bucket{s.Purchase, s.Read}, qps: [classes]float64{s.PurchaseQPS, s.ReadQPS}}
		for c := range classes {
			if old != nil && old.named[id] != nil {
				n.flow[c] = old.named[id].flow[c]
			} else {
				n.flow[c] = newFlowRule(c.String() + ":" + id + l.suffix)
			}
		}
		next.named[id] = n
	}
	return next
}

// follow puts what Sentinel keeps of the rules in force.
func (l *Limiter) follow(n *inForce) error {
	warm := warmUp{n.Flow.WarmUp, n.Flow.ColdFactor}
	errs := []error{
		l.flow[Purchase].follow(n.Flow.PurchaseQPS, warm),
		l.flow[Read].follow(n.Flow.ReadQPS, warmUp{}),
		l.hotspot[Purchase].follow(n.Hotspot.PurchaseQPS, Purchase, n.named),
		l.hotspot[Read].follow(n.Hotspot.ReadQPS, Read, n.named),
		l.circuits[Redis].follow(n.Breakers.Redis),
		l.circuits[RocketMQ].follow(n.Breakers.RocketMQ),
		l.circuits[MySQL].follow(n.Breakers.MySQL),
		l.followSystem(n.System),
	}
	for _, s := range n.named {
		errs = append(errs, s.flow[Purchase].follow(s.qps[Purchase], warm), s.flow[Read].follow(s.qps[Read], warmUp{}))
	}
	return errors.Join(errs...)
}

// forgetNamed takes the rules of sales that were named, and are no more, out of Sentinel.
func (l *Limiter) forgetNamed(were, are *inForce) {
	if were == nil {
		return
	}
	for id, s := range were.named {
		if are != nil && are.named[id] != nil {
			continue
		}
		for c := range classes {
			if err := s.flow[c].forget(); err != nil {
				l.log.Warn("a flow rule was not forgotten", "resource", s.flow[c].resource, "error", err)
			}
		}
	}
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
		errs = append(errs, l.flow[c].forget(), l.hotspot[c].forget())
	}
	for _, e := range Engines {
		errs = append(errs, l.circuits[e].forget())
	}
	if r := l.rules.Load(); r != nil {
		for _, named := range r.named {
			for c := range classes {
				errs = append(errs, named.flow[c].forget())
			}
		}
	}
	return errors.Join(append(errs, l.forgetSystem())...)
}
