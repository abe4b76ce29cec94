// Package plant makes differences between Redis and the ledger by hand, as somebody with
// the engines' own clients would: with SQL, and with commands on a sale's keys. It knows
// the tables of internal/ledger's migrations and the records of lua/prelude.lua from
// their documentation alone.
package plant

import (
	"context"
	"database/sql"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/redis/rueidis"
)

// atOnce is how many orders one statement or pipeline is about.
const atOnce = 1000

// Order is a persisted order of one unit.
type Order struct {
	ID, Batch int64
	User      string
}

// Sale is one sale in both stores.
type Sale struct {
	ID string

	db     *sql.DB
	redis  rueidis.Client
	lowest int64 // no id of the sale is below it: new ones are made there
}

// Open connects to the stores of a sale. dsn is as the MySQL driver has it.
func Open(saleID, dsn string, redis []string) (*Sale, error) {
	db, err := sql.Open("mysql", dsn)
	if err != nil {
		return nil, fmt.Errorf("MySQL: %w", err)
	}
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: redis, DisableCache: true})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("connecting to Redis: %w", err), db.Close())
	}
	return &Sale{ID: saleID, db: db, redis: client}, nil
}

// Close ends the connections.
func (s *Sale) Close() error {
	s.redis.Close()
	return s.db.Close()
}

// Orders are those of the sale that are in the ledger, batch by batch, smaller batches first.
func (s *Sale) Orders(ctx context.Context) (orders []Order, err error) {
	rows, err := s.db.QueryContext(ctx, `SELECT o.id, o.batch_id, o.user_id FROM orders o
		JOIN (SELECT batch_id, COUNT(*) AS size FROM orders WHERE sale_id = ? GROUP BY batch_id) b ON b.batch_id = o.batch_id
		ORDER BY b.size, o.batch_id, o.id`, s.ID)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for err == nil && rows.Next() {
		var o Order
		err = rows.Scan(&o.ID, &o.Batch, &o.User)
		orders = append(orders, o)
		if s.lowest == 0 || min(o.ID, o.Batch) < s.lowest {
			s.lowest = min(o.ID, o.Batch)
		}
	}
	return orders, errors.Join(err, rows.Err())
}

// Count is what reconciles came across of one kind.
type Count struct {
	Found, Repaired, Left, Helped int64
}

// LastReport is the number of the newest report on the sale; 0: there is none.
func (s *Sale) LastReport(ctx context.Context) (id int64, err error) {
	err = s.db.QueryRowContext(ctx, `SELECT COALESCE(MAX(id), 0) FROM reconcile_reports WHERE sale_id = ?`, s.ID).Scan(&id)
	return id, err
}

// Reported adds up, by kind, the reports on the sale after one: whoever ran it.
func (s *Sale) Reported(ctx context.Context, after int64) (byKind map[string]Count, err error) {
	rows, err := s.db.QueryContext(ctx, `SELECT kinds FROM reconcile_reports WHERE sale_id = ? AND id > ? AND NOT dry_run`, s.ID, after)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	byKind = make(map[string]Count)
	for err == nil && rows.Next() {
		var text []byte
		var kinds []struct {
			Kind                          string
			Found, Repaired, Left, Helped int64
		}
		if err = rows.Scan(&text); err == nil {
			err = json.Unmarshal(text, &kinds)
		}
		for _, k := range kinds {
			sum := byKind[k.Kind]
			byKind[k.Kind] = Count{sum.Found + k.Found, sum.Repaired + k.Repaired, sum.Left + k.Left, sum.Helped + k.Helped}
		}
	}
	return byKind, errors.Join(err, rows.Err())
}

// Cancelled counts those of the orders that are cancelled.
func (s *Sale) Cancelled(ctx context.Context, orders []Order) (n int, err error) {
	err = eachOf(orders, func(some []Order) error {
		var part int
		err := s.db.QueryRowContext(ctx, `SELECT COUNT(*) FROM orders WHERE status = 'CANCELLED' AND id IN `+in(some)).Scan(&part)
		n += part
		return err
	})
	return n, err
}

func eachOf(orders []Order, do func(some []Order) error) error {
	for len(orders) > 0 {
		n := min(atOnce, len(orders))
		if err := do(orders[:n]); err != nil {
			return err
		}
		orders = orders[n:]
	}
	return nil
}

// in is a list of the orders' ids for SQL.
func in(orders []Order) string { return list(orders, func(o *Order) int64 { return o.ID }) }

func inBatches(orders []Order) string { return list(orders, func(o *Order) int64 { return o.Batch }) }

func list(orders []Order, id func(*Order) int64) string {
	ids := make([]string, len(orders))
	for i := range orders {
		ids[i] = strconv.FormatInt(id(&orders[i]), 10)
	}
	return "(" + strings.Join(ids, ",") + ")"
}

func (s *Sale) exec(ctx context.Context, query string, args ...any) error {
	_, err := s.db.ExecContext(ctx, query, args...)
	return err
}

// execOf runs a statement that ends in the orders' list.
func (s *Sale) execOf(ctx context.Context, orders []Order, query string, ids func([]Order) string) error {
	return eachOf(orders, func(some []Order) error { return s.exec(ctx, query+ids(some)) })
}

// lock moves units from available to locked.
func (s *Sale) lock(ctx context.Context, units int) error {
	return s.exec(ctx, `UPDATE inventory SET locked = locked + ?, available = available - ? WHERE sale_id = ?`, units, units, s.ID)
}

func (s *Sale) key(name string) string { return "fg:{" + s.ID + "}:" + name }

// free moves units from held to stock.
func (s *Sale) free(ctx context.Context, units int) error {
	return errors.Join(s.addStock(ctx, units),
		s.redis.Do(ctx, s.redis.B().Hincrby().Key(s.key("meta")).Field("held").Increment(int64(-units)).Build()).Error())
}

func (s *Sale) addStock(ctx context.Context, units int) error {
	return s.redis.Do(ctx, s.redis.B().Incrby().Key(s.key("stock")).Increment(int64(units)).Build()).Error()
}

// set writes fields of one of the sale's hashes.
func (s *Sale) set(ctx context.Context, hash string, fields map[string]string) error {
	if len(fields) == 0 {
		return nil
	}
	c := s.redis.B().Hset().Key(s.key(hash)).FieldValue()
	for field, value := range fields {
		c = c.FieldValue(field, value)
	}
	return s.redis.Do(ctx, c.Build()).Error()
}

func users(orders []Order) []string {
	out := make([]string, len(orders))
	for i := range orders {
		out[i] = orders[i].User
	}
	return out
}

// A buyer's record: state, units (2 bytes), order (8), key with its length, batch (8).
const (
	stateBytes = 1
	unitsAt    = 1
	batchBytes = 8

	held, returned = 'H', 'R'
)

// records are the records of the orders' buyers, each of whom has one.
func (s *Sale) records(ctx context.Context, orders []Order) ([]string, error) {
	values, err := s.redis.Do(ctx, s.redis.B().Hmget().Key(s.key("buyers")).Field(users(orders)...).Build()).AsStrSlice()
	if err != nil {
		return nil, err
	}
	for i, v := range values {
		if len(v) < stateBytes+10+batchBytes || v[0] != held {
			return nil, fmt.Errorf("user %s of order %d: want one HELD record, and Redis has %x", orders[i].User, orders[i].ID, v)
		}
	}
	return values, nil
}

// rewrite changes the records of the orders' buyers.
func (s *Sale) rewrite(ctx context.Context, orders []Order, change func(record []byte)) error {
	return eachOf(orders, func(some []Order) error {
		records, err := s.records(ctx, some)
		if err != nil {
			return err
		}
		fields := make(map[string]string, len(some))
		for i, r := range records {
			record := []byte(r)
			change(record)
			fields[some[i].User] = string(record)
		}
		return s.set(ctx, "buyers", fields)
	})
}

// reopen writes the batches of orders again, which had been settled: CONFIRMED, with
// their orders, which are all that the batches have.
func (s *Sale) reopen(ctx context.Context, orders []Order) error {
	batches := make(map[string]string)
	err := eachOf(orders, func(some []Order) error {
		records, err := s.records(ctx, some)
		if err != nil {
			return err
		}
		for i, r := range records {
			o := &some[i]
			id := idBytes(o.Batch)
			if batches[id] == "" {
				batches[id] = "C"
			}
			batches[id] += inBatch(o.User, r[stateBytes:len(r)-batchBytes])
		}
		return nil
	})
	if err != nil {
		return err
	}
	return s.set(ctx, "batches", batches)
}

// inBatch is an order as its batch has it.
func inBatch(user, entry string) string { return string([]byte{byte(len(user))}) + user + entry }

func idBytes(id int64) string { return string(binary.BigEndian.AppendUint64(nil, uint64(id))) }

// newID is an id that nobody has, older than all others of the sale.
func (s *Sale) newID() int64 {
	s.lowest--
	return s.lowest
}
