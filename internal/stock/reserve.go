package stock

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"flashgate/internal/sale"
)

// batchKnown is what reserve answers of a batch id that Redis knows already.
const batchKnown = 0

// Reserve asks for all orders of b at once (b.Epoch is ignored). out must have
// len(b.Orders); it returns the epoch the winners were reserved under. Winners form
// batch b.ID, RESERVED until now + hold (Redis time); without a winner there is no
// batch. ErrBatchKnown, ErrNotReady and ErrNotRun say that nothing changed; after any
// other error it may have: Release decides then.
func (s *Store) Reserve(ctx context.Context, b *sale.Batch, terms Terms, hold time.Duration, out []Outcome) (epoch int64, err error) {
	if len(out) != len(b.Orders) {
		panic("BUG: reserve: one outcome an order is wanted")
	}
	orders, err := packOrders(b.Orders)
	if err != nil {
		return 0, fmt.Errorf("%w: reserve: %w", ErrNotRun, err)
	}
	paused := "0"
	if terms.Paused {
		paused = "1"
	}
	id := packID(b.ID)
	args := make([]string, 0, 7+2*len(b.Orders))
	args = append(args, id, formatMillis(terms.StartsAt), formatMillis(terms.EndsAt), paused,
		strconv.Itoa(terms.PerUserLimit), formatInt(hold.Milliseconds()), orders)
	args = appendAsks(args, b.Orders, orders, id)
	code, reply, err := s.runReady(ctx, s.opts.CallTimeout, reserveScript, b.SaleID, args...)
	switch {
	case err != nil:
		return 0, err
	case code == batchKnown:
		return 0, ErrBatchKnown
	case len(reply) < 2:
		return 0, malformed("reserve", reply)
	}
	if epoch, err = reply[0].ToInt64(); err != nil {
		return 0, malformed("reserve", reply)
	}
	verdicts, err := reply[1].ToString()
	if err != nil || len(verdicts) != len(out) {
		return 0, malformed("reserve", reply)
	}
	found := reply[2:]
	for i := range out {
		out[i] = Outcome{Verdict: Verdict(verdicts[i] - '0')}
		if out[i].Verdict != Replay && out[i].Verdict != KeyReused {
			continue
		}
		if len(found) == 0 {
			return 0, malformed("reserve", reply)
		}
		packed, err := found[0].ToString()
		if err != nil {
			return 0, malformed("reserve", reply)
		}
		if err := readOutcome(packed, &out[i]); err != nil {
			return 0, fmt.Errorf("stock: reserve: %w", err)
		}
		found = found[1:]
	}
	return epoch, nil
}

// readOutcome reads what reserve says of an order it found: its record, and one byte
// with the state of its batch.
func readOutcome(packed string, out *Outcome) error {
	r, state, err := readRecord(packed, "")
	if err != nil {
		return err
	}
	if len(state) != 1 {
		return errPacked
	}
	out.OrderID, out.BatchID, out.Quantity, out.Returned = r.OrderID, r.BatchID, r.Quantity, r.Returned
	out.Batch = State(state[0])
	return nil
}

func formatInt(n int64) string { return strconv.FormatInt(n, 10) }

func formatMillis(t time.Time) string { return formatInt(t.UnixMilli()) }
