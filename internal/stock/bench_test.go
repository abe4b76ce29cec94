package stock

import (
	"fmt"
	"testing"
	"time"

	"flashgate/internal/sale"
)

// BenchmarkReserve reserves batches of 64 orders of users never seen before, all of
// whom win: the most a reserve can have to do.
func BenchmarkReserve(b *testing.B) {
	const batchSize = 64
	for _, e := range engines {
		b.Run(e.name, func(b *testing.B) {
			f := newFixture(b, e.open(b))
			f.sale.Total = sale.MaxTotal
			f.mustLoad(b, LoadSource{})
			batch, out := f.batch(make([]sale.Order, batchSize)...), make([]Outcome, batchSize)
			n := 0
			b.ReportAllocs()
			for b.Loop() {
				b.StopTimer()
				batch.ID = f.ids.Next(0)
				for i := range batch.Orders {
					n++
					batch.Orders[i] = f.order(fmt.Sprintf("0190b3a0-7c1e-7d3a-9d0a-%012x", n), fmt.Sprintf("%08x-7c1e-4d3a-8d0a-5b6f2f1e8c4d", n), 1)
				}
				b.StartTimer()
				if _, err := f.Reserve(b.Context(), batch, f.terms, time.Hour, out); err != nil {
					b.Fatal(err)
				}
				if out[batchSize-1].Verdict != Reserved {
					b.Fatal(out[batchSize-1].Verdict)
				}
			}
			b.ReportMetric(float64(b.N*batchSize)/b.Elapsed().Seconds(), "orders/s")
		})
	}
}

// BenchmarkReplay reserves batches of 64 orders that are there already, all in one
// confirmed batch, as when a crowd that was sold to presses again.
func BenchmarkReplay(b *testing.B) {
	const batchSize = 64
	for _, e := range engines {
		b.Run(e.name, func(b *testing.B) {
			f := newFixture(b, e.open(b))
			f.sale.Total = sale.MaxTotal
			f.mustLoad(b, LoadSource{})
			batch, out := f.batch(make([]sale.Order, batchSize)...), make([]Outcome, batchSize)
			for i := range batch.Orders {
				batch.Orders[i] = f.order(fmt.Sprintf("0190b3a0-7c1e-7d3a-9d0a-%012x", i), fmt.Sprintf("%08x-7c1e-4d3a-8d0a-5b6f2f1e8c4d", i), 1)
			}
			f.reserve(b, batch)
			f.mustConfirm(b, batch, StateConfirmed)
			b.ReportAllocs()
			for b.Loop() {
				batch.ID = f.ids.Next(0)
				if _, err := f.Reserve(b.Context(), batch, f.terms, time.Hour, out); err != nil {
					b.Fatal(err)
				}
				if out[batchSize-1].Verdict != Replay {
					b.Fatal(out[batchSize-1].Verdict)
				}
			}
			b.ReportMetric(float64(b.N*batchSize)/b.Elapsed().Seconds(), "orders/s")
		})
	}
}

// BenchmarkConfirm confirms batches of 64 orders, with a WAIT for one replica on the
// cluster and none on miniredis.
func BenchmarkConfirm(b *testing.B) {
	const batchSize = 64
	for _, e := range engines {
		b.Run(e.name, func(b *testing.B) {
			f := newFixture(b, e.open(b))
			f.sale.Total = sale.MaxTotal
			f.mustLoad(b, LoadSource{})
			n := 0
			b.ReportAllocs()
			for b.Loop() {
				b.StopTimer()
				batch := f.batch(make([]sale.Order, batchSize)...)
				for i := range batch.Orders {
					n++
					batch.Orders[i] = f.order(fmt.Sprint("user", n), "", 1)
				}
				f.reserve(b, batch)
				b.StartTimer()
				f.mustConfirm(b, batch, StateConfirmed)
			}
		})
	}
}
