package operator

import (
	"context"
	"fmt"

	"flashgate/internal/ledger"
	"flashgate/internal/sale"
)

const (
	// maxRows bounds the lists of tasks, dead batches and reports.
	maxRows = 1000
	// fewReports is how many reports are listed when nobody says how many.
	fewReports = 20
)

// Sales lists every sale, drafts included.
func (a *Admin) Sales(ctx context.Context) ([]SaleView, error) {
	sales, err := a.Ledger.Sales(ctx)
	if err != nil {
		return nil, err
	}
	views := make([]SaleView, len(sales))
	for i := range sales {
		if views[i], err = a.view(ctx, &sales[i]); err != nil {
			return nil, err
		}
	}
	return views, nil
}

// Sale shows one sale.
func (a *Admin) Sale(ctx context.Context, id string) (SaleView, error) {
	s, err := a.Ledger.Sale(ctx, id)
	if err != nil {
		return SaleView{}, err
	}
	return a.view(ctx, &s)
}

func (a *Admin) view(ctx context.Context, s *sale.Sale) (SaleView, error) {
	v := SaleView{
		SaleSpec: SaleSpec{
			ID: s.ID, Title: s.Title, Total: s.Total, PriceCents: s.PriceCents, Currency: s.Currency,
			PerUserLimit: s.PerUserLimit, StartsAt: s.StartsAt, EndsAt: s.EndsAt,
		},
		Status: s.Status, Epoch: s.Epoch, Version: s.Version,
	}
	inv, err := a.Ledger.Inventory(ctx, s.ID)
	if err != nil {
		return v, err
	}
	v.Inventory = &InventoryView{Total: inv.Total, Available: inv.Available, Locked: inv.Locked, Sold: inv.Sold}
	// A list is worth having while Redis is away.
	snap, err := a.Stock.Snapshot(ctx, s.ID)
	if err != nil {
		v.Problem = err.Error()
		return v, nil //nolint:nilerr // shown in the view
	}
	v.Redis = &RedisView{
		Loaded: snap.Loaded, Stock: snap.Stock, Held: snap.Held, Total: snap.Total, Version: snap.Version,
		Epoch: snap.Epoch, Pending: snap.Pending, Batches: snap.Batches,
	}
	return v, nil
}

// Reports lists reconcile reports of one sale or ("") of all, newest first.
func (a *Admin) Reports(ctx context.Context, saleID string, limit int) ([]ledger.ReconcileReport, error) {
	switch {
	case limit < 0 || limit > maxRows:
		return nil, &sale.Error{Code: sale.CodeInvalid, Detail: fmt.Sprintf("limit: want 1–%d", maxRows)}
	case limit == 0:
		limit = fewReports
	}
	return a.Ledger.ReconcileReports(ctx, saleID, limit)
}

// Report reads one reconcile report with its items. Error: NOT_FOUND.
func (a *Admin) Report(ctx context.Context, id int64) (ledger.ReconcileReport, error) {
	return a.Ledger.ReconcileReport(ctx, id)
}
