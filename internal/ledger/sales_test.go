package ledger

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"flashgate/internal/sale"
)

func requireCode(t require.TestingT, code sale.Code, err error) {
	require.Error(t, err)
	require.Equal(t, code, sale.CodeOf(err), "%v", err)
}

func testCreateSale(t *testing.T, r *rig) {
	ctx := context.Background()
	s := testSale("created-1")
	s.Status = ""
	created, err := r.CreateSale(ctx, &s)
	require.NoError(t, err)
	require.True(t, created)
	created, err = r.CreateSale(ctx, &s)
	require.NoError(t, err)
	require.False(t, created, "the same again changes nothing")

	want := s
	want.Status, want.Version = sale.Draft, 1
	got, err := r.Sale(ctx, s.ID)
	require.NoError(t, err)
	require.Equal(t, want, got)
	inventory, err := r.Inventory(ctx, s.ID)
	require.NoError(t, err)
	require.Equal(t, Inventory{SaleID: s.ID, Total: 100, Available: 100, Version: 1}, inventory)
	require.EqualValues(t, 1, r.count(t, "SELECT COUNT(*) FROM inventory_log WHERE sale_id = ? AND kind = 'CREATE' AND total_after = 100", s.ID))

	for name, alter := range map[string]func(s *sale.Sale){
		"title":          func(s *sale.Sale) { s.Title += "!" },
		"price_cents":    func(s *sale.Sale) { s.PriceCents++ },
		"currency":       func(s *sale.Sale) { s.Currency = "EUR" },
		"total":          func(s *sale.Sale) { s.Total++ },
		"per_user_limit": func(s *sale.Sale) { s.PerUserLimit++ },
		"starts_at":      func(s *sale.Sale) { s.StartsAt = s.StartsAt.Add(time.Millisecond) },
		"ends_at":        func(s *sale.Sale) { s.EndsAt = s.EndsAt.Add(time.Second) },
	} {
		other := s
		alter(&other)
		_, err := r.CreateSale(ctx, &other)
		requireCode(t, sale.CodeConflict, err)
		require.ErrorContains(t, err, name)
	}

	upper := testSale("CREATED-1")
	created, err = r.CreateSale(ctx, &upper)
	require.NoError(t, err)
	require.True(t, created, "ids that differ in case are two sales")

	for name, alter := range map[string]func(s *sale.Sale){
		"id":     func(s *sale.Sale) { s.ID = "a b" },
		"total":  func(s *sale.Sale) { s.Total = 0 },
		"status": func(s *sale.Sale) { s.Status = "ENDED" },
		"title":  func(s *sale.Sale) { s.Title = "\xff" },
	} {
		bad := testSale("bad")
		alter(&bad)
		_, err := r.CreateSale(ctx, &bad)
		require.Equal(t, sale.CodeInvalid, sale.CodeOf(err), "%s: %v", name, err)
	}
	_, err = r.Sale(ctx, "bad")
	requireCode(t, sale.CodeSaleNotFound, err)
	_, err = r.Inventory(ctx, "bad")
	requireCode(t, sale.CodeSaleNotFound, err)
}

func testSetStatus(t *testing.T, r *rig) {
	ctx := context.Background()
	for _, c := range []struct {
		from, to sale.Status
		changed  bool
		code     sale.Code
	}{
		{sale.Draft, sale.Opened, true, ""},
		{sale.Opened, sale.Paused, true, ""},
		{sale.Paused, sale.Opened, true, ""},
		{sale.Draft, sale.Draft, false, ""},
		{sale.Opened, sale.Opened, false, ""},
		{sale.Paused, sale.Paused, false, ""},
		{sale.Draft, sale.Paused, false, sale.CodeConflict},
		{sale.Opened, sale.Draft, false, sale.CodeConflict},
		{sale.Paused, sale.Draft, false, sale.CodeConflict},
		{sale.Opened, "ENDED", false, sale.CodeConflict},
	} {
		s := testSale("status-" + string(c.from) + "-" + string(c.to))
		s.Status = c.from
		_, err := r.CreateSale(ctx, &s)
		require.NoError(t, err)
		changed, err := r.SetStatus(ctx, s.ID, c.to)
		require.Equal(t, c.changed, changed, "%s to %s", c.from, c.to)
		want := c.to
		if c.code != "" {
			requireCode(t, c.code, err)
			want = c.from
		} else {
			require.NoError(t, err)
		}
		got, err := r.Sale(ctx, s.ID)
		require.NoError(t, err)
		require.Equal(t, want, got.Status)
	}
	_, err := r.SetStatus(ctx, "none", sale.Opened)
	requireCode(t, sale.CodeSaleNotFound, err)
}

func testSales(t *testing.T, r *rig) {
	ctx := context.Background()
	early, twin, late := testSale("order-z"), testSale("order-b"), testSale("order-a")
	early.StartsAt = early.StartsAt.Add(-24 * time.Hour)
	twin.StartsAt = twin.StartsAt.Add(24 * time.Hour)
	twin.EndsAt = twin.EndsAt.Add(48 * time.Hour)
	late.StartsAt, late.EndsAt = twin.StartsAt, twin.EndsAt
	for _, s := range []sale.Sale{late, twin, early} {
		_, err := r.CreateSale(ctx, &s)
		require.NoError(t, err)
	}
	sales, err := r.Sales(ctx)
	require.NoError(t, err)
	var got []string
	for i, s := range sales {
		if len(s.ID) == len("order-a") && s.ID[:6] == "order-" {
			got = append(got, s.ID)
		}
		if i > 0 {
			require.False(t, s.StartsAt.Before(sales[i-1].StartsAt))
		}
	}
	require.Equal(t, []string{"order-z", "order-a", "order-b"}, got)
}

func testNextEpoch(t *testing.T, r *rig) {
	id := r.newSale(t, 1, 1)
	const callers, each = 4, 5
	var mu sync.Mutex
	seen := map[int64]bool{}
	var wg sync.WaitGroup
	for range callers {
		wg.Go(func() {
			for range each {
				epoch, err := r.NextEpoch(context.Background(), id)
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				seen[epoch] = true
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	require.Len(t, seen, callers*each, "no epoch is handed out twice")
	s, err := r.Sale(context.Background(), id)
	require.NoError(t, err)
	require.EqualValues(t, callers*each, s.Epoch)
	_, err = r.NextEpoch(context.Background(), "none")
	requireCode(t, sale.CodeSaleNotFound, err)
}

func testSetTotal(t *testing.T, r *rig) {
	ctx := context.Background()
	id := r.newSale(t, 10, 5)
	r.apply(t, batch(order(id, "ann", "", 4)))
	set := func(total, version int64) (bool, error) { return r.SetTotal(ctx, id, total, version, "restock 'em") }
	want := func(total, available, version int64) {
		got, err := r.Inventory(ctx, id)
		require.NoError(t, err)
		require.Equal(t, Inventory{SaleID: id, Total: total, Available: available, Locked: 4, Version: version}, got)
		s, err := r.Sale(ctx, id)
		require.NoError(t, err)
		require.Equal(t, total, s.Total)
		require.Equal(t, version, s.Version)
		r.checkInvariants(t, id)
	}
	changed, err := set(15, 2)
	require.NoError(t, err)
	require.True(t, changed)
	want(15, 11, 2)
	changed, err = set(15, 2)
	require.NoError(t, err)
	require.False(t, changed, "at the version already")
	changed, err = set(99, 1)
	require.NoError(t, err)
	require.False(t, changed, "past the version")
	changed, err = set(4, 3)
	require.NoError(t, err)
	require.True(t, changed, "a cut down to what is locked")
	want(4, 0, 3)
	_, err = set(3, 4)
	requireCode(t, sale.CodeConflict, err)
	_, err = set(10, 5)
	requireCode(t, sale.CodeConflict, err)
	_, err = set(0, 4)
	requireCode(t, sale.CodeInvalid, err)
	_, err = set(sale.MaxTotal+1, 4)
	requireCode(t, sale.CodeInvalid, err)
	_, err = r.SetTotal(ctx, "none", 1, 2, "")
	requireCode(t, sale.CodeSaleNotFound, err)
	want(4, 0, 3)
	require.EqualValues(t, 1, r.count(t, "SELECT COUNT(*) FROM inventory_log WHERE sale_id = ? AND kind = 'TOTAL'"+
		" AND total_before = 10 AND total_after = 15 AND units = 5 AND version = 2 AND reason = ?", id, "restock 'em"))
	require.EqualValues(t, 2, r.count(t, "SELECT COUNT(*) FROM inventory_log WHERE sale_id = ? AND kind = 'TOTAL'", id))
}
