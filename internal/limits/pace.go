package limits

import (
	"sync/atomic"
	"time"
)

// farBelow is the part of a threshold up to which a rule of Sentinel is not asked. That
// it is no more than half makes up for what is counted at the turn of a second.
const farBelow = 0.5

// pace counts requests by whole seconds: this one and the one before together are
// never fewer than those of any one second that ends now; one that read the clock before
// the turn of a second, and comes after it, counts as of this one. A clock that is set back begins anew. It tells cheaply when a rule
// of Sentinel, which reads its window with several allocations, cannot refuse yet.
type pace struct {
	second, current, before atomic.Int64
	untold                  atomic.Int64 // of this second, let in without asking
}

// calm counts one request and reports whether there are so few that a rule of this
// threshold need not be asked.
func (p *pace) calm(now time.Time, threshold float64) bool {
	second := now.Unix()
	if was := p.second.Load(); (second > was || second < was-1) && p.second.CompareAndSwap(was, second) {
		n := p.current.Swap(0)
		if second != was+1 {
			n = 0
		}
		p.before.Store(n)
		p.untold.Store(0)
	}
	if float64(p.current.Add(1)+p.before.Load()) >= threshold*farBelow {
		return false
	}
	p.untold.Add(1)
	return true
}

// tell returns how many requests of this second calm let in, each of them once: what a
// rule that is asked now should have seen.
func (p *pace) tell() int64 {
	if p.untold.Load() == 0 {
		return 0
	}
	return p.untold.Swap(0)
}
