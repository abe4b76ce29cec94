package purchase

import (
	"context"
	"log/slog"

	"flashgate/internal/bus"
	"flashgate/internal/sale"
	"flashgate/internal/stock"
)

// CheckStock is the part of stock.Store that a check-back uses.
type CheckStock interface {
	Release(ctx context.Context, saleID string, batch sale.ID, epoch int64, orders []sale.Order) (stock.State, error)
	Adopt(ctx context.Context, b *sale.Batch) (stock.State, error)
}

// Checker answers the bus about half messages whose end it has not seen, from what
// Redis knows of the batch. Any process can answer for any gateway: what it needs
// is in Redis and in the message.
//
//	RESERVED                      → VOID, ROLLBACK: nobody has been promised anything
//	VOID                          → ROLLBACK
//	CONFIRMED, or settled         → COMMIT
//	unknown, same epoch           → VOID, ROLLBACK: a confirm that comes late finds it gone
//	unknown, Redis rebuilt since  → adopted as CONFIRMED, COMMIT: it may have been promised
//	Redis away or not loaded      → UNKNOWN: asked again
//
// Both VOID and CONFIRMED are on the replicas before they are acted upon.
func Checker(s CheckStock, log *slog.Logger) bus.Checker {
	if log == nil {
		log = slog.Default()
	}
	return func(ctx context.Context, b *sale.Batch) bus.Decision {
		state, err := s.Release(ctx, b.SaleID, b.ID, b.Epoch, b.Orders)
		if err == nil && state == stock.StateOtherEpoch {
			state, err = s.Adopt(ctx, b)
		}
		d := bus.Unknown
		if err == nil {
			switch state {
			case stock.StateVoid:
				d = bus.Rollback
			case stock.StateConfirmed, stock.StateSettled:
				d = bus.Commit
			}
		}
		log.Info("check-back", "sale", b.SaleID, "batch", b.ID, "state", state, "answer", d, "err", err)
		return d
	}
}
