package faults

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Sizes of a round.
const (
	shoppersOfARound = 220
	offersOfARound   = 2
	scarceUnits      = 40  // and up to twice as many: sold out while faults go on
	ampleUnits       = 150 // and up to twice as many
	maxUserLimit     = 3
	lookersAtOnce    = 8 // for the last look at every order

	// Bounds of what is waited for, wide enough for a machine that builds and tests beside
	// this: there a broker takes two minutes to start.
	openSeconds = 120 // for a sale to be open at every gateway
	healSeconds = 300
	restSeconds = 240
)

// Result is a round's figures, and what it broke.
type Result struct {
	Seed      uint64
	Faults    []string
	Kinds     []string       // of the faults, one each
	Passed    int            // failpoints that a process came by
	Purchases int            // sent
	Accepted  int            // orders that were promised
	Orders    int            // in the ledger, active
	Cancelled int            // promises that ended as CANCELLED, where they may
	Broken    int            // promises that turned out otherwise, where no replica was waited for
	Unknown   int            // answers to purchases that left the outcome open
	Mended    map[string]int // differences that the reconciler repaired, by kind, and batches that it helped
	Load      time.Duration
	Heal      time.Duration // until every engine and daemon was ready again
	Rest      time.Duration // from then until all was settled
	Breaches  []string
	Timeline  []string
}

// round is a round under way.
type round struct {
	seed   uint64
	began  time.Time
	offers []*offer

	passed                  atomic.Int64
	poisoned, maybePoisoned atomic.Int64

	mu       sync.Mutex
	timeline []string
	lossy    map[*offer]bool // Redis lost what it knew of them
}

// loses notes that Redis loses what it knows of a sale.
func (r *round) loses(o *offer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.lossy == nil {
		r.lossy = make(map[*offer]bool)
	}
	r.lossy[o] = true
}

// note writes a line into the timeline.
func (r *round) note(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.timeline = append(r.timeline, fmt.Sprintf("%7.3f s  %s", time.Since(r.began).Seconds(), fmt.Sprintf(format, args...)))
}

// Round plays one round. A breach is in the result; an error means that the round could
// not be played.
func (s *Site) Round(ctx context.Context, seed uint64, only []string) (Result, error) {
	result := Result{Seed: seed, Mended: make(map[string]int)}
	faults, err := plan(seed, only)
	if err != nil {
		return result, err
	}
	for _, f := range faults {
		result.Faults = append(result.Faults, f.String())
		result.Kinds = append(result.Kinds, f.kind)
	}
	dead, err := s.deadBatches(ctx)
	if err != nil {
		return result, err
	}
	r := &round{seed: seed, began: time.Now()}
	if err := s.closeOffers(ctx); err != nil {
		return result, err
	}
	if err := s.openOffers(ctx, r); err != nil {
		return result, err
	}
	h := &history{began: time.Now()}
	r.began = h.began
	c := newCrowd(s.gatewayURLs(), h)
	defer c.client.CloseIdleConnections()
	shoppers, err := s.newShoppers(seed, shoppersOfARound, r.offers, c)
	if err != nil {
		return result, err
	}

	// Load and faults.
	open, closeLoad := context.WithTimeout(ctx, loadMillis*time.Millisecond)
	defer closeLoad()
	resolve, cancelResolve := context.WithCancel(ctx)
	defer cancelResolve()
	var undecided []string
	var crowd sync.WaitGroup
	var mu sync.Mutex
	for _, p := range shoppers {
		crowd.Go(func() {
			for _, w := range p.shop(open, resolve) {
				mu.Lock()
				undecided = append(undecided, fmt.Sprintf("user %s, key %q", p.user, w.key))
				mu.Unlock()
			}
		})
	}
	var injections errGroup
	for _, f := range faults {
		injections.do(func() error {
			if !pause(ctx, f.at) {
				return ctx.Err()
			}
			if err := s.inject(ctx, r, f); err != nil {
				return fmt.Errorf("%s: %w", f, err)
			}
			return nil
		})
	}
	failed := injections.wait()
	<-open.Done()
	result.Load = h.now()
	breach := func(invariant, format string, args ...any) {
		result.Breaches = append(result.Breaches, breach{invariant, fmt.Sprintf(format, args...)}.String())
	}

	// Everything is back; every shopper gets an answer; all comes to rest.
	if failed != nil {
		return s.finish(result, r, h), fmt.Errorf("inject: %w", failed)
	}
	if err := s.healed(ctx); err != nil {
		breach("7", "not everything is ready again: %v", err)
	}
	result.Heal = h.now() - result.Load
	r.note("everything is ready again")
	late := time.AfterFunc(resolveSeconds*time.Second, cancelResolve)
	crowd.Wait()
	late.Stop()
	for _, who := range undecided {
		breach("9", "no definite answer within %d s after all was healed: %s", resolveSeconds, who)
	}
	poisoned := func() (least, most int64) {
		return dead + r.poisoned.Load(), dead + r.poisoned.Load() + r.maybePoisoned.Load()
	}
	if err := s.atRest(ctx, r, poisoned); err != nil {
		breach("7", "not at rest: %v", err)
	} else if err := s.sellsAgain(ctx, r, c); err != nil {
		breach("7", "%v", err)
	}
	result.Rest = h.now() - result.Load - result.Heal
	r.note("at rest")
	s.lookAtAll(ctx, shoppers, r, h)

	for _, o := range r.offers {
		v, orders, err := s.judge(ctx, r, o, shoppers, h)
		if err != nil {
			return s.finish(result, r, h), err
		}
		for _, b := range v.breaches {
			result.Breaches = append(result.Breaches, "sale "+o.id+": "+b.String())
		}
		result.Orders += orders
		if err := s.mended(ctx, o.id, result.Mended); err != nil {
			return s.finish(result, r, h), err
		}
		result.Cancelled += v.cancelled
		result.Broken += len(v.broken)
		out, err := s.run(ctx, "audit", "--sale", o.id, "--json")
		var report struct{ OK bool }
		if parsed := json.Unmarshal([]byte(out), &report); parsed != nil || err != nil || !report.OK {
			breach("?", "audit: %v\n%s", errors.Join(err, parsed), out)
		}
	}
	alarms, err := s.alarms()
	for _, line := range alarms {
		breach("?", "%s", line)
	}
	return s.finish(result, r, h), err
}

// finish counts what the shoppers did.
func (s *Site) finish(result Result, r *round, h *history) Result {
	promised := make(map[string]bool)
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := range h.answers {
		a := &h.answers[i]
		if a.deed != buy {
			continue
		}
		result.Purchases++
		switch a.outcome() {
		case accepted:
			promised[a.order] = true
		case unknown:
			result.Unknown++
		case refused:
		}
	}
	result.Accepted = len(promised)
	result.Passed = int(r.passed.Load())
	r.mu.Lock()
	result.Timeline = r.timeline
	r.mu.Unlock()
	if len(result.Breaches) > 0 {
		if err := s.keep(&result, h); err != nil {
			result.Breaches = append(result.Breaches, "the evidence could not be kept: "+err.Error())
		}
	}
	return result
}

// keep writes a broken round's evidence beside the daemons' logs.
func (s *Site) keep(result *Result, h *history) error {
	var text strings.Builder
	fmt.Fprintf(&text, "seed %d\n\nbreaches\n", result.Seed)
	for _, b := range result.Breaches {
		fmt.Fprintf(&text, "  %s\n", b)
	}
	fmt.Fprintf(&text, "\nfaults, from %s\n", h.began.Format(time.RFC3339Nano))
	for _, line := range result.Timeline {
		fmt.Fprintf(&text, "  %s\n", line)
	}
	text.WriteString("\nanswers\n")
	for i := range h.answers {
		fmt.Fprintf(&text, "  %s\n", one(&h.answers[i]))
	}
	path := filepath.Join(s.dir, fmt.Sprintf("breach-%d.txt", result.Seed))
	result.Timeline = append(result.Timeline, "all answers are in "+path+", the daemons' logs beside it")
	return os.WriteFile(path, []byte(text.String()), 0o644)
}

// closeOffers makes the sales of earlier rounds long past, so that nobody tends them any
// more: a rebuild of Redis would have to load them all.
func (s *Site) closeOffers(ctx context.Context) error {
	_, err := s.db.ExecContext(ctx, `UPDATE sales SET starts_at = '2001-01-01', ends_at = '2001-01-02'`)
	return err
}

// openOffers makes and opens the sales of a round: one scarce, the rest ample.
func (s *Site) openOffers(ctx context.Context, r *round) error {
	random := rand.New(rand.NewPCG(r.seed, 2))
	ends := time.Now().Add(24 * time.Hour).UTC().Format(time.RFC3339)
	for i := range offersOfARound {
		units := ampleUnits
		if i == 0 {
			units = scarceUnits
		}
		o := &offer{
			id:    fmt.Sprintf("f%d-%d-%d", r.seed, i, r.began.UnixMilli()),
			total: int64(units + random.IntN(units)), limit: 1 + random.IntN(maxUserLimit), priceCents: int64(1 + random.IntN(10_000)),
		}
		_, err := s.run(ctx, "sale", "create", "--id", o.id, "--title", "T", "--currency", "CNY",
			"--total", fmt.Sprint(o.total), "--per-user-limit", fmt.Sprint(o.limit),
			"--price-cents", fmt.Sprint(o.priceCents), "--starts-at", "now", "--ends-at", ends)
		if err != nil {
			return err
		}
		if _, err := s.run(ctx, "sale", "open", o.id); err != nil {
			return err
		}
		r.offers = append(r.offers, o)
	}
	c := newCrowd(s.gatewayURLs(), new(history))
	defer c.client.CloseIdleConnections()
	return await(ctx, openSeconds*time.Second, func(ctx context.Context) error {
		for _, o := range r.offers {
			for g := range c.gateways {
				status, err := c.status(ctx, g, o.id)
				if err != nil || status != "OPEN" {
					return fmt.Errorf("sale %s is %q at gateway %d: %w", o.id, status, g, err)
				}
			}
		}
		return nil
	})
}

// healed waits until all engines and daemons are ready.
func (s *Site) healed(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, healSeconds*time.Second)
	defer cancel()
	if err := s.rig.Ready(ctx); err != nil {
		return err
	}
	return s.daemonsReady(ctx)
}

// atRest waits until nothing is under way any more: no open batch, nothing owed, no
// task, nothing on the bus.
func (s *Site) atRest(ctx context.Context, r *round, poisoned func() (least, most int64)) error {
	return await(ctx, restSeconds*time.Second, func(ctx context.Context) error {
		b, err := s.rig.Backlog(ctx, topic, consumerGroup, topicQueues)
		if err != nil {
			return err
		}
		if b.Halves > 0 || b.Messages > 0 {
			return fmt.Errorf("the broker holds %d half messages and %d messages", b.Halves, b.Messages)
		}
		for _, o := range r.offers {
			if _, _, err := s.settled(ctx, o); err != nil {
				return err
			}
		}
		dead, err := s.deadBatches(ctx)
		if least, most := poisoned(); err == nil && (dead < least || dead > most) {
			err = fmt.Errorf("%d dead batches, not %d to %d", dead, least, most)
		}
		return err
	})
}

// sellsAgain buys one unit of every sale, as a user who comes late: there is one, or it
// is sold out. A machine that is slow may say 503 first.
func (s *Site) sellsAgain(ctx context.Context, r *round, c *crowd) error {
	for i, o := range r.offers {
		_, v, err := s.view(ctx, o.id)
		if err != nil {
			return err
		}
		p := &shopper{user: fmt.Sprintf("late-%d-%d", r.seed, i), crowd: c}
		if p.token, err = s.token(p.user); err != nil {
			return err
		}
		w := want{offer: o, key: "late", quantity: 1}
		var a answer
		err = await(ctx, restSeconds*time.Second, func(ctx context.Context) error {
			a = p.post(ctx, w, buy, 1, i%len(c.gateways), requestTimeoutMillis*time.Millisecond)
			if a.status != 202 && a.status != 409 {
				return fmt.Errorf("at rest: %s", one(&a))
			}
			return nil
		})
		if err != nil {
			return err
		}
		if v.stock > 0 && a.status != 202 || v.stock <= 0 && a.code != "SOLD_OUT" {
			return fmt.Errorf("at rest with %d units free: %s", v.stock, one(&a))
		}
		if a.status != 202 {
			continue
		}
		err = await(ctx, restSeconds*time.Second, func(ctx context.Context) error {
			l, _, err := s.settled(ctx, o)
			if err == nil && !slices.ContainsFunc(l.orders, func(b order) bool { return b.id == a.order }) {
				err = fmt.Errorf("order %s is not in the ledger", a.order)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// lookAtAll polls every promised order once more, from both gateways by turns.
func (s *Site) lookAtAll(ctx context.Context, shoppers []*shopper, r *round, h *history) {
	byUser := make(map[string]*shopper)
	for _, p := range shoppers {
		byUser[p.user] = p
	}
	offers := make(map[string]*offer)
	for _, o := range r.offers {
		offers[o.id] = o
	}
	h.mu.Lock()
	answers := slices.Clone(h.answers)
	h.mu.Unlock()
	seen := make(map[string]bool)
	slots := make(chan struct{}, lookersAtOnce)
	var wg sync.WaitGroup
	for i := range answers {
		a := &answers[i]
		p := byUser[a.user]
		if a.status != 202 || seen[a.order] || p == nil {
			continue
		}
		seen[a.order] = true
		slots <- struct{}{}
		wg.Go(func() {
			p.poll(ctx, want{offer: offers[a.sale], key: a.key, quantity: a.quantity}, a.order, i%len(p.crowd.gateways))
			<-slots
		})
	}
	wg.Wait()
}

// judge checks one sale.
func (s *Site) judge(ctx context.Context, r *round, o *offer, shoppers []*shopper, h *history) (verdict, int, error) {
	e := &evidence{offer: o, wanted: make(map[string]map[string]int), weak: s.o.WaitReplicas == 0}
	r.mu.Lock()
	e.lossy = r.lossy[o]
	r.mu.Unlock()
	var err error
	if e.ledger, e.redis, err = s.view(ctx, o.id); err != nil {
		return verdict{}, 0, err
	}
	for _, p := range shoppers {
		for _, w := range p.wants {
			if w.offer == o {
				e.want(p.user, w.key, w.quantity)
			}
		}
	}
	for i := range r.offers {
		e.want(fmt.Sprintf("late-%d-%d", r.seed, i), "late", 1)
	}
	h.mu.Lock()
	for i := range h.answers {
		if h.answers[i].sale == o.id {
			e.answers = append(e.answers, h.answers[i])
		}
	}
	h.mu.Unlock()
	active := 0
	for i := range e.ledger.orders {
		if e.ledger.orders[i].active() {
			active++
		}
	}
	return check(e), active, nil
}

func (e *evidence) want(user, key string, quantity int) {
	if e.wanted[user] == nil {
		e.wanted[user] = make(map[string]int)
	}
	e.wanted[user][key] = quantity
}
