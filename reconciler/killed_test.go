package reconciler

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"flashgate/internal/audit"
	"flashgate/internal/ledger"
	"flashgate/internal/sale"
	"flashgate/internal/stock"
	"flashgate/internal/storetest"
)

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

// mixed plants some of every kind in one sale.
func mixed(s *storetest.Stores, n int) *sale.Sale {
	sl := s.LoadedSale(plantTotal, 2)
	s.Sell(sl, s.Batch(sl, old, "fine"))
	for i, p := range plants {
		p.make(s, sl, fmt.Sprintf("p%d-", i), n)
	}
	return sl
}

// endState is all that a sale has in both stores, without what differs from one making of
// it to the next: ids and times.
func endState(s *storetest.Stores, sl *sale.Sale) string {
	ctx := context.Background()
	var lines []string
	require.NoError(s.T, s.Ledger.EachOrder(ctx, sl.ID, 0, 1000, func(orders []ledger.Order) error {
		for _, o := range orders {
			lines = append(lines, fmt.Sprintf("order of %s: %d %s %s", o.UserID, o.Quantity, o.Status, o.Reason))
		}
		return nil
	}))
	require.NoError(s.T, s.Stock.Buyers(ctx, sl.ID, func(records []stock.Record) error {
		for _, r := range records {
			lines = append(lines, fmt.Sprintf("record of %s: %d returned %v", r.UserID, r.Quantity, r.Returned))
		}
		return nil
	}))
	slices.Sort(lines)
	snap := s.Snapshot(sl.ID)
	inv, err := s.Ledger.Inventory(ctx, sl.ID)
	require.NoError(s.T, err)
	inv.SaleID = ""
	var open int64
	require.NoError(s.T, s.SQL.QueryRow("SELECT COUNT(*) FROM stock_sync_tasks WHERE sale_id = ? AND state <> 'DONE'", sl.ID).Scan(&open))
	lines = append(lines, fmt.Sprintf("stock %d held %d total %d batches %d, inventory %+v, open tasks %d",
		snap.Stock, snap.Held, snap.Total, snap.Batches, inv, open))
	return strings.Join(lines, "\n")
}

// executioner stands between a process and Redis, and ends the process's context at the
// n-th call: before it gets there, or after, the answer withheld.
type executioner struct {
	address string
	calls   atomic.Int64
}

func newExecutioner(t *testing.T, backend string, n int64, after bool, kill context.CancelFunc) *executioner {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	e := &executioner{address: listener.Addr().String()}
	var wg sync.WaitGroup
	t.Cleanup(func() {
		require.NoError(t, listener.Close())
		wg.Wait()
	})
	wg.Add(1)
	go func() {
		defer wg.Done()
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", backend)
			if err != nil {
				_ = client.Close()
				return
			}
			wg.Add(2)
			go func() {
				defer wg.Done()
				defer server.Close()
				buffer := make([]byte, 1<<20)
				for {
					size, err := client.Read(buffer)
					if err != nil {
						return
					}
					dead := e.calls.Add(1) >= n
					if dead && !after {
						kill()
						return
					}
					if _, err := server.Write(buffer[:size]); err != nil {
						return
					}
					if dead {
						kill()
						return
					}
				}
			}()
			go func() {
				defer wg.Done()
				defer client.Close()
				_, _ = io.Copy(client, server)
			}()
		}
	}()
	return e
}

// TestKilledAnywhereAndRunAgain: whatever call of Redis is a run's last, the next run
// leaves what an undisturbed one leaves.
func TestKilledAnywhereAndRunAgain(t *testing.T) {
	t.Parallel()
	s := storetest.Embedded(t)
	ctx := context.Background()
	run := func(t *testing.T, ctx context.Context, st *stock.Store, sl *sale.Sale) (Report, error) {
		r := newReconciler(s, anyFuse, func(o *Options) {
			o.Stock, o.Log = st, quiet
			o.Auditor = &audit.Auditor{Ledger: s.Ledger, Stock: st, Watermark: time.Minute}
		})
		return r.Reconcile(ctx, Query{SaleID: sl.ID})
	}
	undisturbed := mixed(s, 2)
	_, err := run(t, ctx, s.Stock, undisturbed)
	require.NoError(t, err)
	want := endState(s, undisturbed)

	survived := false
	for n := int64(1); !survived; n++ {
		for _, after := range []bool{false, true} {
			sl := mixed(s, 2)
			t.Run(fmt.Sprintf("call %d, after %v", n, after), func(t *testing.T) {
				alive, kill := context.WithCancel(ctx)
				defer kill()
				e := newExecutioner(t, s.Nodes[0], n, after, kill)
				st, err := stock.Open(stock.Options{Addresses: []string{e.address}})
				if err != nil {
					return // killed at its first words
				}
				defer st.Close()
				_, err = run(t, alive, st, sl)
				survived = err == nil && e.calls.Load() < n
				report, err := run(t, ctx, s.Stock, sl)
				require.NoError(t, err)
				require.Zero(t, report.Left, "%+v", report.Sales[0])
				require.Equal(t, want, endState(s, sl))
				audited(t, s, sl.ID)
			})
			if t.Failed() {
				return
			}
		}
	}
}

// TestTwoAtOnce: several processes at once leave what one leaves, and repair each order of
// the ledger once.
func TestTwoAtOnce(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	storetest.Each(t, func(t *testing.T, s *storetest.Stores) {
		alone, together := mixed(s, 60), mixed(s, 60)
		_, err := newReconciler(s, anyFuse).Reconcile(ctx, Query{SaleID: alone.ID})
		require.NoError(t, err)
		const runs = 4
		reports := make([]Report, runs)
		var wg sync.WaitGroup
		for i := range runs {
			wg.Add(1)
			go func() {
				defer wg.Done()
				var err error
				reports[i], err = newReconciler(s, anyFuse).Reconcile(ctx, Query{SaleID: together.ID})
				if err != nil {
					t.Error(err)
				}
			}()
		}
		wg.Wait()
		found := 0
		for i := range reports {
			require.Zero(t, reports[i].Left, "%+v", reports[i].Sales[0])
			if reports[i].Found > 0 {
				found++
			}
		}
		require.Equal(t, 1, found, "the first does it all")
		require.Equal(t, endState(s, alone), endState(s, together))
		audited(t, s, together.ID)
	})
}

func TestAnotherRunHasTheSale(t *testing.T) {
	ctx := context.Background()
	s := storetest.Embedded(t)
	sl := s.LoadedSale(10, 2)
	s.MoveStock(sl.ID, 1)
	_, ok, err := s.Ledger.Acquire(ctx, runLeasePrefix+sl.ID, "somebody else", time.Hour)
	require.NoError(t, err)
	require.True(t, ok)
	r := newReconciler(s, func(o *Options) { o.RunWait = time.Millisecond })
	report, err := r.Reconcile(ctx, Query{SaleID: sl.ID})
	require.NoError(t, err)
	require.Equal(t, int64(1), report.Left)
	require.Contains(t, report.Sales[0].Items[0].Why, "somebody else")
	require.Equal(t, int64(11), s.Snapshot(sl.ID).Stock)
	dry, err := r.Reconcile(ctx, Query{SaleID: sl.ID, DryRun: true})
	require.NoError(t, err)
	require.Equal(t, int64(1), kindOf(&dry.Sales[0], audit.StockDrift).Found, "looking needs no lease")
}

// TestALostLeaseEndsTheRun: whoever stood still finds its context ended, and its repairs refused.
func TestALostLeaseEndsTheRun(t *testing.T) {
	ctx := context.Background()
	s := storetest.Embedded(t)
	sl := s.LoadedSale(10, 2)
	r := newReconciler(s, func(o *Options) { o.LeaseTTL = 30 * time.Millisecond })
	held, err := r.enclose(ctx, sl.ID, r.runHolder())
	require.NoError(t, err)
	defer held.release()
	s.Exec("UPDATE leases SET holder = 'another', token = token + 1, expires_at = '2099-01-01 00:00:00.000' WHERE name = ?", held.fence.Lease)
	select {
	case <-held.ctx.Done():
	case <-time.After(10 * time.Second):
		require.Fail(t, "the run goes on")
	}
	require.ErrorIs(t, context.Cause(held.ctx), ledger.ErrFenced)
	run := newRun(r, sl, Query{})
	run.fence = held.fence
	s.MoveStock(sl.ID, 1)
	_, err = run.recountRedis(ctx, []audit.Finding{{Kind: audit.StockDrift}})
	require.ErrorIs(t, err, ledger.ErrFenced, "repairs of Redis are fenced by their log")
	require.Equal(t, int64(11), s.Snapshot(sl.ID).Stock)
}

// TestAnyMixtureIsRepaired draws how much of what is planted, in what order: each kind is
// found as often as it was planted, one run repairs all, and a second finds nothing.
func TestAnyMixtureIsRepaired(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	s := storetest.Embedded(t)
	r := newReconciler(s, anyFuse, func(o *Options) { o.Log = quiet })
	rapid.Check(t, func(t *rapid.T) {
		sl := s.LoadedSale(plantTotal, 2)
		want := map[audit.Kind]int64{}
		drawn := rapid.SliceOfN(rapid.IntRange(0, len(plants)-1), 0, 6).Draw(t, "plants")
		for i, which := range drawn {
			p, n := plants[which], rapid.IntRange(1, 70).Draw(t, "n")
			if p.once {
				continue // their sums may cancel each other out
			}
			p.make(s, sl, fmt.Sprintf("p%d-", i), n)
			if p.kind == audit.ConsumedNotSettled || p.kind == audit.ConfirmedNotPersisted {
				n = len(crowd("", n))
			}
			want[p.kind] += int64(n)
		}
		report, err := r.Reconcile(ctx, Query{SaleID: sl.ID})
		require.NoError(t, err)
		for kind, n := range want {
			k := kindOf(&report.Sales[0], kind)
			require.Equal(t, n, k.Repaired+k.Helped, "%s of %+v", kind, report.Sales[0].Kinds)
		}
		require.Len(t, report.Sales[0].Kinds, len(want), "and nothing else")
		again, err := r.Reconcile(ctx, Query{SaleID: sl.ID})
		require.NoError(t, err)
		require.Zero(t, again.Found+again.Helped)
	})
}
