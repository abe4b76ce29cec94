package bus

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
)

// BenchmarkSend sends batches of 50 orders from a number of goroutines, as flushers do.
func BenchmarkSend(b *testing.B) {
	for _, e := range engines {
		for _, senders := range []int{1, 8, 64} {
			b.Run(fmt.Sprintf("%s/senders=%d", e.name, senders), func(b *testing.B) {
				benchmarkSend(b, e.place(b), senders)
			})
		}
	}
}

func benchmarkSend(b *testing.B, open func(testing.TB, Options) testBus, senders int) {
	bus := open(b, Options{Check: answering(Commit), Logger: quiet(), Producers: 4})
	batch := newBatch(50)
	send(b, bus, batch, Rollback) // connected
	var left atomic.Int64
	left.Store(int64(b.N))
	b.ResetTimer()
	var wait sync.WaitGroup
	for range senders {
		wait.Go(func() {
			for left.Add(-1) >= 0 {
				if err := bus.Send(b.Context(), batch, func() Decision { return Commit }); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wait.Wait()
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "batches/s")
	b.ReportMetric(float64(b.N*len(batch.Orders))/b.Elapsed().Seconds(), "orders/s")
}
