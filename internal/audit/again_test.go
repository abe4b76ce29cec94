package audit

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"flashgate/internal/sale"
	"flashgate/internal/storetest"
)

// TestWhatMovesDuringAComparisonIsNoDifference: each difference is found while an order
// is on its way, and is gone when it is looked at again.
func TestWhatMovesDuringAComparisonIsNoDifference(t *testing.T) {
	ctx := context.Background()
	s := storetest.Embedded(t)
	for _, c := range []struct {
		kind   Kind
		before func(sl *sale.Sale, b *sale.Batch)
		after  func(sl *sale.Sale, b *sale.Batch)
	}{
		{ConsumedNotSettled,
			func(sl *sale.Sale, b *sale.Batch) { s.Confirm(sl, b); s.Apply(b) },
			func(_ *sale.Sale, b *sale.Batch) { s.Settle(b) }},
		{ConfirmedNotPersisted,
			func(sl *sale.Sale, b *sale.Batch) { s.Confirm(sl, b) },
			func(_ *sale.Sale, b *sale.Batch) { s.Apply(b) }},
		{PersistedUnknownToRedis,
			func(_ *sale.Sale, b *sale.Batch) { s.Apply(b) },
			func(_ *sale.Sale, b *sale.Batch) { s.Settle(b) }},
	} {
		t.Run(string(c.kind), func(t *testing.T) {
			sl := s.LoadedSale(10, 2)
			b := s.Batch(sl, time.Hour, "a")
			c.before(sl, b)
			compare := &comparison{
				Auditor: &Auditor{Ledger: s.Ledger, Stock: s.Stock, Watermark: time.Minute, Hold: time.Minute},
				sale:    sl, open: map[sale.ID]bool{}, bound: sale.FirstIDAt(time.Now().Add(-time.Minute)),
			}
			require.NoError(t, compare.batches(ctx))
			require.NoError(t, compare.orders(ctx))
			require.Len(t, compare.findings, 1)
			f := &compare.findings[0]
			require.Equal(t, c.kind, f.Kind)
			c.after(sl, b)
			still, err := compare.again(ctx, f)
			require.NoError(t, err)
			require.False(t, still)
		})
	}
}
