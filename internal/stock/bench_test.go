package stock

import (
	"fmt"
	"testing"
	"time"

	"flashgate/internal/sale"
)

// benchBatch is how many orders a batch of a benchmark has.
const benchBatch = 64

// eachEngine runs a benchmark on each engine, on a sale that never sells out.
func eachEngine(b *testing.B, run func(b *testing.B, f *fixture)) {
	for _, e := range engines {
		b.Run(e.name, func(b *testing.B) {
			f := newFixture(b, e.open(b))
			f.sale.Total = sale.MaxTotal
			f.mustLoad(b, LoadSource{})
			b.ReportAllocs()
			run(b, f)
		})
	}
}

// benchOrder is the n-th shopper's, as long as real ones.
func (f *fixture) benchOrder(n int) sale.Order {
	return f.order(fmt.Sprintf("0190b3a0-7c1e-7d3a-9d0a-%012x", n), fmt.Sprintf("%08x-7c1e-4d3a-8d0a-5b6f2f1e8c4d", n), 1)
}

// benchReserve reserves a batch under a new id, and checks what becomes of its last order.
func (f *fixture) benchReserve(b *testing.B, batch *sale.Batch, out []Outcome, want Verdict) {
	batch.ID = f.ids.Next(0)
	if _, err := f.Reserve(b.Context(), batch, f.terms, time.Hour, out); err != nil {
		b.Fatal(err)
	}
	if got := out[len(out)-1].Verdict; got != want {
		b.Fatal(got)
	}
}

func reportOrders(b *testing.B) {
	b.ReportMetric(float64(b.N*benchBatch)/b.Elapsed().Seconds(), "orders/s")
}

// BenchmarkReserve reserves batches of 64 orders of users never seen before, all of
// whom win: the most a reserve can have to do.
func BenchmarkReserve(b *testing.B) {
	eachEngine(b, func(b *testing.B, f *fixture) {
		batch, out := f.batch(make([]sale.Order, benchBatch)...), make([]Outcome, benchBatch)
		n := 0
		for b.Loop() {
			b.StopTimer()
			for i := range batch.Orders {
				n++
				batch.Orders[i] = f.benchOrder(n)
			}
			b.StartTimer()
			f.benchReserve(b, batch, out, Reserved)
		}
		reportOrders(b)
	})
}

// BenchmarkReplay reserves batches of 64 orders that are there already, all in one
// confirmed batch, as when a crowd that was sold to presses again.
func BenchmarkReplay(b *testing.B) {
	eachEngine(b, func(b *testing.B, f *fixture) {
		batch, out := f.batch(make([]sale.Order, benchBatch)...), make([]Outcome, benchBatch)
		for i := range batch.Orders {
			batch.Orders[i] = f.benchOrder(i)
		}
		f.reserve(b, batch)
		f.mustConfirm(b, batch, StateConfirmed)
		for b.Loop() {
			f.benchReserve(b, batch, out, Replay)
		}
		reportOrders(b)
	})
}

// BenchmarkConfirm confirms batches of 64 orders, with a WAIT for one replica on the
// cluster and none on miniredis.
func BenchmarkConfirm(b *testing.B) {
	eachEngine(b, func(b *testing.B, f *fixture) {
		n := 0
		for b.Loop() {
			b.StopTimer()
			batch := f.batch(make([]sale.Order, benchBatch)...)
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
