package simulation

import (
	"errors"
	"fmt"
	"iter"
	"strings"
	"time"
)

// The clock is virtual: nothing takes time but what says so, and the next thing to
// happen is the one with the earliest time. What happens at one instant happens in the
// order in which it was planned.

// began is when every history begins.
var began = time.Date(2026, 11, 11, 0, 0, 0, 0, time.UTC)

func (w *world) clock() time.Time { return began.Add(w.now) }

// event is something that happens at a time.
type event struct {
	at    time.Duration
	order int64
	run   func()
}

func (e *event) before(other *event) bool {
	return e.at < other.at || e.at == other.at && e.order < other.order
}

// after plans run for when d has passed.
func (w *world) after(d time.Duration, run func()) {
	w.planned++
	h := append(w.events, event{w.now + d, w.planned, run})
	i := len(h) - 1
	for parent := (i - 1) / 2; i > 0 && h[i].before(&h[parent]); parent = (i - 1) / 2 {
		h[i], h[parent] = h[parent], h[i]
		i = parent
	}
	w.events = h
}

// next takes the earliest event off the heap.
func (w *world) next() event {
	h := w.events
	first, last := h[0], len(h)-1
	h[0] = h[last]
	h[last] = event{}
	h = h[:last]
	for i := 0; ; {
		child := 2*i + 1
		if child >= last {
			break
		}
		if child+1 < last && h[child+1].before(&h[child]) {
			child++
		}
		if !h[child].before(&h[i]) {
			break
		}
		h[i], h[child] = h[child], h[i]
		i = child
	}
	w.events = h
	return first
}

// runUntil lets happen what is planned up to a time, or until an invariant broke.
func (w *world) runUntil(limit time.Duration) {
	for w.breach == nil && len(w.events) > 0 && w.events[0].at <= limit {
		e := w.next()
		w.now = e.at
		e.run()
	}
	w.now = max(w.now, limit)
}

// process is one that can be killed: with it end its tasks.
type process struct {
	w     *world
	name  string
	tasks []*task
	dead  bool
	// stale: this process still talks to the old master after a failover.
	stale bool
	// inHand are the messages that a worker has taken and not given back.
	inHand []*message
}

// kill ends a process in the middle of whatever it does.
func (p *process) kill() {
	p.dead = true
	for _, t := range p.tasks {
		t.end()
	}
	p.tasks = nil
	p.release(p.inHand)
}

// task is a thread of a process: straight code that is left and entered again where
// it waits, so that everything else can happen there.
type task struct {
	p     *process
	w     *world
	name  string
	next  func() (struct{}, bool)
	stop  func()
	yield func(struct{}) bool
	ended bool
	turn  int // counts its waits, so that what would end an earlier one is ignored
}

// killed unwinds a task whose process was killed.
type killed struct{}

// start begins a task of a process, now.
func (p *process) start(name string, body func(t *task)) *task {
	t := &task{p: p, w: p.w, name: name}
	t.next, t.stop = iter.Pull(func(yield func(struct{}) bool) {
		defer func() {
			t.ended = true
			thrown := recover()
			if _, dead := thrown.(killed); thrown != nil && !dead {
				panic(fmt.Sprintf("%s %s, seed %d: %v", p.name, name, p.w.seed, thrown))
			}
		}()
		t.yield = yield
		body(t)
	})
	if p.dead {
		panic("BUG: a dead process starts " + name)
	}
	p.tasks = append(p.tasks, t)
	t.wakeAfter(0)
	return t
}

func (t *task) end() {
	if !t.ended {
		t.ended = true
		t.stop()
	}
}

// wait leaves the task until something wakes it.
func (t *task) wait() {
	if !t.yield(struct{}{}) {
		panic(killed{})
	}
}

// wakeAfter ends the present or the next wait when d has passed, unless something
// else has ended it by then.
func (t *task) wakeAfter(d time.Duration) {
	turn := t.turn
	t.w.after(d, func() { t.wake(turn) })
}

// wake ends a wait, if the task is still in that one.
func (t *task) wake(turn int) {
	if t.ended || t.turn != turn {
		return
	}
	t.turn++
	if _, more := t.next(); !more {
		t.ended = true
		t.p.forget(t)
	}
}

func (p *process) forget(t *task) {
	for i := range p.tasks {
		if p.tasks[i] == t {
			p.tasks = append(p.tasks[:i], p.tasks[i+1:]...)
			return
		}
	}
}

// sleep lets d pass.
func (t *task) sleep(d time.Duration) {
	t.wakeAfter(d)
	t.wait()
}

// Errors of a call, as a client sees them.
var (
	errNotRun = errors.New("certainly not run")
	errLost   = errors.New("no reply in time: it may have run")
)

// never is a leg of a message that gets lost.
const never = time.Duration(1 << 62)

// leg is how long a message is on its way; never: it is lost.
func (w *world) leg() time.Duration {
	if w.resting {
		return time.Duration(w.rng.IntN(2_000)) * time.Microsecond
	}
	switch n := w.rng.IntN(1000); {
	case n < w.plan.lossPerMille:
		return never
	case n < 2*w.plan.lossPerMille:
		return time.Duration(w.rng.Int64N(int64(maxLateSeconds * time.Second)))
	case n < 3*w.plan.lossPerMille:
		return time.Duration(w.rng.Int64N(int64(time.Second)))
	}
	return time.Duration(w.rng.IntN(3_000)) * time.Microsecond
}

// maxLateSeconds is how late a message may arrive that its sender has long given up.
const maxLateSeconds = 30

// call sends a request to an engine and waits for its reply, up to a time-out. serve
// runs when the request arrives, however late that is, and whoever is still there; it
// calls reply once, or never.
func (t *task) call(timeout time.Duration, serve func(reply func(error))) error {
	w := t.w
	w.called()
	t.stall()
	there, back := w.leg(), w.leg()
	turn, result := t.turn, errLost
	if there < never {
		w.after(there, func() {
			serve(func(err error) {
				if back == never {
					return
				}
				w.after(back, func() {
					if t.turn == turn {
						result = err
						t.wake(turn)
					}
				})
			})
		})
	}
	t.wakeAfter(timeout)
	t.wait()
	t.stall()
	return result
}

// stall sometimes stops a task for a while: its process was not scheduled.
func (t *task) stall() {
	if w := t.w; !w.resting && strings.HasPrefix(t.name, w.plan.stallOnly) && w.rng.IntN(1000) < w.plan.stallPerMille {
		d := time.Duration(w.rng.Int64N(int64(maxStallSeconds * time.Second)))
		w.note("%s %s stands still for %v", t.p.name, t.name, d.Round(time.Millisecond))
		t.sleep(d)
	}
}

// maxStallSeconds is longer than a reservation lasts.
const maxStallSeconds = 30
