package audit

import (
	"context"
	"fmt"
	"time"

	"flashgate/internal/ledger"
	"flashgate/internal/sale"
	"flashgate/internal/stock"
)

// Auditor compares the two stores.
type Auditor struct {
	Ledger *ledger.Ledger
	Stock  *stock.Store
	// Watermark is the age from which an order must stand in both stores. Younger
	// ones are in flight; and so is what the ledger consumed within that time, however
	// old the order is: workers may lag.
	Watermark time.Duration
	// Pace bounds the records and orders that are read a second; 0 = no bound.
	Pace int
}

// Audit checks the invariants on what is stored, for one sale or ("") all.
func (a *Auditor) Audit(ctx context.Context, saleID string) (Report, error) {
	began := time.Now()
	r := Report{OK: true, CheckedAt: began.UTC(), Watermark: a.Watermark.String()}
	sales, err := a.sales(ctx, saleID)
	if err != nil {
		return r, err
	}
	for i := range sales {
		s := &sales[i]
		compared, err := a.Compare(ctx, s, func(f Finding) error {
			r.add(f)
			return nil
		})
		if err != nil {
			return r, fmt.Errorf("audit of sale %s: %w", s.ID, err)
		}
		sr, err := a.saleReport(ctx, s.ID, compared)
		if err != nil {
			return r, fmt.Errorf("audit of sale %s: %w", s.ID, err)
		}
		r.Sales = append(r.Sales, sr)
		r.Accepted = append(r.Accepted, compared.Accepted...)
	}
	r.Took = time.Since(began).Round(time.Millisecond).String()
	return r, nil
}

func (a *Auditor) sales(ctx context.Context, saleID string) ([]sale.Sale, error) {
	if saleID == "" {
		return a.Ledger.Sales(ctx)
	}
	s, err := a.Ledger.Sale(ctx, saleID)
	return []sale.Sale{s}, err
}

func (a *Auditor) saleReport(ctx context.Context, saleID string, c Compared) (SaleReport, error) {
	snap, err := a.Stock.Snapshot(ctx, saleID)
	if err != nil {
		return SaleReport{}, err
	}
	balance := &c.Balance
	return SaleReport{
		SaleID: saleID, Total: balance.Total, Available: balance.Available, Locked: balance.Locked, Sold: balance.Sold,
		ActiveUnits: balance.Active(), Stock: snap.Stock, Held: snap.Held, Loaded: snap.Loaded,
		LedgerOrders: c.LedgerOrders, RedisRecords: c.RedisRecords, Younger: c.Younger, OpenBatches: c.OpenBatches,
		NotRecounted: c.NotRecounted, Accepted: c.AcceptedUnits,
	}, nil
}
