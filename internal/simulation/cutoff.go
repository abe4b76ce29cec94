package simulation

import (
	"slices"
	"time"

	"flashgate/internal/stock"
)

// cutoff is how a gateway refuses shoppers of a sale that is sold out without asking
// Redis: that of package gateway, one call at a time.
type cutoff struct {
	view    *soldOut
	keeping bool
	asked   time.Duration // when a shopper came last
}

type soldOut struct {
	until  time.Duration
	mark   stock.BuyersMark
	buyers []string
}

// idle is for how long a sale is kept that nobody asks for.
const idle = 3 * time.Second

// refuses reports whether a user can have no order, and get none.
func (g *gateway) refuses(user string) bool {
	v := g.cutoff.view
	if v == nil || g.w.now >= v.until || slices.Contains(v.buyers, user) {
		return false
	}
	if now := g.w.clock(); g.w.terms.EndsAt.Sub(now) < 2*time.Second {
		return false
	}
	g.cutoff.asked = g.w.now
	return true
}

// soldOut hears that a shopper was answered SOLD_OUT.
func (g *gateway) soldOut() {
	c := &g.cutoff
	c.asked = g.w.now
	if c.keeping || g.p.dead || g.w.plan.lease == 0 || g.w.resting {
		return
	}
	c.keeping = true
	g.p.start("keeper", func(t *task) {
		g.keep(t)
		c.view, c.keeping = nil, false
	})
}

// keep renews the lease as long as it is given and shoppers come.
func (g *gateway) keep(t *task) {
	w, s, c := t.w, simStock{t}, &g.cutoff
	var known *soldOut
	for w.now-c.asked < idle && !w.resting {
		began, before := w.now, w.now
		var first []string
		var err error
		if w.faulty.buyersFirst {
			if first, err = s.buyers(); err != nil {
				return
			}
			before = w.now
		}
		l, err := s.soldOut(w.plan.lease)
		if err != nil || l.left == 0 {
			return
		}
		if w.faulty.buyersFirst {
			known = &soldOut{mark: l.mark, buyers: first}
		}
		if known == nil || known.mark != l.mark && !w.faulty.buyersOnce {
			users, err := s.buyers()
			if err != nil {
				return
			}
			mark := l.mark
			before = w.now
			if l, err = s.soldOut(w.plan.lease); err != nil || l.left == 0 {
				return
			}
			known = nil
			if l.mark == mark {
				known = &soldOut{mark: mark, buyers: users}
			}
		}
		if known != nil {
			if w.faulty.leaseFromReply {
				before = w.now
			}
			c.view = &soldOut{before + l.left, known.mark, known.buyers}
		}
		t.sleep(max(began+w.plan.lease*2/5-w.now, time.Millisecond))
	}
}
