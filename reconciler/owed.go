package reconciler

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"golang.org/x/sync/errgroup"

	"flashgate/internal/ledger"
	"flashgate/internal/sale"
	"flashgate/internal/stock"
)

// settleOwed settles batches that a worker persisted and did not settle, of one sale
// or ("") all: each sale by itself, so that one which cannot be settled now, with
// whatever it owes, keeps no other waiting.
func (r *Reconciler) settleOwed(ctx context.Context, only string) error {
	before := time.Now().Add(-r.o.SettleAge)
	if only != "" {
		_, err := r.settleSale(ctx, only, before)
		return err
	}
	owing, err := r.o.Ledger.Owing(ctx, before)
	if err != nil {
		return err
	}
	left := make([]int, len(owing))
	var settling errgroup.Group
	settling.SetLimit(besides)
	for i := range owing {
		settling.Go(func() error {
			// Logged and counted by the step; what is left is for the next round.
			_ = r.step(ctx, "settle", func(ctx context.Context) (err error) {
				left[i], err = r.settleSale(ctx, owing[i].SaleID, before)
				return err
			})
			return nil
		})
	}
	_ = settling.Wait() // returns nothing: see above
	total, oldest := 0, time.Duration(0)
	for i := range owing {
		total += left[i]
		oldest = max(oldest, time.Since(owing[i].Oldest))
	}
	r.metrics.owed.Set(float64(total))
	r.metrics.owedOldest.Set(oldest.Seconds())
	return nil
}

// settleSale settles what one sale owes, up to a bound, and says how many of these are left.
// A sale that Redis has not loaded owes on: its load takes the batches' orders in.
func (r *Reconciler) settleSale(ctx context.Context, saleID string, before time.Time) (left int, err error) {
	snap, err := r.o.Stock.Snapshot(ctx, saleID)
	if err != nil {
		return 0, err
	}
	over := !snap.Loaded && r.isOver(saleID)
	owed, err := r.o.Ledger.Owed(ctx, saleID, before, maxSettleBatches)
	if err != nil || len(owed) == 0 || !snap.Loaded && !over {
		return len(owed), err
	}
	ids := make([]sale.ID, len(owed))
	for i := range owed {
		ids[i] = owed[i].BatchID
	}
	settled := ids // of a sale that is over nothing is left in Redis to be settled
	if !over {
		settled, err = r.o.Stock.Settle(ctx, saleID, ids, r.o.Ledger.ActiveOrders)
	}
	if len(settled) > 0 {
		if failed := r.o.Ledger.MarkSettled(ctx, settled); failed != nil {
			return len(owed), errors.Join(err, failed)
		}
		r.metrics.settled.Add(float64(len(settled)))
	}
	return len(owed) - len(settled), err
}

// isOver reports whether Redis need not know a sale any more.
func (r *Reconciler) isOver(saleID string) bool {
	for _, s := range r.known() {
		if s.ID == saleID {
			return time.Now().After(s.EndsAt.Add(sale.Retention))
		}
	}
	return false
}

// Bounds of a task's tries.
const (
	// A task's pause doubles up to this, or a give-back would wait hours for a fault that
	// was over in minutes.
	maxTaskPauseSeconds = 300
	// Tasks of a sale that Redis cannot serve now wait this long: as long as an operator
	// may have to look at it, and far less than anybody waits for a unit.
	awayPauseSeconds = 5
)

// runTasksOfSale runs all tasks of a sale that are due by now. What fails is due later,
// so each slice of them is another.
func (r *Reconciler) runTasksOfSale(ctx context.Context, saleID string) error {
	var all tasksLeft
	for now := time.Now(); ; {
		tasks, err := r.o.Ledger.DueTasks(ctx, saleID, now, maxTasks)
		if err == nil {
			err = r.runTasks(ctx, tasks)
		}
		var left *tasksLeft
		switch {
		case errors.As(err, &left):
			all.n, all.last = all.n+left.n, left.last
		case err != nil:
			return err
		}
		if len(tasks) < maxTasks {
			break
		}
	}
	if all.n > 0 {
		return &all
	}
	return nil
}

// tasksLeft says how many tasks wait for their next try, and why the last of them does.
type tasksLeft struct {
	n    int
	last error
}

func (t *tasksLeft) Error() string {
	return fmt.Sprintf("%d tasks are left for their next try: %v", t.n, t.last)
}

func (t *tasksLeft) Unwrap() error { return t.last }

// runDueTasks runs tasks of all sales that are due, up to a bound.
func (r *Reconciler) runDueTasks(ctx context.Context) error {
	tasks, err := r.o.Ledger.DueTasks(ctx, "", time.Now(), maxTasks)
	if err != nil {
		return err
	}
	return r.runTasks(ctx, tasks)
}

// runTasks gives back to Redis the units of orders that the ledger cancelled. Those that
// are left are a *tasksLeft.
func (r *Reconciler) runTasks(ctx context.Context, tasks []ledger.Task) error {
	bySale := make(map[string][]*ledger.Task)
	for i := range tasks {
		id := tasks[i].Order.SaleID
		bySale[id] = append(bySale[id], &tasks[i])
	}
	var running errgroup.Group
	running.SetLimit(besides)
	left := make(chan error, len(tasks))
	for saleID, of := range bySale {
		running.Go(func() error { return r.runTasksOf(ctx, saleID, of, left) })
	}
	err := running.Wait()
	close(left)
	var waiting tasksLeft
	for waiting.last = range left {
		waiting.n++
	}
	if err == nil && waiting.n > 0 {
		err = &waiting
	}
	return err
}

// runTasksOf runs the tasks of one sale, and sends the cause of each that is left.
func (r *Reconciler) runTasksOf(ctx context.Context, saleID string, tasks []*ledger.Task, left chan<- error) (err error) {
	done := make([]int64, 0, len(tasks))
	defer func() {
		if len(done) == 0 {
			return
		}
		// Noted even when time is up, or a slow Redis would have the same ones done for ever.
		noting, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.o.StepTimeout)
		defer cancel()
		if failed := r.o.Ledger.TasksDone(noting, done...); failed != nil {
			err = errors.Join(err, failed) // they are done again, which changes nothing
			return
		}
		r.metrics.tasks.Add(float64(len(done)))
	}()
	for i, t := range tasks {
		_, err := r.o.Stock.Restore(ctx, &t.Order, t.BatchID)
		switch {
		case err == nil, errors.Is(err, stock.ErrNotReady) && r.isOver(saleID):
			done = append(done, t.ID)
		case ctx.Err() != nil:
			return err // told to stop, or out of time: no fault of the task
		case errors.Is(err, stock.ErrNotReady), errors.Is(err, stock.ErrNotRun) && !errors.Is(err, stock.ErrUnfit):
			// Redis is away for this sale: no try of theirs, and no reason to ask for the rest.
			ids := make([]int64, 0, len(tasks)-i)
			for _, waits := range tasks[i:] {
				ids = append(ids, waits.ID)
				left <- err
			}
			return r.o.Ledger.PostponeTasks(ctx, ids, err.Error(), time.Now().Add(jittered(awayPauseSeconds*time.Second)))
		default:
			left <- err
			next := time.Now().Add(r.taskPause(t.Tries))
			if failed := r.o.Ledger.TaskFailed(ctx, t.ID, err.Error(), next, r.o.TaskTries); failed != nil {
				return failed
			}
			if t.Tries+1 >= r.o.TaskTries {
				r.o.Log.Error("a task is out of tries and waits for an operator: `flashgate task list --state STUCK`",
					"task", t.ID, "sale", saleID, "order", t.Order.ID, "tries", t.Tries+1, "err", err)
			}
		}
	}
	return nil
}

// taskPause is how long a task waits that has failed so many times before.
func (r *Reconciler) taskPause(tries int) time.Duration {
	// The exponent is bounded so that the shift cannot overflow.
	return jittered(min(r.o.TaskBackoff<<min(tries, 10), maxTaskPauseSeconds*time.Second))
}

// jittered is d, up to a quarter more or less: what failed together is not tried together.
func jittered(d time.Duration) time.Duration {
	return d - d/4 + rand.N(d/2+1)
}

// countTasks shows what waits for its next try, and for an operator.
func (r *Reconciler) countTasks(ctx context.Context) error {
	counts, err := r.o.Ledger.UnfinishedTasks(ctx)
	if err != nil {
		return err
	}
	dead, err := r.o.Ledger.DeadBatchesLeft(ctx)
	if err != nil {
		return err
	}
	r.metrics.unfinished(counts, dead, time.Now())
	return nil
}
