package reconciler

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"flashgate/internal/audit"
	"flashgate/internal/bus"
	"flashgate/internal/enginetest"
	"flashgate/internal/ledger"
	"flashgate/internal/purchase"
	"flashgate/internal/sale"
	"flashgate/internal/storetest"
	"flashgate/worker"
)

// losing is a bus that loses every tenth end: a check-back has to find the outcome.
type losing struct {
	bus.Bus
	sent atomic.Int64
}

func (l *losing) Send(ctx context.Context, b *sale.Batch, local func() bus.Decision) error {
	return l.Bus.Send(ctx, b, func() bus.Decision {
		if d := local(); l.sent.Add(1)%10 != 0 {
			return d
		}
		return bus.Unknown
	})
}

// retryAfter is how long a shopper who met 503 waits.
const retryAfter = 20 * time.Millisecond

// shoppers buys one unit a shopper, each until told a definite yes or no.
type shoppers struct {
	protocol *purchase.Protocol
	sale     *sale.Sale
	ids      *sale.IDs

	next     atomic.Int64
	mu       sync.Mutex
	promised []sale.ID // 202
	refused  map[sale.Code]int
}

func (s *shoppers) promises() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.promised)
}

// shop sends shoppers until the sale is sold out, or ctx ends.
func (s *shoppers) shop(ctx context.Context) {
	for ctx.Err() == nil {
		user := fmt.Sprint("shopper-", s.next.Add(1))
		for ctx.Err() == nil {
			q := purchase.NewRequest(sale.Order{
				ID: s.ids.Next(sale.ShardOf(user)), SaleID: s.sale.ID, UserID: user, RequestKey: "k", Quantity: 1, AmountCents: s.sale.PriceCents,
			}, time.Now().Add(2*time.Second))
			s.protocol.Run(ctx, s.sale, []*purchase.Request{q})
			a := q.Wait()
			s.mu.Lock()
			if a.Code == "" {
				s.promised = append(s.promised, a.OrderID)
			} else {
				s.refused[a.Code]++
			}
			s.mu.Unlock()
			if a.Code == sale.CodeSoldOut {
				return
			}
			if a.Code != sale.CodeUnavailable && a.Code != sale.CodeOutcomeUnknown {
				break
			}
			select { // as Retry-After asks, and sooner
			case <-ctx.Done():
			case <-time.After(retryAfter):
			}
		}
	}
}

// TestRebuildUnderLoad deletes a sale's keys while it sells on the real engines, twice. It
// opens by itself, and every promise is in the ledger at the end.
func TestRebuildUnderLoad(t *testing.T) {
	t.Parallel()
	const (
		units    = 3_000
		flushers = 16
		patience = 4 * time.Minute // the machine may run several packages' tests
	)
	s := storetest.Real(t)
	sl := s.LoadedSale(units, 1)
	quiet := slog.New(slog.DiscardHandler)
	check := purchase.Checker(s.Stock, quiet)
	ctx, stop := context.WithTimeout(context.Background(), patience)
	defer stop()

	server := enginetest.RocketMQ(t)
	topic := "rebuild-" + sl.ID
	_, err := bus.EnsureTopics(ctx, []string{server}, topic, 4)
	require.NoError(t, err)
	open := func(check bus.Checker) *bus.RocketMQ {
		b, err := bus.OpenRocketMQ(bus.Options{
			NameServers: []string{server}, Topic: topic, ProducerGroup: topic + "-gateway", ConsumerGroup: topic + "-worker",
			Producers: 2, Check: check, Logger: quiet,
		})
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, b.Close()) })
		return b
	}
	gateway, reader := open(check), open(nil)
	var daemons sync.WaitGroup
	defer daemons.Wait()
	background, cancel := context.WithCancel(ctx)
	defer cancel()

	w := worker.New(worker.Options{
		Bus: reader, Ledger: s.Ledger, Stock: s.Stock, Check: check, PoisonTries: 3, BackoffMin: 10 * time.Millisecond,
		BackoffMax: time.Second, SettleTimeout: 5 * time.Second, Log: quiet,
	})
	daemons.Go(func() { require.NoError(t, w.Run(background)) })
	r := newReconciler(s, func(o *Options) {
		o.Lister, o.RebuildWait, o.Interval, o.SettleAge, o.Log = reader, 5*time.Second, 200*time.Millisecond, time.Second, quiet
	})
	daemons.Go(func() { require.NoError(t, r.Run(background)) })

	ids := sale.NewIDs(1, time.Now)
	buying := &shoppers{
		sale: sl, ids: ids, refused: make(map[sale.Code]int),
		protocol: purchase.New(purchase.Options{
			Stock: s.Stock, Bus: &losing{Bus: gateway}, IDs: ids, Hold: 20 * time.Second, HalfTimeout: time.Second,
			ReleaseTimeout: 2 * time.Second, Log: quiet,
		}),
	}
	var shopping sync.WaitGroup
	for range flushers {
		shopping.Go(func() { buying.shop(ctx) })
	}
	for _, at := range []int{units / 5, 3 * units / 5} {
		require.Eventually(t, func() bool { return buying.promises() >= at }, patience, time.Millisecond)
		epoch := s.Snapshot(sl.ID).Epoch
		s.LoseRedis(sl.ID)
		began := time.Now()
		require.Eventually(t, func() bool { return s.Snapshot(sl.ID).Epoch > epoch }, patience, 10*time.Millisecond, "it opens by itself")
		t.Logf("lost after %d promises; open again after %v", at, time.Since(began).Round(time.Millisecond))
	}
	shopping.Wait()
	buying.protocol.Wait()
	require.NoError(t, ctx.Err(), "sold out in time: %v", buying.refused)
	t.Logf("%d promised to %d shoppers; refusals %v", buying.promises(), buying.next.Load(), buying.refused)

	missing := func() (missing []sale.ID) {
		found, err := s.Ledger.OrdersByID(ctx, buying.promised)
		require.NoError(t, err)
		for _, id := range buying.promised {
			if o := found[id]; o == nil || !o.Status.Active() {
				missing = append(missing, id)
			}
		}
		return missing
	}
	require.Eventually(t, func() bool { return len(missing()) == 0 }, patience, 100*time.Millisecond, "invariant 2: every promise is in the ledger")
	// The reconciler settles what workers could not, and the rest of the half messages come back.
	auditor := &audit.Auditor{Ledger: s.Ledger, Stock: s.Stock, Watermark: time.Second}
	var report audit.Report
	require.Eventually(t, func() bool {
		snap := s.Snapshot(sl.ID)
		if snap.Batches > 0 || snap.Pending > 0 {
			return false
		}
		report, err = auditor.Audit(ctx, sl.ID)
		require.NoError(t, err)
		return report.OK
	}, patience, 500*time.Millisecond)
	counted, err := s.Ledger.CountUnits(ctx, sl.ID)
	require.NoError(t, err)
	active := int64(0)
	for status, n := range counted {
		if status.Active() {
			active += n
		}
	}
	require.LessOrEqual(t, active, int64(units), "invariant 1")
	var owed []ledger.Owed
	require.Eventually(t, func() bool {
		owed, err = s.Ledger.Owed(ctx, sl.ID, time.Now(), 10)
		require.NoError(t, err)
		return len(owed) == 0
	}, patience, 100*time.Millisecond)
	cancel()
}
