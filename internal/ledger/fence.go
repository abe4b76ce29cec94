package ledger

import (
	"context"
	"errors"
	"fmt"
	"time"

	"gorm.io/gorm"
)

// Fence is a lease as its holder knows it. A repair carries it into its transaction,
// so that a holder who stood still, and whose lease went to another meanwhile,
// changes nothing when it wakes up.
type Fence struct {
	Lease  string
	Holder string
	Token  int64
}

// ErrFenced says that the lease has gone to another: nothing was changed.
var ErrFenced = errors.New("ledger: the lease has gone to another")

// LeaseHolder reads who has a lease and until when by the clock of the database; ""
// when nobody has.
func (l *Ledger) LeaseHolder(ctx context.Context, name string) (holder string, until time.Time, err error) {
	var rows []struct {
		Holder    string
		ExpiresAt moment
	}
	err = l.read(ctx, func(db *gorm.DB) error {
		return db.Raw("SELECT holder, expires_at FROM leases WHERE name = ? AND expires_at > "+l.engine.now, l.engine.bytes(name)).
			Find(&rows).Error
	})
	if err != nil || len(rows) == 0 {
		return "", time.Time{}, err
	}
	return rows[0].Holder, rows[0].ExpiresAt.Time, nil
}

// hold looks whether the fence has its lease still, and with lock = forUpdate keeps it
// there until the transaction ends.
func (l *Ledger) hold(tx *gorm.DB, f Fence, lock string) error {
	var token []int64
	err := tx.Raw("SELECT token FROM leases WHERE name = ? AND holder = ? AND token = ?"+lock,
		l.engine.bytes(f.Lease), l.engine.bytes(f.Holder), f.Token).Find(&token).Error
	if err == nil && len(token) == 0 {
		err = fmt.Errorf("%w: %s", ErrFenced, f.Lease)
	}
	return err
}

// repair runs f in a transaction under the fence. Its time-out is Apply's: it may have
// to wait for workers, or to add up a sale. The lease is locked last, so that nobody takes
// it before what f did is committed; locked first, it could not be renewed meanwhile.
func (l *Ledger) repair(ctx context.Context, fence Fence, f func(tx *gorm.DB) error) error {
	again := func(err error) bool { return retryable(err) || duplicateKey(err) }
	return l.changeWithin(ctx, l.options.ApplyTimeout, again, func(tx *gorm.DB) error {
		if err := l.hold(tx, fence, ""); err != nil {
			return err
		}
		if err := f(tx); err != nil {
			return err
		}
		return l.hold(tx, fence, l.engine.forUpdate)
	})
}
