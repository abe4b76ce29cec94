package stock

import (
	"context"
	"fmt"

	"github.com/redis/rueidis"

	"flashgate/internal/sale"
)

// What becomes of a batch once it is RESERVED. Each call first looks at the batch
// alone, which is the common case and cheap; only when it is absent are its orders
// sent, for the script to see whether a buyer's record names it, and then to decide.

const (
	lookOnly  = "0"
	decideNow = "1"

	// settleBatches is how many batches one settle call takes: at 64 orders a batch,
	// adopting all of them, it keeps Redis for about 20 ms.
	settleBatches = 64
)

// Confirm promises a batch: StateConfirmed or StateSettled = yes and on the replicas;
// StateVoid = gone, on the replicas too; StateOtherEpoch = unknown, nothing was
// written. Idempotent: after an error ask again. b.Orders may be some of its orders.
func (s *Store) Confirm(ctx context.Context, b *sale.Batch) (State, error) {
	state, err := s.decide(ctx, confirmScript, b.SaleID, b.ID, b.Epoch, lookOnly, nil)
	if err != nil || state != StateAbsent {
		return state, err
	}
	return s.decide(ctx, confirmScript, b.SaleID, b.ID, b.Epoch, decideNow, b.Orders)
}

// Release voids a RESERVED batch and gives its units back. With orders nil an absent
// batch is left alone (StateAbsent); with orders, absent and unnamed is written VOID,
// unless epoch is not 0 and not the sale's (StateOtherEpoch). StateVoid,
// StateConfirmed and StateSettled are returned only once replicated. Idempotent.
func (s *Store) Release(ctx context.Context, saleID string, batch sale.ID, epoch int64, orders []sale.Order) (State, error) {
	state, err := s.decide(ctx, releaseScript, saleID, batch, epoch, lookOnly, nil)
	if err != nil || state != StateAbsent || orders == nil {
		return state, err
	}
	return s.decide(ctx, releaseScript, saleID, batch, epoch, decideNow, orders)
}

func (s *Store) decide(ctx context.Context, sc *script, saleID string, batch sale.ID, epoch int64, mode string, orders []sale.Order) (State, error) {
	packed, err := packOrders(orders)
	if err != nil {
		return StateAbsent, fmt.Errorf("%w: %s: %w", ErrNotRun, sc.name, err)
	}
	return readState(s.runReplicated(ctx, sc, saleID, packID(batch), formatInt(epoch), mode, packed))
}

// Adopt writes b CONFIRMED and gives a HELD record to each of its orders that has no
// record, if need be of units that are not there; used by a check-back that finds
// Redis rebuilt (StateOtherEpoch). A batch that Redis knows, by itself or by a buyer's
// record, is left as it is. If b is of the sale's present epoch, Redis forgot nothing:
// it is voided. A sold-out lease is waited for, if a user would get their first record behind
// it. Idempotent; replicated.
func (s *Store) Adopt(ctx context.Context, b *sale.Batch) (State, error) {
	packed, err := packOrders(b.Orders)
	if err != nil {
		return StateAbsent, fmt.Errorf("%w: adopt: %w", ErrNotRun, err)
	}
	var code int64
	err = pastLease(ctx, func() (err error) {
		code, err = s.runReplicated(ctx, adoptScript, b.SaleID, packID(b.ID), formatInt(b.Epoch), packed)
		return err
	})
	return readState(code, err)
}

// readState is what a script answered, unless an error makes it worth nothing.
func readState(code int64, err error) (State, error) {
	if err != nil {
		return StateAbsent, err
	}
	if code < 0 || code > int64(StateOtherEpoch) {
		return StateAbsent, malformed("batch state", code)
	}
	return State(code), nil
}

// Settle removes batches the ledger has consumed. active is asked for the ledger's
// active orders of those that Redis does not hold as RESERVED or CONFIRMED; of these,
// orders without a record are adopted. It returns the ids that are settled now, with
// an error too: the rest is still owed.
func (s *Store) Settle(ctx context.Context, saleID string, ids []sale.ID, active func(context.Context, []sale.ID) (map[sale.ID][]sale.Order, error)) ([]sale.ID, error) {
	settled := make([]sale.ID, 0, len(ids))
	var rest []sale.ID
	for slice := range slices(ids, settleBatches) {
		done, err := s.settle(ctx, saleID, "remove", slice, nil)
		if err != nil {
			return settled, err
		}
		for i, id := range slice {
			if done[i] == '1' {
				settled = append(settled, id)
			} else {
				rest = append(rest, id)
			}
		}
	}
	for slice := range slices(rest, settleBatches) {
		orders, err := active(ctx, slice)
		if err != nil {
			return settled, err
		}
		if _, err := s.settle(ctx, saleID, "adopt", slice, orders); err != nil {
			return settled, err
		}
		settled = append(settled, slice...)
	}
	return settled, nil
}

func (s *Store) settle(ctx context.Context, saleID, mode string, ids []sale.ID, orders map[sale.ID][]sale.Order) (string, error) {
	args := make([]string, 0, 1+2*len(ids))
	args = append(args, mode)
	for _, id := range ids {
		packed, err := packOrders(orders[id])
		if err != nil {
			return "", fmt.Errorf("%w: settle: %w", ErrNotRun, err)
		}
		args = append(args, packID(id), packed)
	}
	var reply []rueidis.RedisMessage
	err := pastLease(ctx, func() (err error) {
		_, reply, err = s.runReady(ctx, s.opts.CallTimeout, settleScript, saleID, args...)
		return err
	})
	if err != nil {
		return "", err
	}
	if len(reply) != 1 {
		return "", malformed("settle", reply)
	}
	done, err := reply[0].ToString()
	if err != nil || len(done) != len(ids) {
		return "", malformed("settle", reply)
	}
	return done, nil
}
