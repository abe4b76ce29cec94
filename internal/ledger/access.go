package ledger

import (
	"context"
	"time"

	"gorm.io/gorm"

	"flashgate/internal/sale"
)

// accessLease is the row that whoever makes an access rule locks: rules are committed
// in the order of their ids, so a reader that goes on from the last id misses none.
const accessLease = "access"

// AddAccess stores an access rule, whose ID and CreatedAt are ignored. It returns false
// when the last rule about the same user or address says the same. Error:
// INVALID_REQUEST.
func (l *Ledger) AddAccess(ctx context.Context, rule sale.AccessRule) (changed bool, err error) {
	if err := rule.Canonical(); err != nil {
		return false, err
	}
	err = l.change(ctx, func(tx *gorm.DB) error {
		changed = false
		if err := l.ensureLease(tx, accessLease); err != nil {
			return err
		}
		// The lock, which SQLite has by being in a transaction.
		locked := tx.Exec("UPDATE leases SET holder = holder WHERE name = ?", l.engine.bytes(accessLease))
		if locked.Error != nil {
			return locked.Error
		}
		kind, value := l.engine.bytes(string(rule.Kind)), l.engine.bytes(rule.Value)
		var last []accessRow
		err := tx.Raw(selectAccess+" WHERE kind = ? AND value = ? ORDER BY id DESC LIMIT 1", kind, value).Find(&last).Error
		if err != nil {
			return err
		}
		was := sale.AccessRule{Access: sale.AccessLift}
		if len(last) == 1 {
			was = last[0].rule()
		}
		over := !was.Until.IsZero() && !time.Now().Before(was.Until)
		if over {
			was = sale.AccessRule{Access: sale.AccessLift}
		}
		sameEnd := moment{was.Until}.text() == moment{rule.Until}.text()
		if was.Access == rule.Access && (rule.Access == sale.AccessLift || sameEnd) {
			return nil
		}
		changed = true
		return tx.Exec("INSERT INTO access_rules (kind, value, access, who, why, until_at, created_at) VALUES (?, ?, ?, ?, ?, ?, ?)",
			kind, value, l.engine.bytes(string(rule.Access)), clip(rule.By, maxWhoBytes), clip(rule.Reason, sale.MaxReasonBytes), moment{rule.Until}, now()).Error
	})
	return changed && err == nil, err
}

// accessRow is a rule as it is stored.
type accessRow struct {
	ID        int64
	Kind      string
	Value     string
	Access    string
	Who, Why  string
	UntilAt   moment
	CreatedAt moment
}

const selectAccess = "SELECT id, kind, value, access, who, why, until_at, created_at FROM access_rules"

func (r *accessRow) rule() sale.AccessRule {
	return sale.AccessRule{
		ID: r.ID, Kind: sale.AccessKind(r.Kind), Value: r.Value, Access: sale.Access(r.Access), By: r.Who, Reason: r.Why,
		Until: r.UntilAt.Time, CreatedAt: r.CreatedAt.Time,
	}
}

// AccessSince reads up to limit rules with ids after id, in their order, those that
// later ones replace included.
func (l *Ledger) AccessSince(ctx context.Context, id int64, limit int) ([]sale.AccessRule, error) {
	var rows []accessRow
	err := l.read(ctx, func(db *gorm.DB) error {
		return db.Raw(selectAccess+" WHERE id > ? ORDER BY id LIMIT ?", id, limit).Find(&rows).Error
	})
	rules := make([]sale.AccessRule, len(rows))
	for i := range rows {
		rules[i] = rows[i].rule()
	}
	return rules, err
}
