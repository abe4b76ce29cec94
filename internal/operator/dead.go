package operator

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"time"

	"flashgate/internal/bus"
	"flashgate/internal/ledger"
	"flashgate/internal/purchase"
	"flashgate/internal/sale"
	"flashgate/internal/stock"
)

// DeadBatchView is a row of dead_batches: a message that failed by its own fault.
type DeadBatchView struct {
	ID        int64         `json:"id"`
	MessageID string        `json:"message_id"`
	BatchID   string        `json:"batch_id,omitempty"`
	SaleID    string        `json:"sale_id,omitempty"`
	Error     string        `json:"error"`
	State     string        `json:"state"` // DEAD, REPLAYED, VOIDED
	CreatedAt time.Time     `json:"created_at"`
	Body      string        `json:"body"` // as it came
	Closed    *DecisionView `json:"closed,omitempty"`
}

// Replay says how a dead batch is replayed.
type Replay struct {
	Decision
	// Body takes the place of the stored one, which cannot be applied as it is; the stored
	// one is kept. null = the stored one.
	Body json.RawMessage `json:"body,omitempty"`
}

// DeadBatches lists the messages that failed by their own fault, those that wait for an
// operator first.
func (a *Admin) DeadBatches(ctx context.Context) ([]DeadBatchView, error) {
	dead, err := a.Ledger.DeadBatches(ctx, maxRows)
	if err != nil {
		return nil, err
	}
	views := make([]DeadBatchView, len(dead))
	for i := range dead {
		views[i] = viewDead(&dead[i])
	}
	return views, nil
}

// DeadBatch shows one. Error: NOT_FOUND.
func (a *Admin) DeadBatch(ctx context.Context, id int64) (DeadBatchView, error) {
	d, err := a.Ledger.DeadBatch(ctx, id)
	return viewDead(&d), err
}

func viewDead(d *ledger.DeadBatch) DeadBatchView {
	v := DeadBatchView{
		ID: d.ID, MessageID: d.MessageID, SaleID: d.SaleID, Error: d.Error, State: d.State,
		CreatedAt: d.CreatedAt, Body: string(d.Body), Closed: viewOf(d.Closed),
	}
	if d.BatchID != 0 {
		v.BatchID = d.BatchID.String()
	}
	return v
}

// ReplayDeadBatch applies a dead batch, once its cause is mended, by the worker's own
// transaction, and settles it in Redis; as often as it is asked, once. One that was never
// promised is VOIDED: nothing of it is applied. Errors: NOT_FOUND, INVALID_REQUEST for a
// mended body that is no batch or not this one, and CONFLICT for one that cannot be
// applied now.
func (a *Admin) ReplayDeadBatch(ctx context.Context, id int64, r Replay) (Change, error) {
	d, err := a.Ledger.DeadBatch(ctx, id)
	if err != nil {
		return Change{}, err
	}
	if d.State != ledger.StateDead {
		return Change{Message: fmt.Sprintf("dead batch %d is %s already", id, d.State)}, nil
	}
	if string(r.Body) == "null" {
		r.Body = nil
	}
	b, err := a.replayed(ctx, &d, r.Body)
	if err != nil {
		return Change{}, err
	}
	// It may never have been promised: then Redis has voided it, or does so now.
	switch purchase.Checker(a.Stock, slog.New(slog.DiscardHandler))(ctx, b) {
	case bus.Rollback:
		if _, err := a.Ledger.CloseDeadBatch(ctx, id, ledger.StateVoided, r.stored(), r.Body); err != nil {
			return Change{}, err
		}
		return Change{Changed: true, Message: fmt.Sprintf("dead batch %d was never promised: Redis has voided it, and nothing was applied", id)}, nil
	case bus.Unknown:
		return Change{}, &sale.Error{Code: sale.CodeConflict, Detail: "Redis cannot say now whether it was promised: try again"}
	}
	applied, err := a.Ledger.Apply(ctx, []sale.Batch{*b})
	switch {
	case err != nil && ledger.Poison(err):
		return Change{}, &sale.Error{Code: sale.CodeConflict, Detail: "it fails still: " + err.Error()}
	case err != nil:
		return Change{}, err
	}
	done := Change{Changed: true, Message: fmt.Sprintf("dead batch %d is in the ledger: %d orders, %d cancelled by its guards", id, applied.Orders, applied.Cancelled)}
	if applied.Skipped > 0 {
		done.Message = fmt.Sprintf("dead batch %d is in the ledger; it was there already", id)
	}
	settled, err := a.Stock.Settle(ctx, b.SaleID, []sale.ID{b.ID}, a.Ledger.ActiveOrders)
	if err == nil {
		err = a.Ledger.MarkSettled(ctx, settled)
	}
	if err != nil {
		done.Warnings = append(done.Warnings, "Redis has not settled it yet ("+err.Error()+"); the reconciler will")
	}
	_, err = a.Ledger.CloseDeadBatch(ctx, id, ledger.StateReplayed, r.stored(), r.Body)
	return done, err
}

// replayed is the batch that is replayed. A mended one must be the same batch, and hold
// the very orders that Redis has of it: leaving one out would break a promise, and adding
// one would sell what nobody reserved.
func (a *Admin) replayed(ctx context.Context, d *ledger.DeadBatch, mended []byte) (*sale.Batch, error) {
	if mended == nil {
		b, err := bus.Decode(d.Body)
		if err != nil {
			return nil, &sale.Error{Code: sale.CodeConflict, Detail: "its body cannot be read (" + err.Error() + "): replay it with a mended one"}
		}
		return b, nil
	}
	invalid := func(format string, args ...any) error {
		return &sale.Error{Code: sale.CodeInvalid, Detail: "the mended body: " + fmt.Sprintf(format, args...)}
	}
	b, err := bus.Decode(mended)
	if err != nil {
		return nil, invalid("%v", err)
	}
	if d.BatchID != 0 && b.ID != d.BatchID {
		return nil, invalid("it is batch %s, the dead one is %s", b.ID, d.BatchID)
	}
	if d.SaleID != "" && b.SaleID != d.SaleID {
		// A batch of a sale that there is cannot become another's.
		if _, err := a.Ledger.Sale(ctx, d.SaleID); sale.CodeOf(err) != sale.CodeSaleNotFound {
			if err == nil {
				err = invalid("it is of sale %q, the dead one of %q", b.SaleID, d.SaleID)
			}
			return nil, err
		}
	}
	if _, err := a.Ledger.Sale(ctx, b.SaleID); err != nil {
		return nil, err
	}
	promised, err := a.promised(ctx, b)
	if err != nil || promised == nil {
		return b, err // settled, voided or lost: the check says which
	}
	for i := range b.Orders {
		o := &b.Orders[i]
		have, there := promised[o.ID]
		switch {
		case !there:
			return nil, invalid("order %s is not of this batch in Redis: it was never reserved", o.ID)
		case have.UserID != o.UserID || have.RequestKey != o.RequestKey || have.Quantity != o.Quantity:
			return nil, invalid("order %s is %d units for user %q under key %q in Redis", o.ID, have.Quantity, have.UserID, have.RequestKey)
		}
		delete(promised, o.ID)
	}
	for id := range promised {
		return nil, invalid("order %s was reserved with this batch, and is not in it", id)
	}
	return b, nil
}

// promised are the orders that Redis has of an open batch, by id; nil: it is not open.
func (a *Admin) promised(ctx context.Context, b *sale.Batch) (map[sale.ID]sale.Order, error) {
	found, err := a.Stock.BatchesByID(ctx, b.SaleID, []sale.ID{b.ID})
	record, there := found[b.ID]
	if err != nil || !there || record.State == stock.StateVoid {
		return nil, err
	}
	orders := make(map[sale.ID]sale.Order, len(record.Orders))
	for _, o := range record.Orders {
		orders[o.ID] = o
	}
	return orders, nil
}
