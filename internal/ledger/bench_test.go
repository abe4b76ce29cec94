package ledger

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"flashgate/internal/sale"
)

// The size of a call in the benchmarks: what a worker merges under load.
const benchBatches, benchOrders = 50, 64

// benchCalls are calls of fresh orders of one sale, with user ids and keys as long as UUIDs.
func benchCalls(saleID string, n int) [][]sale.Batch {
	calls := make([][]sale.Batch, n)
	for c := range calls {
		for b := range benchBatches {
			orders := make([]sale.Order, benchOrders)
			for o := range orders {
				number := testIDs.Next(0) // scattered like UUIDs: users come in no order
				user := fmt.Sprintf("%016x-%04d-%04d-%04d-%04d", uint64(number)*0x9E3779B97F4A7C15, c, b, o, 0)[:36]
				orders[o] = order(saleID, user, fmt.Sprintf("%036x", number), 1)
			}
			calls[c] = append(calls[c], batch(orders...))
		}
	}
	return calls
}

// BenchmarkApply is the hot path of the ledger: 50 batches of 64 orders a call.
func BenchmarkApply(b *testing.B) {
	for _, engine := range []struct {
		name    string
		options func(testing.TB) Options
	}{{"mariadb", mariadbOptions}, {"sqlite", sqliteOptions}} {
		for _, workers := range []int{1, 4} {
			b.Run(fmt.Sprintf("%s/workers=%d", engine.name, workers), func(b *testing.B) {
				r := newRig(b, engine.options(b))
				calls := benchCalls(r.newSale(b, sale.MaxTotal, 2), b.N)
				inParallel(b, workers, func(i int) error {
					_, err := r.Apply(context.Background(), calls[i])
					return err
				})
			})
		}
	}
}

// BenchmarkBareInsert is what BenchmarkApply is measured against: the same rows in one
// transaction, one multi-row INSERT a batch, and nothing else.
func BenchmarkBareInsert(b *testing.B) {
	for _, workers := range []int{1, 4} {
		b.Run(fmt.Sprintf("mariadb/workers=%d", workers), func(b *testing.B) {
			r := newRig(b, mariadbOptions(b))
			calls := benchCalls(r.newSale(b, sale.MaxTotal, 2), b.N)
			row := "(?" + strings.Repeat(",?", len(orderColumns)-1) + ")"
			query := "INSERT INTO orders (" + strings.Join(orderColumns, ",") + ") VALUES " + row + strings.Repeat(","+row, benchOrders-1)
			at := now().text()
			inParallel(b, workers, func(i int) error {
				tx, err := r.pools[0].Begin()
				if err != nil {
					return err
				}
				defer func() { _ = tx.Rollback() }()
				for _, batch := range calls[i] {
					var args []any
					for j := range batch.Orders {
						o := &batch.Orders[j]
						args = append(args, int64(o.ID), o.SaleID, o.UserID, o.RequestKey, o.RequestKey, o.Quantity, o.AmountCents,
							string(sale.PendingPayment), "", int64(batch.ID), at, at)
					}
					if _, err := tx.Exec(query, args...); err != nil {
						return err
					}
				}
				return tx.Commit()
			})
		})
	}
}

// inParallel runs f(0) … f(b.N-1) on workers goroutines and reports orders a second.
func inParallel(b *testing.B, workers int, f func(i int) error) {
	b.ReportAllocs()
	b.ResetTimer()
	var next atomic.Int64
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < b.N; i = int(next.Add(1)) - 1 {
				if err := f(i); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	require.False(b, b.Failed())
	b.ReportMetric(float64(b.N)*benchBatches*benchOrders/b.Elapsed().Seconds(), "orders/s")
}

// BenchmarkOrdersByID is how shoppers are told how their orders stand: many of them at once.
func BenchmarkOrdersByID(b *testing.B) {
	r := newRig(b, mariadbOptions(b))
	calls := benchCalls(r.newSale(b, sale.MaxTotal, 2), 1)
	_, err := r.Apply(context.Background(), calls[0])
	require.NoError(b, err)
	var ids []sale.ID
	for _, o := range calls[0][0].Orders {
		ids = append(ids, o.ID)
	}
	b.ReportAllocs()
	for b.Loop() {
		found, err := r.OrdersByID(context.Background(), ids)
		require.NoError(b, err)
		require.Len(b, found, len(ids))
	}
}
