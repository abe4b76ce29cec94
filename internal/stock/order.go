package stock

import (
	"context"
	"fmt"

	"flashgate/internal/sale"
)

// Restore moves an order's record to RETURNED, and gives its units back if it was
// HELD: true if this call did. An absent record is written RETURNED. Idempotent.
func (s *Store) Restore(ctx context.Context, o *sale.Order, batch sale.ID) (bool, error) {
	entry, err := appendEntry(nil, o)
	if err != nil {
		return false, fmt.Errorf("%w: restore: %w", ErrNotRun, err)
	}
	code, err := s.runCode(ctx, s.opts.CallTimeout, restoreScript, o.SaleID, packID(batch), o.UserID, string(entry))
	return code == 1, err
}

// Lookup reads one user's records, each with its batch's state, in one script.
func (s *Store) Lookup(ctx context.Context, saleID, user string) ([]Record, error) {
	_, reply, err := s.runReady(ctx, s.opts.CallTimeout, lookupScript, saleID, user)
	if err != nil {
		return nil, err
	}
	if len(reply) != 2 {
		return nil, malformed("lookup", reply)
	}
	packed, err := reply[0].ToString()
	if err != nil {
		return nil, malformed("lookup", reply)
	}
	states, err := reply[1].ToString()
	if err != nil {
		return nil, malformed("lookup", reply)
	}
	records, err := appendRecords(nil, packed, user)
	if err != nil {
		return nil, err
	}
	if len(states) != len(records) {
		return nil, malformed("lookup", reply)
	}
	for i := range records {
		records[i].Batch = State(states[i] - '0')
	}
	return records, nil
}
