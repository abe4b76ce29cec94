package faults

import (
	"context"
	"database/sql"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/redis/rueidis"
)

// order is a row of the ledger.
type order struct {
	id       string
	user     string
	key      string
	quantity int
	amount   int64
	status   string
	reason   string
	batch    string
}

func (o *order) active() bool { return o.status != "CANCELLED" && o.status != "REFUNDED" }

// ledgerView is a sale as the ledger has it.
type ledgerView struct {
	total, available, locked, sold, version int64
	limit                                   int
	orders                                  []order
	lockedOf                                map[string][]int64 // batch → units of its LOCK rows
	consumed                                map[string]bool    // batch → settled
	tasks                                   int                // not done
}

// record is one of a buyer's in Redis.
type record struct {
	user     string
	held     bool
	quantity int
	order    string
	key      string
	batch    string
}

// redisView is a sale as Redis has it.
type redisView struct {
	loaded               bool
	stock                int64
	total, held, version int64
	records              []record
	open                 []string // batches RESERVED or CONFIRMED
	pending              int64
}

// view reads a sale from both, at rest.
func (s *Site) view(ctx context.Context, sale string) (l ledgerView, r redisView, err error) {
	if l, err = s.ledgerView(ctx, sale); err != nil {
		return l, r, fmt.Errorf("ledger: %w", err)
	}
	if r, err = s.redisView(ctx, sale); err != nil {
		return l, r, fmt.Errorf("redis: %w", err)
	}
	return l, r, nil
}

// settled is a sale as both stores have it, and an error while something of it is under
// way.
func (s *Site) settled(ctx context.Context, o *offer) (ledgerView, redisView, error) {
	l, v, err := s.view(ctx, o.id)
	switch {
	case err != nil:
	case !v.loaded:
		err = fmt.Errorf("sale %s is not loaded", o.id)
	case len(v.open) > 0 || v.pending > 0:
		err = fmt.Errorf("sale %s has open batches %v, %d pending", o.id, v.open, v.pending)
	case l.tasks > 0:
		err = fmt.Errorf("sale %s has %d tasks", o.id, l.tasks)
	case v.total != l.total || v.version != l.version:
		err = fmt.Errorf("sale %s has total %d in Redis, %d in the ledger", o.id, v.total, l.total)
	}
	for batch, settled := range l.consumed {
		if err == nil && !settled {
			err = fmt.Errorf("sale %s owes a settle of batch %s", o.id, batch)
		}
	}
	if err == nil {
		err = differs(&l, &v)
	}
	return l, v, err
}

// differs says what the two stores do not agree on. After a failover without a replica's
// word they may not, until the sale is reconciled the second time, half a minute later.
func differs(l *ledgerView, v *redisView) error {
	held := make(map[string]bool)
	for i := range v.records {
		if c := &v.records[i]; c.held {
			held[c.order] = true
		}
	}
	for i := range l.orders {
		o := &l.orders[i]
		if o.active() != held[o.id] {
			return fmt.Errorf("order %s is %s, and held in Redis: %t", o.id, o.status, held[o.id])
		}
		delete(held, o.id)
	}
	for id := range held {
		return fmt.Errorf("order %s is held in Redis and not in the ledger", id)
	}
	return nil
}

func (s *Site) ledgerView(ctx context.Context, sale string) (ledgerView, error) {
	v := ledgerView{lockedOf: make(map[string][]int64), consumed: make(map[string]bool)}
	err := s.db.QueryRowContext(ctx, `SELECT i.total, i.available, i.locked, i.sold, i.version, s.per_user_limit
		FROM inventory i JOIN sales s ON s.id = i.sale_id WHERE s.id = ?`, sale).
		Scan(&v.total, &v.available, &v.locked, &v.sold, &v.version, &v.limit)
	if err != nil {
		return v, err
	}
	err = s.rows(ctx, func(r *sql.Rows) error {
		var o order
		err := r.Scan(&o.id, &o.user, &o.key, &o.quantity, &o.amount, &o.status, &o.reason, &o.batch)
		v.orders = append(v.orders, o)
		return err
	}, `SELECT id, user_id, request_key, quantity, amount_cents, status, reason, batch_id FROM orders WHERE sale_id = ?`, sale)
	if err != nil {
		return v, err
	}
	err = s.rows(ctx, func(r *sql.Rows) error {
		var batch string
		var units int64
		err := r.Scan(&batch, &units)
		v.lockedOf[batch] = append(v.lockedOf[batch], units)
		return err
	}, `SELECT batch_id, units FROM inventory_log WHERE sale_id = ? AND kind = 'LOCK'`, sale)
	if err != nil {
		return v, err
	}
	err = s.rows(ctx, func(r *sql.Rows) error {
		var batch string
		var settled bool
		err := r.Scan(&batch, &settled)
		v.consumed[batch] = settled
		return err
	}, `SELECT batch_id, settled_at IS NOT NULL FROM consumed_batches WHERE sale_id = ?`, sale)
	if err != nil {
		return v, err
	}
	return v, s.db.QueryRowContext(ctx, `SELECT COUNT(*) FROM stock_sync_tasks WHERE sale_id = ? AND state <> 'DONE'`, sale).Scan(&v.tasks)
}

func (s *Site) rows(ctx context.Context, each func(*sql.Rows) error, query string, args ...any) error {
	rows, err := s.db.QueryContext(ctx, query, args...)
	if err != nil {
		return err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		if err := each(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

// mended adds what the reconciler repaired and helped with in a sale, by kind.
func (s *Site) mended(ctx context.Context, sale string, byKind map[string]int) error {
	return s.rows(ctx, func(r *sql.Rows) error {
		var kind string
		var n int
		err := r.Scan(&kind, &n)
		byKind[kind] += n
		return err
	}, `SELECT i.kind, COUNT(*) FROM reconcile_items i JOIN reconcile_reports r ON r.id = i.report_id
		WHERE r.sale_id = ? AND i.outcome <> 'LEFT' GROUP BY i.kind`, sale)
}

// deadBatches counts the dead batches of the whole ledger.
func (s *Site) deadBatches(ctx context.Context) (n int64, err error) {
	err = s.db.QueryRowContext(ctx, `SELECT COUNT(*) FROM dead_batches`).Scan(&n)
	return n, err
}

func (s *Site) redisView(ctx context.Context, sale string) (v redisView, err error) {
	c, err := s.cluster()
	if err != nil {
		return v, err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	key := func(name string) string { return "fg:{" + sale + "}:" + name }
	v.stock, err = c.Do(ctx, c.B().Get().Key(key("stock")).Build()).AsInt64()
	if rueidis.IsRedisNil(err) {
		return v, nil
	}
	if err != nil {
		return v, err
	}
	v.loaded = true
	meta, err := c.Do(ctx, c.B().Hgetall().Key(key("meta")).Build()).AsStrMap()
	if err != nil {
		return v, err
	}
	for name, into := range map[string]*int64{"total": &v.total, "held": &v.held, "version": &v.version} {
		if *into, err = strconv.ParseInt(meta[name], 10, 64); err != nil {
			return v, fmt.Errorf("meta %s: %w", name, err)
		}
	}
	buyers, err := c.Do(ctx, c.B().Hgetall().Key(key("buyers")).Build()).AsStrMap()
	if err != nil {
		return v, err
	}
	for user, packed := range buyers {
		if v.records, err = unpackRecords(v.records, user, packed); err != nil {
			return v, err
		}
	}
	batches, err := c.Do(ctx, c.B().Hgetall().Key(key("batches")).Build()).AsStrMap()
	if err != nil {
		return v, err
	}
	for id, packed := range batches {
		if len(id) != 8 || packed == "" {
			return v, fmt.Errorf("batch %x: %q", id, packed)
		}
		if packed[0] != 'V' {
			v.open = append(v.open, decimal(id)+" "+packed[:1])
		}
	}
	v.pending, err = c.Do(ctx, c.B().Zcard().Key(key("pending")).Build()).AsInt64()
	return v, err
}

func decimal(id string) string {
	return strconv.FormatUint(binary.BigEndian.Uint64([]byte(id[:8])), 10)
}

var errRecord = errors.New("malformed buyer's record")

// unpackRecords reads what lua/prelude.lua describes, by itself: state, units (2
// bytes), order (8), length of the key (1, the high bit says UUID), key, batch (8).
func unpackRecords(records []record, user, packed string) ([]record, error) {
	for packed != "" {
		if len(packed) < 12 || packed[0] != 'H' && packed[0] != 'R' {
			return records, fmt.Errorf("%w: of %s: %x", errRecord, user, packed)
		}
		size := int(packed[11] & 0x7f)
		if len(packed) < 12+size+8 {
			return records, fmt.Errorf("%w: of %s: %x", errRecord, user, packed)
		}
		key := packed[12 : 12+size]
		if packed[11]&0x80 != 0 {
			h := hex.EncodeToString([]byte(key))
			key = h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
		}
		records = append(records, record{
			user: user, held: packed[0] == 'H', quantity: int(packed[1])<<8 | int(packed[2]),
			order: decimal(packed[3:]), key: key, batch: decimal(packed[12+size:]),
		})
		packed = packed[12+size+8:]
	}
	return records, nil
}
