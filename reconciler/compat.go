package reconciler

import (
	"context"

	"flashgate/internal/ledger"
)

const TriggerSchedule = "schedule"

func Early(why string) string { return "early: " + why }

func (r *Reconciler) reconcileOld(ctx context.Context, saleID, trigger string) (ledger.ReconcileReport, error) {
	began := r.o.Now()
	rep, err := r.Once(ctx, Query{SaleID: saleID})
	out := ledger.ReconcileReport{SaleID: saleID, Trigger: trigger, Left: int64(rep.Left), StartedAt: began, FinishedAt: r.o.Now()}
	if err == nil {
		err = r.o.Ledger.AddReconcileReport(ctx, &out)
	}
	return out, err
}
