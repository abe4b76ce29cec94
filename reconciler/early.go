package reconciler

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"
)

// Reason is why a sale is reconciled before its hour.
type Reason string

// The reasons.
const (
	AfterRefusal  Reason = "refusal"      // the ledger's guards refused an order
	AfterFailover Reason = "failover"     // another Redis process has the sale
	AfterLoad     Reason = "load"         // Redis was filled with the sale, or rebuilt
	AfterBreach   Reason = "conservation" // units are not conserved in one of the stores
)

// Bounds of early runs.
const (
	// earlyGap lies between two early runs of a sale, so that a storm of refusals makes a
	// few runs and not one a second.
	earlyGapSeconds = 30
	// earlyShare is how many times as long as its last run took a sale is then left alone.
	earlyShare = 4
	// earlySlackSeconds is added to the watermark, for clocks that differ.
	earlySlackSeconds = 5
)

// request asks for runs of one sale: at once, and again when what was in flight at the
// time is older than the watermark.
type request struct {
	saleID  string
	why     []Reason // each once
	process string   // "" or the Redis process that the last run vouches for
	asked   time.Time
	due     time.Time
	again   time.Time
}

// early holds the requests, at most one a sale.
type early struct {
	mu       sync.Mutex
	requests map[string]*request
	idle     map[string]time.Time // by sale: no early run before
}

// ask asks for early runs of a sale. Asked again before they are done, it is one request.
func (e *early) ask(saleID string, why Reason, process string, now time.Time, watermark time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	q := e.requests[saleID]
	switch {
	case q == nil:
		if e.requests == nil {
			e.requests = make(map[string]*request)
		}
		q = &request{saleID: saleID}
		e.requests[saleID] = q
	case process != "" && q.process == process:
		return // asked for already: it stays so until the runs are done
	}
	if !slices.Contains(q.why, why) {
		q.why = append(q.why, why)
	}
	if process != "" {
		q.process = process
	}
	q.asked, q.again = now, now.Add(watermark+earlySlackSeconds*time.Second)
	q.due = now
	if idle := e.idle[saleID]; idle.After(now) {
		q.due = idle
	}
}

// next is the request that is longest due.
func (e *early) next(now time.Time) (request, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	var first *request
	for _, q := range e.requests {
		if !q.due.After(now) && (first == nil || q.due.Before(first.due)) {
			first = q
		}
	}
	if first == nil {
		return request{}, false
	}
	return *first, true
}

// ran notes a run that began and ended at these times. done: it was the last that the
// request asks for.
func (e *early) ran(saleID string, began, ended time.Time, err error) (q request, done bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for id, until := range e.idle {
		if !until.After(ended) {
			delete(e.idle, id)
		}
	}
	if e.idle == nil {
		e.idle = make(map[string]time.Time)
	}
	idle := ended.Add(max(earlyGapSeconds*time.Second, earlyShare*ended.Sub(began)))
	e.idle[saleID] = idle
	asked := e.requests[saleID]
	switch {
	case asked == nil: // leadership ended meanwhile
		return request{}, false
	case err != nil || asked.asked.After(began):
		asked.due = idle
	case began.Before(asked.again):
		asked.due = asked.again
		if idle.After(asked.due) {
			asked.due = idle
		}
	default:
		delete(e.requests, saleID)
		return *asked, true
	}
	return *asked, false
}

// waiting is how many sales have a request.
func (e *early) waiting() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.requests)
}

// drop forgets the request of a sale.
func (e *early) drop(saleID string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.requests, saleID)
}

func (e *early) clear() {
	e.mu.Lock()
	defer e.mu.Unlock()
	clear(e.requests)
	clear(e.idle)
}

// trigger is what the reports of its runs say.
func (q *request) trigger() string {
	why := make([]string, len(q.why))
	for i, w := range q.why {
		why[i] = string(w)
	}
	return Early(strings.Join(why, ", "))
}

// askEarly asks for early runs of a sale, and says so.
func (r *Reconciler) askEarly(saleID string, why Reason, process string) {
	r.metrics.asked.WithLabelValues(string(why)).Inc()
	r.early.ask(saleID, why, process, r.o.Now(), r.watermark())
	r.metrics.waiting.Set(float64(r.early.waiting()))
}

// lookAtServer asks for runs of a sale that another Redis process has than the one it was
// last reconciled under: a failover, a restart, or, without any, a load. It goes by a mark
// beside the sale's data, so a leader that comes later finds what the one before it
// missed or did not finish.
func (r *Reconciler) lookAtServer(ctx context.Context, saleID string) error {
	process, mark, err := r.o.Stock.Server(ctx, saleID, "")
	if err != nil || process == mark {
		return err
	}
	why := AfterFailover
	if mark == "" {
		why = AfterLoad
	}
	if !r.early.has(saleID, process) {
		r.o.Log.Info("a sale is to be reconciled early", "sale", saleID, "why", why)
		r.askEarly(saleID, why, process)
	}
	return nil
}

// has reports whether runs under a Redis process are asked for already.
func (e *early) has(saleID, process string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	q := e.requests[saleID]
	return q != nil && q.process == process
}

// refusals is how far the leader has read stock_sync_tasks.
type refusals struct {
	reading bool
	after   int64            // tasks up to this id are older than any run asked for
	seen    map[string]int64 // by sale: the newest task that runs were asked for
}

// taskLagSeconds is how long a transaction may take that makes tasks: an id may come to
// be seen after a greater one of another sale.
const taskLagSeconds = 60

// lookForRefusals asks for runs of the sales whose orders the ledger's guards refused,
// which are those with new tasks. A new leader looks back as far as the runs that its
// predecessor may have left undone.
func (r *Reconciler) lookForRefusals(ctx context.Context) error {
	f := &r.refusals
	back := r.watermark() + (earlySlackSeconds+taskLagSeconds)*time.Second
	if !f.reading || r.round%slowEveryRounds == 0 {
		after, err := r.o.Ledger.NewestTaskBefore(ctx, time.Now().Add(-back))
		if err != nil {
			return err
		}
		f.after = after
		if !f.reading {
			f.reading, f.seen = true, make(map[string]int64)
		}
	}
	newest, err := r.o.Ledger.NewestTasks(ctx, f.after)
	if err != nil {
		return err
	}
	for saleID, id := range newest {
		if id > f.seen[saleID] {
			f.seen[saleID] = id
			r.askEarly(saleID, AfterRefusal, "")
		}
	}
	for saleID := range f.seen {
		if _, there := newest[saleID]; !there {
			delete(f.seen, saleID) // older than f.after: it cannot come up again
		}
	}
	return nil
}
