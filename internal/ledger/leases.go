package ledger

import (
	"context"
	"fmt"
	"time"

	"gorm.io/gorm"

	"flashgate/internal/sale"
)

// Acquire takes a free or expired lease for ttl from now, or renews the holder's own,
// by the clock of the database; ok is false while another has it. token grows with
// every change of holder: whoever acts on the lease sends it along, and a receiver
// that has seen a greater one refuses. holder must name one process, once.
func (l *Ledger) Acquire(ctx context.Context, name, holder string, ttl time.Duration) (token int64, ok bool, err error) {
	if holder == "" {
		panic("BUG: a lease without a holder")
	}
	err = l.change(ctx, func(tx *gorm.DB) error {
		n, h := l.engine.bytes(name), l.engine.bytes(holder)
		if err := l.ensureLease(tx, name); err != nil {
			return err
		}
		// MySQL assigns from left to right: token goes by the holder before this one.
		update := tx.Exec("UPDATE leases SET token = CASE WHEN holder = ? THEN token ELSE token + 1 END, holder = ?, expires_at = "+
			l.engine.after(ttl)+" WHERE name = ? AND (holder = ? OR expires_at <= "+l.engine.now+")", h, h, n, h)
		if ok = update.RowsAffected == 1; update.Error != nil || !ok {
			return update.Error
		}
		return tx.Raw("SELECT token FROM leases WHERE name = ?", n).Find(&token).Error
	})
	return token, ok && err == nil, err
}

// ensureLease inserts a lease that nobody has yet.
func (l *Ledger) ensureLease(tx *gorm.DB, name string) error {
	var have []int
	n := l.engine.bytes(name)
	if err := tx.Raw("SELECT 1 FROM leases WHERE name = ?", n).Find(&have).Error; err != nil || len(have) == 1 {
		return err
	}
	return tx.Exec(l.engine.insertIgnore+" INTO leases (name, holder, token, expires_at) VALUES (?, ?, 0, "+l.engine.now+")",
		n, l.engine.bytes("")).Error
}

// Release gives a lease back at once; nothing happens when holder does not have it.
// The row stays, so that the token keeps growing.
func (l *Ledger) Release(ctx context.Context, name, holder string) error {
	return l.change(ctx, func(tx *gorm.DB) error {
		return tx.Exec("UPDATE leases SET holder = ?, expires_at = "+l.engine.now+" WHERE name = ? AND holder = ?",
			l.engine.bytes(""), l.engine.bytes(name), l.engine.bytes(holder)).Error
	})
}

// When a node number is free again. An id is made of a gateway's clock and its node
// number, so no two gateways may have one number in the same millisecond of any of
// their clocks, or an id would be made twice.
const (
	// NodeQuarantine follows the end of a lease that was not given back. Its holder may
	// be frozen, or cut off from the ledger while it goes on selling, as it should; it
	// may go on with its number for half of this after its last renewal.
	NodeQuarantine = 24 * time.Hour
	// nodeReleaseQuarantine follows a release: clocks of two machines differ, and ids
	// run ahead of a clock under a burst.
	nodeReleaseQuarantine = 10 * time.Minute
)

// nodesLease is the row that whoever looks for a number locks.
const nodesLease = "nodes"

// AcquireNode leases a node number below sale.Nodes for ttl, by the clock of the
// database: one that was never used, or else, of those that are free, the one longest
// unused. Free is a number that was released 10 minutes ago, or whose lease ended
// NodeQuarantine ago. holder must name one process, once. Error: UNAVAILABLE, when no
// number is free.
func (l *Ledger) AcquireNode(ctx context.Context, holder string, ttl time.Duration) (node int, err error) {
	if holder == "" {
		panic("BUG: a node number without a holder")
	}
	err = l.change(ctx, func(tx *gorm.DB) error {
		if err := l.ensureLease(tx, nodesLease); err != nil {
			return err
		}
		// The lock, which SQLite has by being in a transaction.
		locked := tx.Exec("UPDATE leases SET holder = holder WHERE name = ?", l.engine.bytes(nodesLease))
		if locked.Error != nil {
			return locked.Error
		}
		h := l.engine.bytes(holder)
		var used int // numbers are given out in order and their rows stay
		if err := tx.Raw("SELECT COUNT(*) FROM nodes").Find(&used).Error; err != nil {
			return err
		}
		if used < sale.Nodes {
			node = used
			return tx.Exec("INSERT INTO nodes (node, holder, expires_at, renewed_at) VALUES (?, ?, "+
				l.engine.after(ttl)+", "+l.engine.now+")", node, h).Error
		}
		var free []int
		err := tx.Raw("SELECT node FROM nodes WHERE (holder = ? AND expires_at <= "+l.engine.after(-nodeReleaseQuarantine)+
			") OR expires_at <= "+l.engine.after(-NodeQuarantine)+" ORDER BY expires_at, node LIMIT 1", l.engine.bytes("")).
			Find(&free).Error
		if err != nil {
			return err
		}
		if len(free) == 0 {
			return &sale.Error{Code: sale.CodeUnavailable, Detail: fmt.Sprintf(
				"all %d node numbers are leased, or were within the last %s: see table nodes", sale.Nodes, NodeQuarantine)}
		}
		node = free[0]
		return tx.Exec("UPDATE nodes SET holder = ?, expires_at = "+l.engine.after(ttl)+", renewed_at = "+l.engine.now+
			" WHERE node = ?", h, node).Error
	})
	return node, err
}

// RenewNode extends the lease to now + ttl. An expired one is renewed too, as long as
// the number has not gone to another; false: it has, and no more ids may be made.
func (l *Ledger) RenewNode(ctx context.Context, node int, holder string, ttl time.Duration) (ok bool, err error) {
	err = l.change(ctx, func(tx *gorm.DB) error {
		update := tx.Exec("UPDATE nodes SET expires_at = "+l.engine.after(ttl)+", renewed_at = "+l.engine.now+
			" WHERE node = ? AND holder = ?", node, l.engine.bytes(holder))
		ok = update.RowsAffected == 1
		return update.Error
	})
	return ok && err == nil, err
}

// ReleaseNode gives the number back: the holder makes no more ids. Nothing happens
// when holder does not have it.
func (l *Ledger) ReleaseNode(ctx context.Context, node int, holder string) error {
	return l.change(ctx, func(tx *gorm.DB) error {
		return tx.Exec("UPDATE nodes SET holder = ?, expires_at = "+l.engine.now+" WHERE node = ? AND holder = ?",
			l.engine.bytes(""), node, l.engine.bytes(holder)).Error
	})
}
