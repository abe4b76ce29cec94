package ledger

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"flashgate/internal/sale"
)

func TestReports(t *testing.T) {
	onEngines(t, func(t *testing.T, r *rig) {
		ctx := t.Context()
		at := time.Date(2026, 11, 21, 10, 0, 0, 0, time.UTC)
		add := func(saleID, trigger string, began time.Time, items int) ReconcileReport {
			report := ReconcileReport{
				SaleID: saleID, Trigger: trigger, Holder: "me", LedgerOrders: 10, RedisRecords: 9, Younger: 8, OpenBatches: 7,
				Found: 6, Repaired: 5, Left: 1, Helped: 4, Kinds: []KindCount{{Kind: "STOCK_DRIFT", Found: 6, Repaired: 5, Left: 1, Units: 12}},
				Note: "a note", StartedAt: began, FinishedAt: began.Add(1500 * time.Millisecond), Unlisted: 3,
			}
			for i := range items {
				report.Items = append(report.Items, ReconcileItem{Kind: "STOCK_DRIFT", OrderID: sale.ID(i), BatchID: 2, UserID: "\xffuser",
					Units: -3, Outcome: ItemLeft, Detail: "what", Plan: "how", Why: "why"})
			}
			require.NoError(t, r.AddReconcileReport(ctx, &report))
			require.Positive(t, report.ID)
			return report
		}
		first := add("one", "schedule", at, 1000)
		second := add("two", "schedule", at.Add(time.Hour), 0)
		third := add("one", "once", at.Add(2*time.Hour), 1)

		read, err := r.ReconcileReport(ctx, first.ID)
		require.NoError(t, err)
		require.Equal(t, first, read)
		require.Equal(t, 1500*time.Millisecond, read.Took())
		_, err = r.ReconcileReport(ctx, third.ID+100)
		require.Equal(t, sale.CodeNotFound, sale.CodeOf(err))

		ids := func(saleID string, limit int) (ids []int64) {
			reports, err := r.ReconcileReports(ctx, saleID, limit)
			require.NoError(t, err)
			for i := range reports {
				require.Empty(t, reports[i].Items)
				ids = append(ids, reports[i].ID)
			}
			return ids
		}
		require.Equal(t, []int64{third.ID, second.ID, first.ID}, ids("", 10))
		require.Equal(t, []int64{third.ID, second.ID}, ids("", 2))
		require.Equal(t, []int64{third.ID, first.ID}, ids("one", 10))

		last, err := r.LastReconcile(ctx, "schedule")
		require.NoError(t, err)
		require.True(t, last.Equal(second.StartedAt))
		last, err = r.LastReconcile(ctx, "never")
		require.NoError(t, err)
		require.True(t, last.IsZero())

		bySale, err := r.LastReconciles(ctx, "schedule")
		require.NoError(t, err)
		require.Equal(t, map[string]time.Time{"one": first.StartedAt, "two": second.StartedAt}, bySale)

		purged, err := r.PurgeReconcileReports(ctx, third.StartedAt)
		require.NoError(t, err)
		require.Equal(t, 2, purged)
		require.Equal(t, []int64{third.ID}, ids("", 10))
		require.EqualValues(t, 1, r.count(t, "SELECT COUNT(*) FROM reconcile_items"))
	})
}
