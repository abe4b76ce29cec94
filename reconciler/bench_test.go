package reconciler

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"flashgate/internal/sale"
	"flashgate/internal/storetest"
)

// BenchmarkRebuild loads a sale whose orders are all in the ledger into Redis, on the real
// engines; the wait for half messages is left out.
func BenchmarkRebuild(b *testing.B) {
	for _, orders := range []int{10_000, 100_000, 1_000_000} {
		b.Run(fmt.Sprintf("orders=%d", orders), func(b *testing.B) {
			s := storetest.Real(b)
			sl := s.Sale(int64(orders)+1_000, 1)
			seed(b, s, sl, orders)
			// The last sale's keys must not weigh on the next one's.
			b.Cleanup(func() { s.LoseRedis(sl.ID) })
			r := newReconciler(s, func(o *Options) { o.LoadTimeout = 10 * time.Minute })
			heap := newHeapPeak()
			b.ResetTimer()
			for range b.N {
				b.StopTimer()
				s.LoseRedis(sl.ID)
				b.StartTimer()
				loaded, err := r.Load(context.Background(), sl.ID)
				require.NoError(b, err)
				require.True(b, loaded)
			}
			b.StopTimer()
			snap := s.Snapshot(sl.ID)
			require.Equal(b, int64(orders), snap.Held)
			require.Equal(b, int64(1_000), snap.Stock)
			b.ReportMetric(float64(orders)*float64(b.N)/b.Elapsed().Seconds(), "orders/s")
			b.ReportMetric(float64(heap.stop())/(1<<20), "MiB-heap-peak")
		})
	}
}

// seed writes settled orders of one unit, each of a user of its own, into the ledger.
func seed(b *testing.B, s *storetest.Stores, sl *sale.Sale, orders int) {
	const perBatch, perApply = 100, 50
	ids := sale.NewIDs(1, time.Now)
	uuid := func() string {
		random := make([]byte, 16)
		_, _ = rand.Read(random)
		h := hex.EncodeToString(random)
		return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
	}
	for done := 0; done < orders; {
		var batches []sale.Batch
		var batchIDs []sale.ID
		for range perApply {
			batch := sale.Batch{ID: ids.Next(0), SaleID: sl.ID}
			for range min(perBatch, orders-done) {
				user := uuid()
				batch.Orders = append(batch.Orders, sale.Order{
					ID: ids.Next(sale.ShardOf(user)), SaleID: sl.ID, UserID: user, RequestKey: uuid(), Quantity: 1, AmountCents: 100,
				})
				done++
			}
			if len(batch.Orders) > 0 {
				batches, batchIDs = append(batches, batch), append(batchIDs, batch.ID)
			}
		}
		_, err := s.Ledger.Apply(context.Background(), batches)
		require.NoError(b, err)
		require.NoError(b, s.Ledger.MarkSettled(context.Background(), batchIDs))
	}
}

// heapPeak watches how much of the heap is in use.
type heapPeak struct {
	done, ended chan struct{}
	most        uint64
}

func newHeapPeak() *heapPeak {
	runtime.GC()
	h := &heapPeak{done: make(chan struct{}), ended: make(chan struct{})}
	go func() {
		defer close(h.ended)
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for {
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			h.most = max(h.most, m.HeapInuse)
			select {
			case <-h.done:
				return
			case <-tick.C:
			}
		}
	}()
	return h
}

func (h *heapPeak) stop() uint64 {
	close(h.done)
	<-h.ended
	return h.most
}
