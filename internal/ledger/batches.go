package ledger

import (
	"context"
	"slices"
	"time"

	"gorm.io/gorm"

	"flashgate/internal/sale"
)

// Owed is a consumed batch whose settling Redis has not answered for.
type Owed struct {
	SaleID     string
	BatchID    sale.ID
	ConsumedAt time.Time
}

// MarkSettled notes that Redis has settled the batches. Ids that are not consumed,
// or settled before, are left as they are.
func (l *Ledger) MarkSettled(ctx context.Context, ids []sale.ID) error {
	ids = slices.Clone(ids)
	slices.Sort(ids) // one order for everybody, against deadlocks
	return eachSlice(ids, func(args []any) error {
		return l.change(ctx, func(tx *gorm.DB) error {
			return tx.Exec("UPDATE consumed_batches SET settled_at = ? WHERE settled_at IS NULL AND batch_id IN "+in(len(args)),
				append([]any{now()}, args...)...).Error
		})
	})
}

// Owing is a sale that has consumed batches which are not settled.
type Owing struct {
	SaleID string
	Oldest time.Time // when the oldest of them was consumed
}

// Owing lists the sales with batches that were consumed before the given time and are
// not settled.
func (l *Ledger) Owing(ctx context.Context, before time.Time) ([]Owing, error) {
	var rows []struct {
		SaleID string
		Oldest moment
	}
	err := l.read(ctx, func(db *gorm.DB) error {
		return db.Raw("SELECT sale_id, MIN(consumed_at) AS oldest FROM consumed_batches WHERE settled_at IS NULL GROUP BY sale_id").
			Find(&rows).Error
	})
	var owing []Owing
	for _, r := range rows {
		if r.Oldest.Before(before) {
			owing = append(owing, Owing{r.SaleID, r.Oldest.Time})
		}
	}
	return owing, err
}

// Owed lists up to limit batches of a sale, longest consumed first, that were consumed
// before the given time and are not settled.
func (l *Ledger) Owed(ctx context.Context, saleID string, before time.Time, limit int) ([]Owed, error) {
	var rows []struct {
		BatchID    sale.ID
		ConsumedAt moment
	}
	err := l.read(ctx, func(db *gorm.DB) error {
		return db.Raw("SELECT batch_id, consumed_at FROM consumed_batches"+l.engine.useIndex("consumed_batches_owed")+
			" WHERE settled_at IS NULL AND sale_id = ? AND consumed_at < ? ORDER BY consumed_at LIMIT ?",
			l.engine.bytes(saleID), moment{before}.text(), limit).Find(&rows).Error
	})
	owed := make([]Owed, len(rows))
	for i, r := range rows {
		owed[i] = Owed{saleID, r.BatchID, r.ConsumedAt.Time}
	}
	return owed, err
}

// Consumed reports which of the batches are in the ledger; the others are absent
// from the map.
func (l *Ledger) Consumed(ctx context.Context, ids []sale.ID) (consumed map[sale.ID]bool, err error) {
	err = l.read(ctx, func(db *gorm.DB) error {
		consumed, err = l.consumed(db, ids)
		return err
	})
	return consumed, err
}

func (l *Ledger) consumed(db *gorm.DB, ids []sale.ID) (map[sale.ID]bool, error) {
	consumed := make(map[sale.ID]bool, len(ids))
	err := eachSlice(ids, func(args []any) error {
		var found []sale.ID
		err := db.Raw("SELECT batch_id FROM consumed_batches WHERE batch_id IN "+in(len(args)), args...).Find(&found).Error
		for _, id := range found {
			consumed[id] = true
		}
		return err
	})
	return consumed, err
}

// ActiveOrders reads the active orders of the batches, by batch and within it by id.
// A batch without any is absent from the map.
func (l *Ledger) ActiveOrders(ctx context.Context, ids []sale.ID) (map[sale.ID][]sale.Order, error) {
	active := make(map[sale.ID][]sale.Order, len(ids))
	err := eachSlice(ids, func(args []any) error {
		orders, err := l.orders(ctx, " WHERE batch_id IN "+in(len(args))+
			" AND status NOT IN ('CANCELLED', 'REFUNDED') ORDER BY id", args...)
		for i := range orders {
			active[orders[i].BatchID] = append(active[orders[i].BatchID], orders[i].Order)
		}
		return err
	})
	return active, err
}

// DeadBatch is a message that failed by its own fault.
type DeadBatch struct {
	ID        int64
	MessageID string
	BatchID   sale.ID // 0 when the body could not be read
	SaleID    string
	Body      []byte
	Error     string // at most 1,000 bytes are kept
	CreatedAt time.Time
	State     string // DEAD, REPLAYED, VOIDED
	// Closed is who replayed it and why it is what it is now; nil while it is DEAD.
	Closed *Decision
}

// The states of a dead batch.
const (
	StateDead     = "DEAD"
	StateReplayed = "REPLAYED" // an operator had it applied: it is in the ledger
	StateVoided   = "VOIDED"   // an operator tried, and it had never been promised: Redis has it VOID
)

// maxDeadIDBytes bounds what is kept of a message's id and of a sale id that came
// with a message that could not be trusted.
const (
	maxMessageIDBytes  = 128
	maxDeadSaleIDBytes = 64
)

// AddDeadBatch stores a message as DEAD; ID, CreatedAt and State are ignored. A message
// id that is there already is the same row, dead again with the new error.
func (l *Ledger) AddDeadBatch(ctx context.Context, d *DeadBatch) error {
	var messageID any // NULL is no duplicate of NULL
	if d.MessageID != "" {
		messageID = l.engine.bytes(clip(d.MessageID, maxMessageIDBytes))
	}
	body := d.Body
	if body == nil {
		body = []byte{}
	}
	saleID, cause := l.engine.bytes(clip(d.SaleID, maxDeadSaleIDBytes)), clip(d.Error, maxTextBytes)
	return l.change(ctx, func(tx *gorm.DB) error {
		if messageID != nil {
			again := tx.Exec("UPDATE dead_batches SET state = ?, error = ? WHERE message_id = ?", StateDead, cause, messageID)
			if again.Error != nil || again.RowsAffected == 1 {
				return again.Error
			}
		}
		return tx.Exec(l.engine.insertIgnore+" INTO dead_batches (message_id, batch_id, sale_id, body, error, state, created_at)"+
			" VALUES (?, ?, ?, ?, ?, ?, ?)", messageID, int64(d.BatchID), saleID, body, cause, StateDead, now()).Error
	})
}

// DeadBatches lists up to limit dead batches: the DEAD ones first, newest first.
func (l *Ledger) DeadBatches(ctx context.Context, limit int) ([]DeadBatch, error) {
	return l.deadBatches(ctx, " ORDER BY state, id DESC LIMIT ?", limit)
}

// DeadBatch reads one dead batch. Error: NOT_FOUND.
func (l *Ledger) DeadBatch(ctx context.Context, id int64) (DeadBatch, error) {
	dead, err := l.deadBatches(ctx, " WHERE id = ?", id)
	switch {
	case err != nil:
		return DeadBatch{}, err
	case len(dead) == 0:
		return DeadBatch{}, notFound(sale.CodeNotFound, "dead batch %d", id)
	}
	return dead[0], nil
}

func (l *Ledger) deadBatches(ctx context.Context, where string, args ...any) ([]DeadBatch, error) {
	var rows []struct {
		ID        int64
		MessageID string
		BatchID   sale.ID
		SaleID    string
		Body      []byte
		Error     string
		CreatedAt moment
		State     string
	}
	err := l.read(ctx, func(db *gorm.DB) error {
		return db.Raw("SELECT id, COALESCE(message_id, '') AS message_id, batch_id, sale_id, body, error, created_at, state"+
			" FROM dead_batches"+where, args...).Find(&rows).Error
	})
	dead := make([]DeadBatch, len(rows))
	var closed []sale.ID
	for i, r := range rows {
		dead[i] = DeadBatch{
			ID: r.ID, MessageID: r.MessageID, BatchID: r.BatchID, SaleID: r.SaleID, Body: r.Body,
			Error: r.Error, CreatedAt: r.CreatedAt.Time, State: r.State,
		}
		if r.State != StateDead {
			closed = append(closed, sale.ID(r.ID))
		}
	}
	if err != nil || len(closed) == 0 {
		return dead, err
	}
	decisions, err := l.decisions(ctx, subjectDead, actionReplay, closed)
	for i := range dead {
		if d, ok := decisions[dead[i].ID]; ok && dead[i].State != StateDead {
			dead[i].Closed = &d
		}
	}
	return dead, err
}

// CloseDeadBatch notes what became of a dead batch (REPLAYED or VOIDED), who had it done,
// and the mended body if it was not the stored one that was replayed. false: it was
// closed before. Error: NOT_FOUND.
func (l *Ledger) CloseDeadBatch(ctx context.Context, id int64, state string, d Decision, mended []byte) (changed bool, err error) {
	err = l.change(ctx, func(tx *gorm.DB) error {
		var have []string
		err := tx.Raw("SELECT state FROM dead_batches WHERE id = ?"+l.engine.forUpdate, id).Find(&have).Error
		switch {
		case err != nil:
			return err
		case len(have) == 0:
			return notFound(sale.CodeNotFound, "dead batch %d", id)
		}
		if changed = have[0] == StateDead; !changed {
			return nil
		}
		if err := tx.Exec("UPDATE dead_batches SET state = ?, replayed_at = ? WHERE id = ?", state, now(), id).Error; err != nil {
			return err
		}
		return l.decided(tx, subjectDead, id, actionReplay, d, mended)
	})
	return changed && err == nil, err
}

// DeadBatchesLeft counts those that wait for an operator.
func (l *Ledger) DeadBatchesLeft(ctx context.Context) (n int64, err error) {
	err = l.read(ctx, func(db *gorm.DB) error {
		return db.Raw("SELECT COUNT(*) FROM dead_batches WHERE state = ?", StateDead).Find(&n).Error
	})
	return n, err
}
