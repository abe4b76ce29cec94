package operator

import (
	"context"
	"fmt"
	"strings"
	"time"

	"flashgate/internal/ledger"
	"flashgate/internal/sale"
)

// TaskView is a row of stock_sync_tasks: units of a cancelled order on their way back to
// Redis.
type TaskView struct {
	ID        int64            `json:"id"`
	OrderID   sale.ID          `json:"order_id"`
	BatchID   sale.ID          `json:"batch_id"`
	SaleID    string           `json:"sale_id"`
	UserID    string           `json:"user_id"`
	Quantity  int              `json:"quantity"` // units
	State     ledger.TaskState `json:"state"`
	Tries     int              `json:"tries"`
	NextTry   time.Time        `json:"next_try"`
	CreatedAt time.Time        `json:"created_at"`
	LastError string           `json:"last_error,omitempty"`
	Abandoned *DecisionView    `json:"abandoned,omitempty"`
}

// Decision is what an operator says of a change that waits for a person.
type Decision struct {
	By     string `json:"by,omitempty"` // who; "" = the operators' port
	Reason string `json:"reason,omitempty"`
}

// DecisionView is a Decision as it was stored.
type DecisionView struct {
	Decision
	At time.Time `json:"at"`
}

func viewOf(d *ledger.Decision) *DecisionView {
	if d == nil {
		return nil
	}
	return &DecisionView{Decision{d.Who, d.Why}, d.At}
}

// nobody is who decides when nobody says who.
const nobody = "operators' port"

func (d Decision) stored() ledger.Decision {
	if strings.TrimSpace(d.By) == "" {
		d.By = nobody
	}
	return ledger.Decision{Who: d.By, Why: d.Reason}
}

// Tasks lists the tasks in a state, oldest first; "" are those that are STUCK, and then
// the OPEN ones.
func (a *Admin) Tasks(ctx context.Context, state ledger.TaskState) ([]TaskView, error) {
	states := []ledger.TaskState{state}
	if state == "" {
		states = []ledger.TaskState{ledger.TaskStuck, ledger.TaskOpen}
	}
	views := []TaskView{}
	for _, state := range states {
		tasks, err := a.Ledger.Tasks(ctx, state, maxRows-len(views))
		if err != nil {
			return nil, err
		}
		for i := range tasks {
			t := &tasks[i]
			views = append(views, TaskView{
				ID: t.ID, OrderID: t.Order.ID, BatchID: t.BatchID, SaleID: t.Order.SaleID, UserID: t.Order.UserID,
				Quantity: t.Order.Quantity, State: t.State, Tries: t.Tries, NextTry: t.NextTry, CreatedAt: t.Created,
				LastError: t.LastErr, Abandoned: viewOf(t.Abandoned),
			})
		}
	}
	return views, nil
}

// RetryTask makes a task due now, with its tries counted afresh; one that was abandoned
// too. Errors: NOT_FOUND, and CONFLICT for one that is done.
func (a *Admin) RetryTask(ctx context.Context, id int64) (Change, error) {
	if err := a.Ledger.RetryTask(ctx, id); err != nil {
		return Change{}, err
	}
	return Change{Changed: true, Message: fmt.Sprintf("task %d is due now", id)}, nil
}

// AbandonTask gives a task up for good, with a reason. The order stays cancelled, and what
// Redis holds for it stays held: those units are not sold again. Errors: INVALID_REQUEST
// without a reason, NOT_FOUND, and CONFLICT for a task that is done.
func (a *Admin) AbandonTask(ctx context.Context, id int64, d Decision) (Change, error) {
	if d.Reason = strings.TrimSpace(d.Reason); d.Reason == "" {
		return Change{}, &sale.Error{Code: sale.CodeInvalid, Detail: "reason: say why the units are not given back; whoever reads the audit will ask"}
	}
	changed, err := a.Ledger.AbandonTask(ctx, id, d.stored())
	if err != nil {
		return Change{}, err
	}
	if !changed {
		return Change{Message: fmt.Sprintf("task %d was abandoned already", id)}, nil
	}
	return Change{Changed: true, Message: fmt.Sprintf("task %d is abandoned: its order stays cancelled, and the units that Redis holds for it stay held", id)}, nil
}
