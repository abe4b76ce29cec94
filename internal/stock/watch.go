package stock

import (
	"context"
	"strconv"

	"flashgate/internal/sale"
)

// oldestCount is how many batches one slice of a look for the oldest takes: at 64 orders
// a batch it keeps Redis for less than a millisecond.
const oldestCount = 200

// Server says which Redis process has the sale, and under which one the sale was last
// reconciled ("" = not since it was loaded): they differ after a failover and after a
// restart, either of which may have lost writes. reconciled, unless "", is noted as the
// latter, if it is still that process which answers. The embedded Redis has one name.
func (s *Store) Server(ctx context.Context, saleID, reconciled string) (process, mark string, err error) {
	_, reply, err := s.runReady(ctx, s.opts.CallTimeout, serverScript, saleID, reconciled)
	if err != nil {
		return "", "", err
	}
	if len(reply) == 2 {
		process, err = reply[0].ToString()
		if err == nil {
			mark, err = reply[1].ToString()
		}
	}
	if err != nil || process == "" {
		return "", "", malformed("server", reply)
	}
	return process, mark, nil
}

// OldestOpen looks for the oldest batch that is RESERVED or CONFIRMED, from a cursor on
// (0 = the start) through at most maxSlices slices of 200 batches: 0 = it met none. next
// is where to go on, 0 after the last slice.
func (s *Store) OldestOpen(ctx context.Context, saleID string, cursor uint64, maxSlices int) (oldest sale.ID, next uint64, err error) {
	next = cursor
	for range maxSlices {
		_, reply, err := s.runReady(ctx, s.opts.CallTimeout, oldestScript, saleID,
			strconv.FormatUint(next, 10), formatInt(oldestCount))
		if err != nil {
			return oldest, next, err
		}
		if len(reply) != 2 {
			return oldest, next, malformed("oldest", reply)
		}
		at, err1 := reply[0].ToString()
		packed, err2 := reply[1].ToString()
		cursor, err3 := strconv.ParseUint(at, 10, 64)
		if err1 != nil || err2 != nil || err3 != nil || len(packed) != 0 && len(packed) != idBytes {
			return oldest, next, malformed("oldest", reply)
		}
		if len(packed) == idBytes {
			if id := sale.IDFromBinary(packed); oldest == 0 || id < oldest {
				oldest = id
			}
		}
		if next = cursor; next == 0 {
			break
		}
	}
	return oldest, next, nil
}
