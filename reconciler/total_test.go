package reconciler

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"flashgate/internal/stock"
	"flashgate/internal/storetest"
)

// TestLedgerTakesNoCutThatMayBeLost: a cut that only the master knows would be sold again
// after a failover, and the ledger would cancel what was promised.
func TestLedgerTakesNoCutThatMayBeLost(t *testing.T) {
	ctx := context.Background()
	s := storetest.Real(t)
	sl := s.LoadedSale(10, 2)
	before, err := s.Ledger.Inventory(ctx, sl.ID)
	require.NoError(t, err)

	replicated := s.Stock
	s.Stock, err = stock.Open(stock.Options{
		Addresses: s.Nodes, Cluster: true, CallTimeout: 10 * time.Second,
		WaitReplicas: 5, WaitTimeout: time.Millisecond, // more than there are
	})
	require.NoError(t, err)
	t.Cleanup(s.Stock.Close)
	_, err = s.Stock.Adjust(ctx, sl.ID, 8, before.Version+1)
	require.ErrorIs(t, err, stock.ErrNotReplicated)
	require.Equal(t, int64(8), s.Snapshot(sl.ID).Total, "the master has taken it")
	require.ErrorIs(t, newReconciler(s).LevelTotal(ctx, sl.ID), stock.ErrNotReplicated)
	after, err := s.Ledger.Inventory(ctx, sl.ID)
	require.NoError(t, err)
	require.Equal(t, before, after)

	s.Stock = replicated
	require.NoError(t, newReconciler(s).LevelTotal(ctx, sl.ID))
	after, err = s.Ledger.Inventory(ctx, sl.ID)
	require.NoError(t, err)
	require.Equal(t, int64(8), after.Total)
	audited(t, s, sl.ID)
}
