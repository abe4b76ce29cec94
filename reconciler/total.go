package reconciler

import (
	"context"
	"errors"

	"flashgate/internal/ledger"
	"flashgate/internal/sale"
)

// LevelTotal brings the side whose total is behind to the other's version. A cut
// that the ledger can no longer cover is taken back on both sides. Two totals of one
// version are a cut and a raise at the same moment: the raise was promised, the cut
// was refused, so the larger one stays.
func (r *Reconciler) LevelTotal(ctx context.Context, saleID string) error {
	// Read both afresh: the list of sales may be older than the snapshot.
	inv, err := r.o.Ledger.Inventory(ctx, saleID)
	if err != nil {
		return err
	}
	snap, err := r.o.Stock.Snapshot(ctx, saleID)
	if err != nil || !snap.Loaded {
		return err
	}
	switch {
	case snap.Version < inv.Version:
		ok, err := r.o.Stock.Adjust(ctx, saleID, inv.Total, inv.Version)
		if err == nil && !ok {
			err = errors.New("fewer units are free in Redis than the cut takes")
		}
		return err
	case snap.Version > inv.Version:
		_, err := r.o.Ledger.SetTotal(ctx, saleID, snap.Total, snap.Version, "levelled with Redis")
		if sale.CodeOf(err) == sale.CodeConflict {
			return r.takeBackCut(ctx, inv, snap.Version)
		}
		return err
	case snap.Total != inv.Total:
		total, version := max(snap.Total, inv.Total), inv.Version+1
		if _, err := r.o.Ledger.SetTotal(ctx, saleID, total, version, "a cut and a raise at one moment"); err != nil {
			return err
		}
		_, err := r.o.Stock.Adjust(ctx, saleID, total, version)
		return err
	}
	return nil
}

// takeBackCut ends a cut that Redis took and the ledger cannot: the units are sold.
func (r *Reconciler) takeBackCut(ctx context.Context, inv ledger.Inventory, cut int64) error {
	r.o.Log.Warn("a cut is taken back: the ledger has sold the units", "sale", inv.SaleID, "total", inv.Total)
	for _, version := range []int64{cut, cut + 1} {
		if _, err := r.o.Ledger.SetTotal(ctx, inv.SaleID, inv.Total, version, "cut taken back: the units are sold"); err != nil {
			return err
		}
	}
	_, err := r.o.Stock.Adjust(ctx, inv.SaleID, inv.Total, cut+1)
	return err
}
