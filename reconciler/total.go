package reconciler

import (
	"context"
	"errors"

	"flashgate/internal/ledger"
	"flashgate/internal/sale"
)

// LevelTotal brings the side whose total is behind to the other's version. A cut
// that the ledger can no longer cover is taken back on both sides. Of two totals of one
// version the ledger's stays: they are a cut and a raise at the same moment, and the
// raise, written in the ledger first, was promised. Nothing but a hand puts Redis's above
// it, and to follow that would sell what is not there.
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
		return r.adjust(ctx, saleID, inv.Total, inv.Version)
	case snap.Version > inv.Version:
		// Asked again, to have it on the replicas: a cut that the ledger has and a failover
		// takes back would be sold, and then refused by the ledger.
		if _, err := r.o.Stock.Adjust(ctx, saleID, snap.Total, snap.Version); err != nil {
			return err
		}
		_, err := r.o.Ledger.SetTotal(ctx, saleID, snap.Total, snap.Version, "levelled with Redis")
		if sale.CodeOf(err) == sale.CodeConflict {
			return r.takeBackCut(ctx, inv, snap.Version)
		}
		return err
	case snap.Total != inv.Total:
		version := inv.Version + 1
		if _, err := r.o.Ledger.SetTotal(ctx, saleID, inv.Total, version, "two totals of one version: the ledger's stays"); err != nil {
			return err
		}
		return r.adjust(ctx, saleID, inv.Total, version)
	}
	return nil
}

// adjust moves Redis to a total of the ledger.
func (r *Reconciler) adjust(ctx context.Context, saleID string, total, version int64) error {
	ok, err := r.o.Stock.Adjust(ctx, saleID, total, version)
	if err == nil && !ok {
		err = errors.New("fewer units are free in Redis than the cut takes")
	}
	return err
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
