package ledger

import (
	"context"
	"fmt"
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
}

// TaskState is where a task stands.
type TaskState string

// The states of a task.
const (
	TaskOpen  TaskState = "OPEN"
	TaskDone  TaskState = "DONE"
	TaskStuck TaskState = "STUCK" // out of tries: waits for an operator
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
	}
	err := l.read(ctx, func(db *gorm.DB) error {
		return db.Raw("SELECT id, order_id, batch_id, sale_id, user_id, request_key, quantity, amount_cents,"+
			" tries, next_try, last_error, state FROM stock_sync_tasks"+where, args...).Find(&rows).Error
	})
	tasks := make([]Task, len(rows))
	for i, r := range rows {
		tasks[i] = Task{
			ID: r.ID,
			Order: sale.Order{ID: r.OrderID, SaleID: r.SaleID, UserID: r.UserID, RequestKey: r.RequestKey,
				Quantity: r.Quantity, AmountCents: r.AmountCents},
			BatchID: r.BatchID, Tries: r.Tries, NextTry: r.NextTry.Time, LastErr: r.LastError, State: r.State,
		}
	}
	return tasks, err
}

// DueTasks lists up to limit open tasks whose next try is not after now, longest due first.
func (l *Ledger) DueTasks(ctx context.Context, now time.Time, limit int) ([]Task, error) {
	return l.tasks(ctx, " WHERE state = ? AND next_try <= ? ORDER BY next_try, id LIMIT ?",
		string(TaskOpen), moment{now}.text(), limit)
}

// Tasks lists up to limit tasks in a state, oldest first.
func (l *Ledger) Tasks(ctx context.Context, state TaskState, limit int) ([]Task, error) {
	return l.tasks(ctx, " WHERE state = ? ORDER BY id LIMIT ?", string(state), limit)
}

// TaskDone notes that Redis has the units back. Idempotent.
func (l *Ledger) TaskDone(ctx context.Context, id int64) error {
	return l.change(ctx, func(tx *gorm.DB) error {
		return tx.Exec("UPDATE stock_sync_tasks SET state = ? WHERE id = ?", string(TaskDone), id).Error
	})
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

// RetryTask opens a stuck task anew, due now and with all its tries; an open one is
// due now. Errors: NOT_FOUND, and CONFLICT for one that is done.
func (l *Ledger) RetryTask(ctx context.Context, id int64) error {
	return l.change(ctx, func(tx *gorm.DB) error {
		var have []TaskState
		err := tx.Raw("SELECT state FROM stock_sync_tasks WHERE id = ?"+l.engine.forUpdate, id).Find(&have).Error
		switch {
		case err != nil:
			return err
		case len(have) == 0:
			return notFound(sale.CodeNotFound, "task %d", id)
		case have[0] == TaskDone:
			return &sale.Error{Code: sale.CodeConflict, Detail: fmt.Sprintf("task %d is done", id)}
		}
		return tx.Exec("UPDATE stock_sync_tasks SET state = ?, tries = 0, next_try = ? WHERE id = ?",
			string(TaskOpen), now(), id).Error
	})
}
