package ledger

import (
	"context"
	"time"

	"gorm.io/gorm"

	"flashgate/internal/sale"
)

// What a rebuild of Redis reads of a sale, beside its orders.

// OwedOf lists up to limit batches of a sale that were consumed and are not settled, or
// were settled only since, by id from above after.
func (l *Ledger) OwedOf(ctx context.Context, saleID string, since time.Time, after sale.ID, limit int) (ids []sale.ID, err error) {
	err = l.read(ctx, func(db *gorm.DB) error {
		return db.Raw("SELECT batch_id FROM consumed_batches"+l.engine.useIndex("consumed_batches_owed")+
			" WHERE (settled_at IS NULL OR settled_at >= ?) AND sale_id = ? AND batch_id > ? ORDER BY batch_id LIMIT ?",
			moment{since}.text(), l.engine.bytes(saleID), int64(after), limit).Find(&ids).Error
	})
	return ids, err
}

// DeadBatchesOf lists up to limit batches of a sale that are DEAD, by id from above after.
func (l *Ledger) DeadBatchesOf(ctx context.Context, saleID string, after int64, limit int) ([]DeadBatch, error) {
	return l.deadBatches(ctx, " WHERE state = ? AND sale_id = ? AND id > ? ORDER BY id LIMIT ?",
		StateDead, l.engine.bytes(saleID), after, limit)
}
