package stock

import (
	"context"
	"fmt"
	"iter"
	"math"
	"time"

	"github.com/redis/rueidis"

	"flashgate/internal/sale"
)

const (
	// scanBuyers and scanBatches are what one HSCAN is asked for: 500 buyers are 65 kB,
	// 64 batches of 64 orders 330 kB. Each keeps Redis for less than a millisecond.
	scanBuyers  = 500
	scanBatches = 64
	// dueMax bounds one Due: what comes due later comes up in the next sweep.
	dueMax = 10_000
	// purgeBatches is how many batches one purge call looks at.
	purgeBatches = 1_000
)

// Adjust moves the total to that of version; at or past it, it changes nothing
// (true: Redis is at version or past it). A cut that free stock does not cover is
// refused with false. Idempotent; replicated, or a failover would sell the units of a
// cut that the ledger has taken since.
func (s *Store) Adjust(ctx context.Context, saleID string, total, version int64) (bool, error) {
	code, err := s.runReplicated(ctx, adjustScript, saleID, formatInt(total), formatInt(version))
	return code == 1, err
}

// Snapshot reads a sale's counts in one script. A sale not loaded is no error.
func (s *Store) Snapshot(ctx context.Context, saleID string) (Snapshot, error) {
	message, err := s.run(ctx, s.opts.CallTimeout, snapshotScript, saleID)
	if err != nil {
		return Snapshot{}, err
	}
	n, err := message.AsIntSlice()
	switch {
	case err != nil:
	case len(n) == 2 && n[0] == notReady:
		return Snapshot{Now: time.UnixMilli(n[1]).UTC()}, nil
	case len(n) == 10:
		return Snapshot{
			Loaded: true, Now: time.UnixMilli(n[0]).UTC(),
			Stock: n[1], Held: n[2], Total: n[3], Version: n[4], Epoch: n[5], moves: n[6],
			Buyers: n[7], Batches: n[8], Pending: n[9],
		}, nil
	}
	return Snapshot{}, malformed("snapshot", message)
}

// UnknownUnits is what Stocks says of a sale whose node did not answer.
const UnknownUnits = math.MinInt64

// Stocks reads the free units of many sales (pipelined GETs); ok[i] false = not
// loaded, or, with UnknownUnits, not known. units and ok must have len(saleIDs). An
// error means that of no sale anything is known.
func (s *Store) Stocks(ctx context.Context, saleIDs []string, units []int64, ok []bool) error {
	if len(units) != len(saleIDs) || len(ok) != len(saleIDs) {
		panic("BUG: stocks: one place a sale is wanted")
	}
	ctx, cancel := context.WithTimeout(ctx, s.opts.CallTimeout)
	defer cancel()
	commands := make([]rueidis.Completed, len(saleIDs))
	for i, id := range saleIDs {
		commands[i] = s.client.B().Get().Key(keysOf(id, wholeSale, keyStock)[0]).Build()
	}
	var failed error
	answered := 0
	for i, result := range s.client.DoMulti(ctx, commands...) {
		n, err := result.AsInt64()
		switch {
		case err == nil || rueidis.IsRedisNil(err):
			answered++
			units[i], ok[i] = n, err == nil
		default:
			failed = classify("stocks", err)
			units[i], ok[i] = UnknownUnits, false
		}
	}
	if answered == 0 {
		return failed
	}
	return nil
}

// Due lists up to limit RESERVED batches whose deadline has passed by Redis time, the
// oldest first.
func (s *Store) Due(ctx context.Context, saleID string, limit int) ([]sale.ID, error) {
	_, reply, err := s.runReady(ctx, s.opts.CallTimeout, dueScript, saleID, formatInt(int64(min(limit, dueMax))))
	if err != nil {
		return nil, err
	}
	ids := make([]sale.ID, len(reply))
	for i := range reply {
		packed, err := reply[i].ToString()
		if err != nil || len(packed) != idBytes {
			return nil, malformed("due", reply)
		}
		ids[i] = sale.IDFromBinary(packed)
	}
	return ids, nil
}

// Batches calls f with every unsettled batch, in slices (HSCAN: one may come twice,
// and one that comes or goes meanwhile may be there or not).
func (s *Store) Batches(ctx context.Context, saleID string, f func([]BatchRecord) error) error {
	return s.scan(ctx, saleID, keyBatches, scanBatches, func(fields []string) error {
		batches := make([]BatchRecord, 0, len(fields)/2)
		for i := 0; i+1 < len(fields); i += 2 {
			b, err := readBatch(saleID, fields[i], fields[i+1])
			if err != nil {
				return err
			}
			batches = append(batches, b)
		}
		return f(batches)
	})
}

// Buyers calls f with every record, in slices (HSCAN: one may come twice, and one that
// comes or goes meanwhile may be there or not).
func (s *Store) Buyers(ctx context.Context, saleID string, f func([]Record) error) error {
	return s.scan(ctx, saleID, keyBuyers, scanBuyers, func(fields []string) error {
		records := make([]Record, 0, len(fields)/2)
		for i := 0; i+1 < len(fields); i += 2 {
			var err error
			if records, err = appendRecords(records, fields[i+1], fields[i]); err != nil {
				return err
			}
		}
		return f(records)
	})
}

// scan calls f with the fields and values of a hash of the sale, by turns. Each slice
// is read together with the stock key: what a load that is under way has written so
// far is nothing to act on.
func (s *Store) scan(ctx context.Context, saleID string, name key, count int64, f func(fields []string) error) error {
	keys := keysOf(saleID, wholeSale, keyStock, name)
	for cursor := uint64(0); ; {
		entry, err := s.scanSlice(ctx, keys[0], keys[1], cursor, count)
		if err != nil {
			return err
		}
		if len(entry.Elements) > 0 {
			if err := f(entry.Elements); err != nil {
				return err
			}
		}
		if cursor = entry.Cursor; cursor == 0 {
			return nil
		}
	}
}

func (s *Store) scanSlice(ctx context.Context, stockKey, hashKey string, cursor uint64, count int64) (rueidis.ScanEntry, error) {
	ctx, cancel := context.WithTimeout(ctx, s.opts.CallTimeout)
	defer cancel()
	results := s.client.DoMulti(ctx,
		s.client.B().Get().Key(stockKey).Build(),
		s.client.B().Hscan().Key(hashKey).Cursor(cursor).Count(count).Build())
	if err := results[0].Error(); rueidis.IsRedisNil(err) {
		return rueidis.ScanEntry{}, ErrNotReady
	} else if err != nil {
		return rueidis.ScanEntry{}, classify("scan", err)
	}
	entry, err := results[1].AsScanEntry()
	if err != nil {
		return entry, classify("scan", err)
	}
	return entry, nil
}

// PurgeVoids removes VOID batches older than age; it returns how many.
func (s *Store) PurgeVoids(ctx context.Context, saleID string, age time.Duration) (int, error) {
	purged := 0
	err := s.Batches(ctx, saleID, func(batches []BatchRecord) error {
		var voids []string
		for i := range batches {
			if batches[i].State == StateVoid {
				voids = append(voids, packID(batches[i].ID))
			}
		}
		for slice := range slices(voids, purgeBatches) {
			args := append([]string{formatInt(age.Milliseconds())}, slice...)
			n, err := s.runCode(ctx, s.opts.CallTimeout, purgeScript, saleID, args...)
			if err != nil {
				return err
			}
			purged += int(n)
		}
		return nil
	})
	return purged, err
}

// ExpireAt lets all keys of the sale expire at t, at one instant; idempotent. A key
// that comes into being later has no expiry: set it again after a load, and after the
// sale's last batch.
func (s *Store) ExpireAt(ctx context.Context, saleID string, t time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, s.opts.CallTimeout)
	defer cancel()
	var commands []rueidis.Completed
	for _, k := range keysOf(saleID, wholeSale, allKeys...) {
		commands = append(commands, s.client.B().Pexpireat().Key(k).MillisecondsTimestamp(t.UnixMilli()).Build())
	}
	for _, result := range s.client.DoMulti(ctx, commands...) {
		if err := result.Error(); err != nil {
			return fmt.Errorf("stock: expire: %w", err)
		}
	}
	return nil
}

// slices cuts all into slices of at most size.
func slices[T any](all []T, size int) iter.Seq[[]T] {
	return func(yield func([]T) bool) {
		for len(all) > 0 {
			n := min(size, len(all))
			if !yield(all[:n]) {
				return
			}
			all = all[n:]
		}
	}
}
