package stock

import (
	"context"
	"errors"
)

const (
	// recountMax is the number of buyers up to which a recount is one script: it keeps
	// Redis for some 5 ms, which every sale on that node waits for. Of more buyers the
	// records are counted in slices.
	recountMax = 10_000
	// recountRepairMax is the same for a sale whose stock is known to be wrong and that is
	// too busy to be counted in slices: some 100 ms, once.
	recountRepairMax = 200_000
	// recountLookSlices is after how many slices a count looks whether it is in vain.
	recountLookSlices = 20
)

// The modes of the recount script.
const (
	recountOnly   = "0"
	recountRepair = "1"
	recountLower  = "2" // by meta alone, and downwards alone
)

// Recount counts held units afresh from the records. It returns what is wrong, in
// units: by how much stock + held miss the total, or, where that is right, by how much
// meta's held misses the records. ok false: not counted, since there are more than 10,000
// buyers and records changed during the pass over them.
func (s *Store) Recount(ctx context.Context, saleID string) (drift int64, ok bool, err error) {
	return s.recount(ctx, saleID, recountOnly, recountMax)
}

// RepairCounts counts as Recount does, and sets stock and meta right. A sale that is too
// busy to be counted in slices is counted in one script up to 200,000 buyers. Of a larger
// one, stock that is too high by meta's account is lowered, so that nothing is sold that
// is not there, and ok is false: count again when it is quiet.
func (s *Store) RepairCounts(ctx context.Context, saleID string) (drift int64, ok bool, err error) {
	if drift, ok, err = s.recount(ctx, saleID, recountRepair, recountMax); err != nil || ok {
		return drift, ok, err
	}
	return s.repairBusy(ctx, saleID, recountRepairMax)
}

func (s *Store) repairBusy(ctx context.Context, saleID string, maxBuyers int64) (drift int64, ok bool, err error) {
	if drift, ok, err = s.recountScript(ctx, saleID, recountRepair, maxBuyers, "", 0, 0); err != nil || ok {
		return drift, ok, err
	}
	drift, _, err = s.recountScript(ctx, saleID, recountLower, 0, "", 0, 0)
	return drift, false, err
}

// recount counts in one script up to maxBuyers, and beyond in slices.
func (s *Store) recount(ctx context.Context, saleID, mode string, maxBuyers int64) (drift int64, ok bool, err error) {
	before, err := s.Snapshot(ctx, saleID)
	switch {
	case err != nil:
		return 0, false, err
	case !before.Loaded:
		return 0, false, ErrNotReady
	case before.Buyers <= maxBuyers:
		return s.recountScript(ctx, saleID, mode, maxBuyers, "", 0, 0)
	}
	var counted, fields, passed int64
	moved := false
	err = s.scan(ctx, saleID, keyBuyers, scanBuyers, func(elements []string) error {
		if passed++; passed%recountLookSlices == 0 {
			now, err := s.Snapshot(ctx, saleID)
			if moved = err == nil && now.moves != before.moves; err != nil || moved {
				return errors.Join(err, errMoved)
			}
		}
		for i := 0; i+1 < len(elements); i += 2 {
			records, err := appendRecords(nil, elements[i+1], elements[i])
			if err != nil {
				return err
			}
			for j := range records {
				if !records[j].Returned {
					counted += int64(records[j].Quantity)
				}
			}
			fields++
		}
		return nil
	})
	switch {
	case moved:
		return 0, false, nil
	case err != nil:
		return 0, false, err
	}
	// The script compares: with no change since, every field was read at least once;
	// with as many read as there are, none was read twice.
	return s.recountScript(ctx, saleID, mode, maxBuyers, formatInt(counted), fields, before.moves)
}

// errMoved ends a count that a change of a record has made worthless.
var errMoved = errors.New("stock: a record moved during the count")

func (s *Store) recountScript(ctx context.Context, saleID, mode string, maxBuyers int64, counted string, fields, moves int64) (drift int64, ok bool, err error) {
	code, reply, err := s.runReady(ctx, upkeepTimeout, recountScript, saleID, mode, formatInt(maxBuyers), counted, formatInt(fields), formatInt(moves))
	if err != nil || code == 0 {
		return 0, false, err
	}
	if len(reply) != 2 {
		return 0, false, malformed("recount", reply)
	}
	ofStock, err1 := reply[0].ToInt64()
	ofHeld, err2 := reply[1].ToInt64()
	if err1 != nil || err2 != nil {
		return 0, false, malformed("recount", reply)
	}
	if ofStock != 0 {
		return ofStock, true, nil
	}
	return ofHeld, true, nil
}
