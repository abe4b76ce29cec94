package stock

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/redis/rueidis"

	"flashgate/internal/sale"
)

const (
	// maxUsersPerScript bounds one call of records, which looks at a batch a record.
	maxUsersPerScript = 100
	// maxBatchesPerRead bounds one HMGET of batches: at 64 orders each they are 160 kB.
	maxBatchesPerRead = 32
)

// maxUsersPerRead bounds one HMGET, which holds up the node for its length.
const maxUsersPerRead = 500

// RecordsOf reads the records of many users, by user; without their batches' states.
// Like a scan, it reads nothing of a sale that is not loaded.
func (s *Store) RecordsOf(ctx context.Context, saleID string, users []string) (map[string][]Record, error) {
	found := make(map[string][]Record, len(users))
	keys := keysOf(saleID, wholeSale, keyStock, keyBuyers)
	for slice := range slices(users, maxUsersPerRead) {
		values, err := s.readFields(ctx, keys[0], keys[1], slice)
		if err != nil {
			return nil, err
		}
		for i, user := range slice {
			packed, err := values[i].ToString()
			if rueidis.IsRedisNil(err) {
				continue
			}
			if err == nil {
				found[user], err = appendRecords(nil, packed, user)
			}
			if err != nil {
				return nil, err
			}
		}
	}
	return found, nil
}

// readFields reads fields of a hash of the sale together with the stock key.
func (s *Store) readFields(ctx context.Context, stockKey, hashKey string, fields []string) ([]rueidis.RedisMessage, error) {
	ctx, cancel := context.WithTimeout(ctx, s.opts.CallTimeout)
	defer cancel()
	results := s.client.DoMulti(ctx,
		s.client.B().Get().Key(stockKey).Build(),
		s.client.B().Hmget().Key(hashKey).Field(fields...).Build())
	if err := results[0].Error(); rueidis.IsRedisNil(err) {
		return nil, ErrNotReady
	} else if err != nil {
		return nil, classify("records", err)
	}
	values, err := results[1].ToArray()
	if err != nil {
		return nil, classify("records", err)
	}
	return values, nil
}

// Records reads the records of many users, each with its batch's state at the instant of
// its own reading: HELD with StateSettled means that the ledger had the order by then.
func (s *Store) Records(ctx context.Context, saleID string, users []string) (map[string][]Record, error) {
	found := make(map[string][]Record, len(users))
	for slice := range slices(users, maxUsersPerScript) {
		_, reply, err := s.runReady(ctx, s.opts.CallTimeout, recordsScript, saleID, slice...)
		if err != nil {
			return nil, err
		}
		if len(reply) != 2*len(slice) {
			return nil, malformed("records", reply)
		}
		for i, user := range slice {
			packed, err1 := reply[2*i].ToString()
			states, err2 := reply[2*i+1].ToString()
			if err1 != nil || err2 != nil {
				return nil, malformed("records", reply)
			}
			records, err := appendRecords(nil, packed, user)
			if err != nil {
				return nil, err
			}
			if len(states) != len(records) {
				return nil, malformed("records", reply)
			}
			for j := range records {
				records[j].Batch = State(states[j] - '0')
			}
			if len(records) > 0 {
				found[user] = records
			}
		}
	}
	return found, nil
}

// Amend sets one order's record to HELD or RETURNED with quantity units, and moves the
// units, if it still is what seen says; free stock may go below zero. false: it is not,
// and nothing was changed. Idempotent.
func (s *Store) Amend(ctx context.Context, saleID string, seen *Record, quantity int, returned bool) (bool, error) {
	want := *seen
	want.Quantity, want.Returned = quantity, returned
	old, err := packRecord(seen)
	if err != nil {
		return false, fmt.Errorf("%w: amend: %w", ErrNotRun, err)
	}
	packed, err := packRecord(&want)
	if err != nil {
		return false, fmt.Errorf("%w: amend: %w", ErrNotRun, err)
	}
	code, err := s.runCode(ctx, s.opts.CallTimeout, amendScript, saleID, seen.UserID, old, packed)
	return code == 1, err
}

// BatchesByID reads the given batches that are unsettled, by id.
func (s *Store) BatchesByID(ctx context.Context, saleID string, ids []sale.ID) (map[sale.ID]BatchRecord, error) {
	found := make(map[sale.ID]BatchRecord, len(ids))
	keys := keysOf(saleID, wholeSale, keyStock, keyBatches)
	for slice := range slices(ids, maxBatchesPerRead) {
		fields := make([]string, len(slice))
		for i, id := range slice {
			fields[i] = packID(id)
		}
		values, err := s.readFields(ctx, keys[0], keys[1], fields)
		if err != nil {
			return nil, err
		}
		for i, id := range slice {
			value, err := values[i].ToString()
			if rueidis.IsRedisNil(err) {
				continue
			}
			if err == nil {
				found[id], err = readBatch(saleID, fields[i], value)
			}
			if err != nil {
				return nil, err
			}
		}
	}
	return found, nil
}

// Overdue is by how much the deadline of a reservation has passed, by Redis time;
// negative: it has not; math.MaxInt64: no sweeper knows of it.
func (s *Store) Overdue(ctx context.Context, saleID string, batch sale.ID) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, s.opts.CallTimeout)
	defer cancel()
	key := keysOf(saleID, wholeSale, keyPending)[0]
	deadline, err := s.client.Do(ctx, s.client.B().Zscore().Key(key).Member(packID(batch)).Build()).AsFloat64()
	if rueidis.IsRedisNil(err) {
		return math.MaxInt64, nil
	} else if err != nil {
		return 0, classify("overdue", err)
	}
	now, err := s.Snapshot(ctx, saleID)
	if err != nil {
		return 0, err
	}
	return now.Now.Sub(time.UnixMilli(int64(deadline))), nil
}
