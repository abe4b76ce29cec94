package bus

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"strings"
	"sync"

	_ "github.com/glebarez/go-sqlite" // the driver named sqlite

	"flashgate/internal/tracing"
)

// A message is a row from its half message on, until it is rolled back or
// acknowledged. AUTOINCREMENT: the id of a deleted row is never used again, so an
// end that comes late meets no other message.
const storeSchema = `
CREATE TABLE IF NOT EXISTS messages (
	id         INTEGER PRIMARY KEY AUTOINCREMENT,
	committed  INTEGER NOT NULL,  -- 0: half, 1: to be delivered
	created_ms INTEGER NOT NULL,  -- Unix milliseconds
	sale_id    TEXT NOT NULL,
	body       BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS messages_half ON messages(id) WHERE committed = 0;
CREATE INDEX IF NOT EXISTS messages_committed ON messages(id) WHERE committed = 1;`

// traceColumn came later: files of earlier versions have rows without.
const traceColumn = `ALTER TABLE messages ADD COLUMN trace TEXT NOT NULL DEFAULT ''`

const (
	// Writes that wait for the disk at one time. A gateway has fewer flushers than
	// this; past it, a writer waits for its turn.
	writeQueueWrites = 1_024
	// Writes in one transaction: enough to hide the disk, few enough to answer soon.
	writeGroupWrites = 256
	// Readers beside the one writer: the consumer, the check-backs, a listing.
	readConnections = 3
	// Only another process on the same file makes a writer wait; give it this long.
	busyTimeoutMillis = 5_000
)

var (
	errClosed       = errors.New("bus: closed")
	errSendsNothing = errors.New("bus: opened without a check, so it sends nothing")
)

// write is one change, and what to do once it is on the disk, or failed. Both run on
// the writer's goroutine: then must not block.
type write struct {
	apply func(*writer) error
	then  func(error)
}

// writer holds the prepared statements of the transaction under way.
type writer struct {
	insert, commit, rollback, remove *sql.Stmt
}

// store is the SQLite file. One goroutine writes: what is asked at one time shares a
// transaction, and so one wait for the disk.
type store struct {
	db      *sql.DB // for writing, one connection
	readers *sql.DB
	queue   chan write
	failed  func(error) // told of a failed transaction

	mu      sync.RWMutex // held for reading by whoever puts into queue
	closed  bool
	stopped chan struct{}
}

func openStore(file string, failed func(error)) (*store, error) {
	path, err := filepath.Abs(file)
	if err != nil {
		return nil, fmt.Errorf("bus file %s: %w", file, err)
	}
	dsn := func(pragmas string) string {
		u := url.URL{Scheme: "file", Path: path, RawQuery: fmt.Sprintf("_pragma=busy_timeout(%d)%s", busyTimeoutMillis, pragmas)}
		return u.String()
	}
	db, err := sql.Open("sqlite", dsn("&_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)"))
	if err != nil {
		return nil, fmt.Errorf("bus file %s: %w", file, err)
	}
	db.SetMaxOpenConns(1)
	s := &store{db: db, queue: make(chan write, writeQueueWrites), failed: failed, stopped: make(chan struct{})}
	w, err := s.prepare()
	if err != nil {
		_ = db.Close()
		return nil, fmt.Errorf("bus file %s: %w", file, err)
	}
	if s.readers, err = sql.Open("sqlite", dsn("&_pragma=query_only(1)")); err != nil {
		_ = db.Close()
		return nil, fmt.Errorf("bus file %s: %w", file, err)
	}
	s.readers.SetMaxOpenConns(readConnections)
	go s.run(w)
	return s, nil
}

func (s *store) prepare() (w *writer, err error) {
	if _, err := s.db.Exec(storeSchema); err != nil {
		return nil, err
	}
	var traced bool
	if err := s.db.QueryRow(`SELECT COUNT(*) > 0 FROM pragma_table_info('messages') WHERE name = 'trace'`).Scan(&traced); err != nil {
		return nil, err
	}
	if !traced {
		if _, err := s.db.Exec(traceColumn); err != nil {
			return nil, err
		}
	}
	w = new(writer)
	for _, p := range []struct {
		statement **sql.Stmt
		text      string
	}{
		{&w.insert, `INSERT INTO messages (committed, created_ms, sale_id, body, trace) VALUES (0, ?, ?, ?, ?)`},
		{&w.commit, `UPDATE messages SET committed = 1 WHERE id = ? AND committed = 0`},
		{&w.rollback, `DELETE FROM messages WHERE id = ? AND committed = 0`},
		{&w.remove, `DELETE FROM messages WHERE id = ?`},
	} {
		if *p.statement, err = s.db.Prepare(p.text); err != nil { //nolint:sqlclosecheck // they live as long as the database
			return nil, err
		}
	}
	return w, nil
}

// do queues a write. An error means that it will not happen, and then is not called.
func (s *store) do(ctx context.Context, apply func(*writer) error, then func(error)) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return errClosed
	}
	select {
	case s.queue <- write{apply: apply, then: then}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// doWait has apply written and waits for the disk.
func (s *store) doWait(ctx context.Context, apply func(*writer) error) error {
	done := make(chan error, 1)
	if err := s.do(ctx, apply, func(err error) { done <- err }); err != nil {
		return err
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// run writes until the queue is closed and empty.
func (s *store) run(w *writer) {
	defer close(s.stopped)
	group := make([]write, 0, writeGroupWrites)
	for first := range s.queue {
		group = append(group[:0], first)
		for more := true; more && len(group) < writeGroupWrites; {
			select {
			case next, open := <-s.queue:
				if more = open; open {
					group = append(group, next)
				}
			default:
				more = false
			}
		}
		err := s.transact(w, group)
		if err != nil {
			s.failed(err)
		}
		for i := range group {
			group[i].then(err)
		}
		clear(group) // let go of the bodies
	}
}

func (s *store) transact(w *writer, group []write) error {
	// The pool has one connection and only this goroutine uses it, so plain BEGIN and
	// COMMIT meet on it, and statements stay prepared.
	if _, err := s.db.Exec("BEGIN IMMEDIATE"); err != nil {
		return fmt.Errorf("bus file: begin: %w", err)
	}
	for i := range group {
		if err := group[i].apply(w); err != nil {
			return s.undo(fmt.Errorf("bus file: write: %w", err))
		}
	}
	if _, err := s.db.Exec("COMMIT"); err != nil {
		return s.undo(fmt.Errorf("bus file: commit: %w", err))
	}
	return nil
}

func (s *store) undo(cause error) error {
	// A full disk makes SQLite itself roll back; then there is nothing to undo.
	if _, err := s.db.Exec("ROLLBACK"); err != nil && !strings.Contains(err.Error(), "no transaction is active") {
		return errors.Join(cause, fmt.Errorf("bus file: roll back: %w", err))
	}
	return cause
}

// close writes what is queued and closes the file. Idempotent.
func (s *store) close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	close(s.queue)
	s.mu.Unlock()
	<-s.stopped
	return errors.Join(s.readers.Close(), s.db.Close())
}

// insert stores a half message and returns its id once the disk has it.
func (s *store) insert(ctx context.Context, createdMillis int64, saleID string, body []byte) (int64, error) {
	parent := tracing.Parent(ctx)
	ids := make(chan int64, 1) // not a variable: the writer may still fill it after ctx ended
	err := s.doWait(ctx, func(w *writer) error {
		result, err := w.insert.Exec(createdMillis, saleID, body, parent)
		if err != nil {
			return err
		}
		id, err := result.LastInsertId()
		ids <- id
		return err
	})
	if err != nil {
		return 0, err
	}
	return <-ids, nil
}

// end writes a decision; Unknown writes nothing. An end for a row that is gone, or is
// committed already, changes nothing.
func end(id int64, d Decision) func(*writer) error {
	return func(w *writer) error {
		statement := w.commit
		switch d {
		case Unknown:
			return nil
		case Rollback:
			statement = w.rollback
		case Commit:
		}
		_, err := statement.Exec(id)
		return err
	}
}

// remove deletes acknowledged messages.
func (s *store) remove(ctx context.Context, messages []stored) error {
	return s.doWait(ctx, func(w *writer) error {
		for i := range messages {
			if _, err := w.remove.Exec(messages[i].id); err != nil {
				return err
			}
		}
		return nil
	})
}

// stored is a row as it is read.
type stored struct {
	id    int64
	body  []byte
	trace string
}

// committed reads up to limit messages to deliver, oldest first, without those in hand.
func (s *store) committed(ctx context.Context, inHand map[int64]struct{}, limit int) ([]stored, error) {
	var query strings.Builder
	query.WriteString("SELECT id, body, trace FROM messages WHERE committed = 1 AND id NOT IN (")
	separator := ""
	for id := range inHand {
		fmt.Fprintf(&query, "%s%d", separator, id)
		separator = ","
	}
	query.WriteString(") ORDER BY id LIMIT ?")
	return s.query(ctx, query.String(), limit)
}

// undecided reads a page of half messages after id: those made at or before
// oldMillis or after futureMillis (the clock went back), and all up to id firstID.
func (s *store) undecided(ctx context.Context, after, firstID, oldMillis, futureMillis int64, limit int) ([]stored, error) {
	return s.query(ctx, `SELECT id, body, trace FROM messages WHERE committed = 0 AND id > ?
		AND (id <= ? OR created_ms <= ? OR created_ms > ?) ORDER BY id LIMIT ?`, after, firstID, oldMillis, futureMillis, limit)
}

// ofSale reads a page of a sale's messages after id, half and committed.
func (s *store) ofSale(ctx context.Context, after int64, saleID string, limit int) ([]stored, error) {
	return s.query(ctx, `SELECT id, body, trace FROM messages WHERE id > ? AND sale_id = ? ORDER BY id LIMIT ?`, after, saleID, limit)
}

// lastID is the greatest id in the file, 0 when it is empty.
func (s *store) lastID(ctx context.Context) (id int64, err error) {
	err = s.readers.QueryRowContext(ctx, "SELECT COALESCE(MAX(id), 0) FROM messages").Scan(&id)
	return id, err
}

func (s *store) query(ctx context.Context, query string, args ...any) (rows []stored, err error) {
	result, err := s.readers.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, fmt.Errorf("bus file: read: %w", err)
	}
	defer func() { err = errors.Join(err, result.Close()) }()
	for result.Next() {
		var m stored
		if err := result.Scan(&m.id, &m.body, &m.trace); err != nil {
			return nil, fmt.Errorf("bus file: read: %w", err)
		}
		rows = append(rows, m)
	}
	return rows, result.Err()
}
