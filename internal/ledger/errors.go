package ledger

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	driver "github.com/go-sql-driver/mysql"

	"flashgate/internal/sale"
)

// maxAttempts bounds how often a transaction is run that loses to others. A victim of
// a deadlock lost to a transaction that got on, so few are needed; each waits longer.
const maxAttempts = 12

// poison is a fault of a batch itself: it fails the same way however often it is tried.
type poison struct {
	batch sale.ID
	err   error
}

func (p *poison) Error() string { return "batch " + p.batch.String() + ": " + p.err.Error() }
func (p *poison) Unwrap() error { return p.err }

// Poison reports whether err, from Apply, is a fault of the data: the same batches will
// never be applied, though some of them may be, one at a time. False is a fault of the
// engine (away, deadlock, time-out), and the batches must be applied later.
func Poison(err error) bool {
	var p *poison
	if errors.As(err, &p) {
		return true
	}
	switch mysqlNumber(err) {
	case 1048, // NOT NULL
		1264,       // out of range
		1292, 1366, // incorrect value
		1406,       // too long
		3819, 4025: // CHECK, in MySQL and in MariaDB
		return true
	}
	switch sqliteCode(err) & 0xff {
	case 18, 19, 20: // SQLITE_TOOBIG, SQLITE_CONSTRAINT, SQLITE_MISMATCH
		return !duplicateKey(err)
	}
	return false
}

// retryable reports whether a transaction failed because of others at its side.
func retryable(err error) bool {
	switch mysqlNumber(err) {
	case 1205, // lock wait timeout
		1213, // deadlock
		1020: // record has changed since last read: MariaDB's snapshot isolation
		return true
	}
	code := sqliteCode(err) & 0xff
	return code == 5 || code == 6 // SQLITE_BUSY, SQLITE_LOCKED
}

// duplicateKey reports whether a primary or unique key refused a row.
func duplicateKey(err error) bool {
	code := sqliteCode(err)
	return mysqlNumber(err) == 1062 || code == 1555 || code == 2067 // SQLITE_CONSTRAINT_PRIMARYKEY, _UNIQUE
}

func mysqlNumber(err error) uint16 {
	var e *driver.MySQLError
	if errors.As(err, &e) {
		return e.Number
	}
	return 0
}

func sqliteCode(err error) int {
	var e interface {
		error
		Code() int
	}
	if errors.As(err, &e) {
		return e.Code()
	}
	return 0
}

// firstPauseMillis is the mean wait before a second attempt, about the length of the
// transaction that won; it doubles with each attempt to at most 32 times that.
const firstPauseMillis = 4

func pause(ctx context.Context, attempt int) error {
	mean := firstPauseMillis * time.Millisecond << min(attempt-1, 5)
	timer := time.NewTimer(rand.N(2 * mean))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
