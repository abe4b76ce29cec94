package ledger

import (
	"context"
	"fmt"
	"slices"
	"time"

	"gorm.io/gorm"

	"flashgate/internal/sale"
)

// Task is a row of stock_sync_tasks: an order whose units must be given back in Redis.
type Task struct {
	ID      int64
	Order   sale.Order
	BatchID sale.ID
	Tries   int
	NextTry time.Time
	LastErr string
	State   TaskState
	Created time.Time
	// Abandoned is who gave the task up and why; nil unless State is TaskAbandoned.
	Abandoned *Decision
}

// TaskState is where a task stands.
type TaskState string

// The states of a task.
const (
	TaskOpen  TaskState = "OPEN"
	TaskDone  TaskState = "DONE"
	TaskStuck TaskState = "STUCK" // out of tries: waits for an operator
	// TaskAbandoned: an operator gave it up. Redis keeps the order's units, if it has them.
	TaskAbandoned TaskState = "ABANDONED"
)

func (l *Ledger) tasks(ctx context.Context, where string, args ...any) ([]Task, error) {
	var rows []struct {
		ID                         int64
		OrderID, BatchID           sale.ID
		SaleID, UserID, RequestKey string
		Quantity                   int
		AmountCents                int64
		Tries                      int
		NextTry                    moment
		LastError                  string
		State                      TaskState
		CreatedAt                  moment
	}
	err := l.read(ctx, func(db *gorm.DB) error {
		return db.Raw("SELECT id, order_id, batch_id, sale_id, user_id, request_key, quantity, amount_cents,"+
			" tries, next_try, last_error, state, created_at FROM stock_sync_tasks"+where, args...).Find(&rows).Error
	})
	tasks := make([]Task, len(rows))
	var abandoned []sale.ID
	for i, r := range rows {
		tasks[i] = Task{
			ID: r.ID,
			Order: sale.Order{ID: r.OrderID, SaleID: r.SaleID, UserID: r.UserID, RequestKey: r.RequestKey,
				Quantity: r.Quantity, AmountCents: r.AmountCents},
			BatchID: r.BatchID, Tries: r.Tries, NextTry: r.NextTry.Time, LastErr: r.LastError, State: r.State,
			Created: r.CreatedAt.Time,
		}
		if r.State == TaskAbandoned {
			abandoned = append(abandoned, sale.ID(r.ID))
		}
	}
	if err != nil || len(abandoned) == 0 {
		return tasks, err
	}
	decisions, err := l.decisions(ctx, subjectTask, actionAbandon, abandoned)
	for i := range tasks {
		if d, ok := decisions[tasks[i].ID]; ok && tasks[i].State == TaskAbandoned {
			tasks[i].Abandoned = &d
		}
	}
	return tasks, err
}

// DueTasks lists up to limit open tasks whose next try is not after now, of one sale or
// ("") all, longest due first.
func (l *Ledger) DueTasks(ctx context.Context, saleID string, now time.Time, limit int) ([]Task, error) {
	if saleID != "" {
		return l.tasks(ctx, " WHERE state = ? AND next_try <= ? AND sale_id = ? ORDER BY next_try, id LIMIT ?",
			string(TaskOpen), moment{now}.text(), l.engine.bytes(saleID), limit)
	}
	return l.tasks(ctx, " WHERE state = ? AND next_try <= ? ORDER BY next_try, id LIMIT ?",
		string(TaskOpen), moment{now}.text(), limit)
}

// Tasks lists up to limit tasks in a state, oldest first.
func (l *Ledger) Tasks(ctx context.Context, state TaskState, limit int) ([]Task, error) {
	return l.tasks(ctx, " WHERE state = ? ORDER BY id LIMIT ?", string(state), limit)
}

// TasksDone notes that Redis has the units of the tasks' orders back. Idempotent.
func (l *Ledger) TasksDone(ctx context.Context, ids ...int64) error {
	return eachSlice(taskIDs(ids), func(args []any) error {
		return l.change(ctx, func(tx *gorm.DB) error {
			return tx.Exec("UPDATE stock_sync_tasks SET state = ? WHERE id IN "+in(len(args)), append([]any{string(TaskDone)}, args...)...).Error
		})
	})
}

// taskIDs are ids in one order for everybody, against deadlocks.
func taskIDs(ids []int64) []sale.ID {
	list := make([]sale.ID, len(ids))
	for i, id := range ids {
		list[i] = sale.ID(id)
	}
	slices.Sort(list)
	return list
}

// TaskFailed counts a try of an open task, keeps its cause (1,000 bytes of it) and
// sets the next try, or STUCK when that was the maxTries-th.
func (l *Ledger) TaskFailed(ctx context.Context, id int64, cause string, next time.Time, maxTries int) error {
	return l.change(ctx, func(tx *gorm.DB) error {
		// MySQL assigns from left to right: state goes by the tries before this one.
		return tx.Exec("UPDATE stock_sync_tasks SET state = CASE WHEN tries + 1 >= ? THEN ? ELSE state END,"+
			" tries = tries + 1, last_error = ?, next_try = ? WHERE id = ? AND state = ?",
			maxTries, string(TaskStuck), clip(cause, maxTextBytes), moment{next}, id, string(TaskOpen)).Error
	})
}

// PostponeTasks sets the next try of open tasks and keeps the cause, without counting a
// try: it was not the tasks' fault.
func (l *Ledger) PostponeTasks(ctx context.Context, ids []int64, cause string, next time.Time) error {
	return eachSlice(taskIDs(ids), func(args []any) error {
		return l.change(ctx, func(tx *gorm.DB) error {
			return tx.Exec("UPDATE stock_sync_tasks SET last_error = ?, next_try = ? WHERE state = ? AND id IN "+in(len(args)),
				append([]any{clip(cause, maxTextBytes), moment{next}, string(TaskOpen)}, args...)...).Error
		})
	})
}

// RetryTask opens a stuck or abandoned task anew, due now and with all its tries; an
// open one is due now. Errors: NOT_FOUND, and CONFLICT for one that is done.
func (l *Ledger) RetryTask(ctx context.Context, id int64) error {
	return l.change(ctx, func(tx *gorm.DB) error {
		if _, err := l.lockTask(tx, id); err != nil {
			return err
		}
		return tx.Exec("UPDATE stock_sync_tasks SET state = ?, tries = 0, next_try = ? WHERE id = ?",
			string(TaskOpen), now(), id).Error
	})
}

// AbandonTask gives a task up, and keeps who did and why; false: it was given up before.
// The order stays CANCELLED, and whatever units Redis holds for it stay held. Errors:
// NOT_FOUND, and CONFLICT for one that is done.
func (l *Ledger) AbandonTask(ctx context.Context, id int64, d Decision) (changed bool, err error) {
	err = l.change(ctx, func(tx *gorm.DB) error {
		state, err := l.lockTask(tx, id)
		if changed = err == nil && state != TaskAbandoned; !changed {
			return err
		}
		if err := tx.Exec("UPDATE stock_sync_tasks SET state = ? WHERE id = ?", string(TaskAbandoned), id).Error; err != nil {
			return err
		}
		return l.decided(tx, subjectTask, id, actionAbandon, d, nil)
	})
	return changed && err == nil, err
}

// lockTask reads the state of a task that is not done, and keeps it from changing.
func (l *Ledger) lockTask(tx *gorm.DB, id int64) (TaskState, error) {
	var have []TaskState
	err := tx.Raw("SELECT state FROM stock_sync_tasks WHERE id = ?"+l.engine.forUpdate, id).Find(&have).Error
	switch {
	case err != nil:
		return "", err
	case len(have) == 0:
		return "", notFound(sale.CodeNotFound, "task %d", id)
	case have[0] == TaskDone:
		return "", &sale.Error{Code: sale.CodeConflict, Detail: fmt.Sprintf("task %d is done", id)}
	}
	return have[0], nil
}

// Unfinished is the tasks of one state.
type Unfinished struct {
	State  TaskState
	Tasks  int64
	Oldest time.Time // when the oldest of them was made
}

// UnfinishedTasks counts the tasks that are not done, by state.
func (l *Ledger) UnfinishedTasks(ctx context.Context) ([]Unfinished, error) {
	var rows []struct {
		State  TaskState
		Tasks  int64
		Oldest moment
	}
	err := l.read(ctx, func(db *gorm.DB) error {
		return db.Raw("SELECT state, COUNT(*) AS tasks, MIN(created_at) AS oldest FROM stock_sync_tasks WHERE state IN (?, ?, ?) GROUP BY state",
			string(TaskOpen), string(TaskStuck), string(TaskAbandoned)).Find(&rows).Error
	})
	counts := make([]Unfinished, len(rows))
	for i, r := range rows {
		counts[i] = Unfinished{r.State, r.Tasks, r.Oldest.Time}
	}
	return counts, err
}

// NewestTaskBefore is the greatest id of the tasks made before the given time; 0: there
// is none.
func (l *Ledger) NewestTaskBefore(ctx context.Context, before time.Time) (id int64, err error) {
	err = l.read(ctx, func(db *gorm.DB) error {
		// By id backwards: what is looked for is near the end, whatever the table's size.
		return db.Raw("SELECT id FROM stock_sync_tasks WHERE created_at < ? ORDER BY id DESC LIMIT 1", moment{before}.text()).Find(&id).Error
	})
	return id, err
}

// NewestTasks is, by sale, the greatest id of the tasks after the given one. Of one sale
// they come to be seen in the order of their ids: they are made under the sale's lock.
func (l *Ledger) NewestTasks(ctx context.Context, after int64) (map[string]int64, error) {
	var rows []struct {
		SaleID string
		Newest int64
	}
	err := l.read(ctx, func(db *gorm.DB) error {
		return db.Raw("SELECT sale_id, MAX(id) AS newest FROM stock_sync_tasks WHERE id > ? GROUP BY sale_id", after).Find(&rows).Error
	})
	newest := make(map[string]int64, len(rows))
	for _, r := range rows {
		newest[r.SaleID] = r.Newest
	}
	return newest, err
}
