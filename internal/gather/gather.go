// Package gather makes joint calls of single ones. Whoever asks while all calls are under
// way waits, and goes along with everybody who came meanwhile: calls grow with the load,
// and who comes alone waits for nobody, or for no longer than a given time.
package gather

import (
	"context"
	"fmt"
	"runtime/debug"
	"sync"
	"time"
)

// Group answers questions Q with answers A, many in a call.
type Group[Q, A any] struct {
	calls  int
	most   int
	linger Linger
	do     func(context.Context, []Q) ([]A, error)
	under  sync.WaitGroup
	look   chan struct{} // a whole call waits, or one who waits for another time than those before

	mu      sync.Mutex
	waiting []*ask[Q, A]
	asked   int       // questions that wait
	latest  time.Time // when the last of them came
	running int
}

// Linger is how long a call that is not full yet waits for more questions. The zero value
// waits for none.
//
// Few, who are less than a 64th of a full call, wait for a Lull since the first of them: a
// trickle that never makes a crowd is not worth the wait. A crowd waits until nobody has
// come for a Lull and a Gap, but no longer than Most since the first.
type Linger struct {
	Most time.Duration
	Lull time.Duration
	Gap  time.Duration // between two bunches of a source that brings questions by the bunch
}

// crowdShare: who waits is a crowd if it is at least this part of a full call.
const crowdShare = 64

// ask is what one caller wants to know.
type ask[Q, A any] struct {
	ctx       context.Context
	at        time.Time
	questions []Q
	answers   []A
	err       error
	panicked  *Panic
	done      chan struct{}
}

// Panic is what the callers of a call that panicked panic with: its own value, and where
// that was, which their stacks do not show.
type Panic struct {
	Value any
	Stack []byte
}

func (p *Panic) Error() string { return fmt.Sprintf("%v\n%s", p.Value, p.Stack) }

// New makes a group of which do answers up to most questions at a time (more if a single
// caller has more), with an answer each, or none at all; up to calls of it run side by
// side. Its context is that of the caller who came last.
func New[Q, A any](calls, most int, linger Linger, do func(context.Context, []Q) ([]A, error)) *Group[Q, A] {
	if calls < 1 || most < 1 || linger.Most < 0 || linger.Lull < 0 || linger.Gap < 0 {
		panic("BUG: gather.New wants room for one call of one question, and no time before now")
	}
	return &Group[Q, A]{calls: calls, most: most, linger: linger, do: do, look: make(chan struct{}, 1)}
}

// Do asks, and returns what the joint call answers to these questions. An error, or a
// panic, of the call is everybody's. When ctx ends first, the call may still go on.
func (g *Group[Q, A]) Do(ctx context.Context, questions ...Q) ([]A, error) {
	a := &ask[Q, A]{ctx: ctx, at: time.Now(), questions: questions, done: make(chan struct{})}
	g.mu.Lock()
	g.waiting, g.latest = append(g.waiting, a), a.at
	g.asked += len(questions)
	if g.asked >= g.most || len(g.waiting) == 1 {
		g.signal()
	}
	if g.running < g.calls {
		g.running++
		g.under.Add(1)
		go g.run()
	}
	g.mu.Unlock()
	select {
	case <-a.done:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if a.panicked != nil {
		panic(a.panicked)
	}
	return a.answers, a.err
}

// signal has one of those who rest look again.
func (g *Group[Q, A]) signal() {
	select {
	case g.look <- struct{}{}:
	default:
	}
}

// Wait waits for the calls under way, those whose callers have gone included.
func (g *Group[Q, A]) Wait() { g.under.Wait() }

// run makes calls until nobody waits.
func (g *Group[Q, A]) run() {
	defer g.under.Done()
	for {
		g.rest()
		asks := g.take()
		if len(asks) == 0 {
			return
		}
		g.call(asks)
	}
}

// rest waits until those who wait are to be called for.
func (g *Group[Q, A]) rest() {
	for wait := g.pause(); wait > 0; wait = g.pause() {
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-g.look: // which may be of one who has been called for
			timer.Stop()
		}
	}
}

// pause is how long to wait at least before those who wait are called for.
func (g *Group[Q, A]) pause() time.Duration {
	if g.linger.Most == 0 {
		return 0
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.waiting) == 0 || g.asked >= g.most {
		return 0
	}
	first := time.Since(g.waiting[0].at)
	if g.asked*crowdShare < g.most {
		return min(g.linger.Most, g.linger.Lull) - first
	}
	return min(g.linger.Most-first, g.linger.Lull+g.linger.Gap-time.Since(g.latest))
}

// take takes those who have waited longest, without those who have gone. None: the
// caller's run has ended.
func (g *Group[Q, A]) take() (taken []*ask[Q, A]) {
	g.mu.Lock()
	defer g.mu.Unlock()
	n, questions := 0, 0
	for ; n < len(g.waiting); n++ {
		a := g.waiting[n]
		if a.ctx.Err() != nil {
			g.asked -= len(a.questions)
			continue
		}
		if questions > 0 && questions+len(a.questions) > g.most {
			break
		}
		questions += len(a.questions)
		g.asked -= len(a.questions)
		taken = append(taken, a)
	}
	rest := copy(g.waiting, g.waiting[n:])
	clear(g.waiting[rest:])
	g.waiting = g.waiting[:rest]
	if g.asked >= g.most {
		g.signal() // to another: these go on to their call
	}
	if len(taken) == 0 {
		g.running--
	}
	return taken
}

func (g *Group[Q, A]) call(asks []*ask[Q, A]) {
	var questions []Q
	for _, a := range asks {
		questions = append(questions, a.questions...)
	}
	defer func() {
		var panicked *Panic
		if v := recover(); v != nil {
			panicked = &Panic{v, debug.Stack()}
		}
		for _, a := range asks {
			a.panicked = panicked
			close(a.done)
		}
	}()
	answers, err := g.do(asks[len(asks)-1].ctx, questions)
	if err == nil && answers != nil && len(answers) != len(questions) {
		panic("BUG: gather: an answer a question is wanted")
	}
	for _, a := range asks {
		if a.err = err; err != nil || answers == nil {
			continue
		}
		a.answers, answers = answers[:len(a.questions):len(a.questions)], answers[len(a.questions):]
	}
}
