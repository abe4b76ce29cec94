package ledger

import (
	"context"
	"time"

	"gorm.io/gorm"

	"flashgate/internal/sale"
)

// Decision is what an operator decided about a task or a dead batch.
type Decision struct {
	Who string // at most 100 bytes are kept
	Why string // at most 500 bytes are kept
	At  time.Time
}

// The subjects and actions of operator_log.
const (
	subjectTask = "task"
	subjectDead = "dead_batch"

	actionAbandon = "ABANDON"
	actionReplay  = "REPLAY"
)

// maxWhoBytes bounds the name an operator gives; the column holds as many characters.
const maxWhoBytes = 100

// decided logs a decision. body may be nil.
func (l *Ledger) decided(tx *gorm.DB, subject string, id int64, action string, d Decision, body []byte) error {
	var mended any
	if body != nil {
		mended = body
	}
	return tx.Exec("INSERT INTO operator_log (subject, subject_id, action, who, why, body, created_at) VALUES (?, ?, ?, ?, ?, ?, ?)",
		subject, id, action, clip(d.Who, maxWhoBytes), clip(d.Why, maxReasonBytes), mended, now()).Error
}

// decisions reads the last decision about each of some subjects, by id.
func (l *Ledger) decisions(ctx context.Context, subject, action string, ids []sale.ID) (map[int64]Decision, error) {
	last := make(map[int64]Decision, len(ids))
	err := eachSlice(ids, func(args []any) error {
		var rows []struct {
			SubjectID int64
			Who, Why  string
			CreatedAt moment
		}
		err := l.read(ctx, func(db *gorm.DB) error {
			return db.Raw("SELECT subject_id, who, why, created_at FROM operator_log WHERE subject = ? AND action = ? AND subject_id IN "+
				in(len(args))+" ORDER BY id", append([]any{subject, action}, args...)...).Find(&rows).Error
		})
		for _, r := range rows {
			last[r.SubjectID] = Decision{Who: r.Who, Why: r.Why, At: r.CreatedAt.Time}
		}
		return err
	})
	return last, err
}
