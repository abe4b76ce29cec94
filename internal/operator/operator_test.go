package operator_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"flashgate/internal/audit"
	"flashgate/internal/operator"
	"flashgate/internal/sale"
	"flashgate/internal/storetest"
	"flashgate/reconciler"
)

const token = "a-token-of-the-operators"

// port is a running operators' port and the service behind it, on both sides.
type port struct {
	*storetest.Stores
	base   string
	server *operator.Server
	admin  *operator.Admin
	client *operator.Client
}

// emptyBus has delivered everything.
type emptyBus struct{}

func (emptyBus) Undelivered(context.Context, string, func([]sale.Batch) error) error { return nil }

func newPort(t *testing.T) *port { return newPortOn(t, storetest.Embedded(t)) }

func newPortOn(t *testing.T, stores *storetest.Stores) *port {
	p := &port{Stores: stores}
	registry := prometheus.NewRegistry()
	auditor := &audit.Auditor{Ledger: p.Ledger, Stock: p.Stock, Watermark: time.Minute}
	p.admin = &operator.Admin{Ledger: p.Ledger, Stock: p.Stock, Auditor: auditor, Reconciler: reconciler.New(reconciler.Options{
		Ledger: p.Ledger, Stock: p.Stock, Lister: emptyBus{}, Auditor: auditor, Holder: "test", LeaseTTL: time.Minute, Interval: time.Second,
		StepTimeout: 5 * time.Second, LoadTimeout: time.Minute, TaskTries: 3, TaskBackoff: time.Second, FuseUnits: 100,
		Log: slog.New(slog.DiscardHandler), Registerer: registry,
	})}
	var err error
	p.server, err = operator.NewServer(operator.ServerOptions{Listen: "127.0.0.1:0", Token: token, Gatherer: registry})
	require.NoError(t, err)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.server.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		require.NoError(t, <-done)
	})
	p.base = "http://" + p.server.Addr()
	p.client = &operator.Client{Base: p.base, Token: token}
	return p
}

func (p *port) get(t *testing.T, path, bearer string) (int, string) {
	t.Helper()
	r, err := http.NewRequest(http.MethodGet, p.base+path, nil)
	require.NoError(t, err)
	if bearer != "" {
		r.Header.Set("Authorization", "Bearer "+bearer)
	}
	resp, err := http.DefaultClient.Do(r)
	require.NoError(t, err)
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return resp.StatusCode, string(body)
}

// TestNobodyOutsideSaysWhyAReconcileRan: it is a label of a metric, and "schedule" counts as
// the last scheduled run.
func TestNobodyOutsideSaysWhyAReconcileRan(t *testing.T) {
	p := newPort(t)
	p.server.Serve(p.admin)
	r, err := http.NewRequest(http.MethodPost, p.base+"/admin/v1/reconcile", strings.NewReader(`{"trigger":"schedule"}`))
	require.NoError(t, err)
	r.Header.Set("Authorization", "Bearer "+token)
	resp, err := http.DefaultClient.Do(r)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	require.Equal(t, http.StatusBadRequest, resp.StatusCode)
}

func TestOnlyProbesGoWithoutTheToken(t *testing.T) {
	p := newPort(t)
	p.server.Serve(p.admin)
	for _, path := range []string{"/healthz", "/readyz"} {
		status, _ := p.get(t, path, "")
		require.Equal(t, 200, status, path)
	}
	for _, path := range []string{"/metrics", "/debug/pprof/", "/debug/pprof/cmdline", "/admin/v1/sales", "/admin/v1/audit", "/anything"} {
		for _, wrong := range []string{"", "x", token + "x", strings.ToUpper(token)} {
			status, body := p.get(t, path, wrong)
			require.Equal(t, 401, status, "%s with %q", path, wrong)
			require.Contains(t, body, "UNAUTHENTICATED")
		}
	}
	for _, path := range []string{"/metrics", "/debug/pprof/", "/admin/v1/sales", "/admin/v1/tasks", "/admin/v1/dead-batches", "/admin/v1/reconcile/reports", "/admin/v1/access"} {
		status, body := p.get(t, path, token)
		require.Equal(t, 200, status, "%s: %s", path, body)
	}
	status, _ := p.get(t, "/admin/v1/nothing", token)
	require.Equal(t, 404, status)
}

func TestReadyzSaysWhatIsMissing(t *testing.T) {
	p := newPort(t)
	missing := errors.New("no route to host")
	p.server.AddProbe("redis", func(context.Context) error { return missing })
	p.server.AddProbe("ledger", func(context.Context) error { return nil })
	p.server.AddProbe("bus", func(ctx context.Context) error { <-ctx.Done(); select {} })
	status, body := p.get(t, "/readyz", "")
	require.Equal(t, 503, status)
	require.JSONEq(t, `{"ready":false,"lacks":["redis: no route to host","bus: no answer in time"]}`, body)
	status, body = p.get(t, "/admin/v1/sales", token)
	require.Equal(t, 503, status, "before the engines are there")
	require.Contains(t, body, "starting")
}

func spec(id string) operator.SaleSpec {
	now := time.Now().UTC().Truncate(time.Millisecond)
	return operator.SaleSpec{
		ID: id, Title: "T", Total: 10, PriceCents: 100, Currency: "CNY", PerUserLimit: 2, StartsAt: now, EndsAt: now.Add(time.Hour),
	}
}

// TestService runs the same calls on the service itself and through its client.
func TestService(t *testing.T) {
	ctx := context.Background()
	p := newPort(t)
	p.server.Serve(p.admin)
	for name, s := range map[string]operator.Service{"admin": p.admin, "client": p.client} {
		t.Run(name, func(t *testing.T) {
			want := spec("sale-" + name)
			id := want.ID
			changes := func(c operator.Change, err error) bool {
				t.Helper()
				require.NoError(t, err)
				require.NotEmpty(t, c.Message)
				return c.Changed
			}
			refused := func(code sale.Code, err error) {
				t.Helper()
				require.Error(t, err)
				require.Equal(t, code, sale.CodeOf(err), err.Error())
			}
			require.True(t, changes(s.CreateSale(ctx, want)))
			require.False(t, changes(s.CreateSale(ctx, want)), "the same terms again: nothing new")
			other := want
			other.Total++
			_, err := s.CreateSale(ctx, other)
			refused(sale.CodeConflict, err)
			bad := want
			bad.Currency = "yuan"
			_, err = s.CreateSale(ctx, bad)
			refused(sale.CodeInvalid, err)
			_, err = s.OpenSale(ctx, "nothing")
			refused(sale.CodeSaleNotFound, err)

			require.True(t, changes(s.OpenSale(ctx, id)))
			require.False(t, changes(s.OpenSale(ctx, id)))
			require.False(t, changes(s.LoadSale(ctx, id)), "open loads")
			require.True(t, changes(s.PauseSale(ctx, id)))
			require.False(t, changes(s.PauseSale(ctx, id)))

			require.True(t, changes(s.Restock(ctx, id, operator.Restock{Add: 5})))
			require.True(t, changes(s.Restock(ctx, id, operator.Restock{Total: 12})))
			require.False(t, changes(s.Restock(ctx, id, operator.Restock{Total: 12})), "a total can be set twice")
			_, err = s.Restock(ctx, id, operator.Restock{})
			refused(sale.CodeInvalid, err)
			_, err = s.Restock(ctx, id, operator.Restock{Add: -12})
			refused(sale.CodeInvalid, err)
			v, err := s.Sale(ctx, id)
			require.NoError(t, err)
			require.Equal(t, &operator.InventoryView{Total: 12, Available: 12}, v.Inventory)
			require.Equal(t, int64(12), v.Redis.Stock)
			require.Equal(t, v.Version, v.Redis.Version)
			require.Equal(t, want.EndsAt, v.EndsAt.UTC())
			require.Equal(t, sale.Paused, v.Status)

			// A cut takes free units only.
			stored, err := p.Ledger.Sale(ctx, id)
			require.NoError(t, err)
			stored.Epoch = v.Redis.Epoch
			p.Sell(&stored, p.Batch(&stored, 0, "a", "b", "c"))
			_, err = s.Restock(ctx, id, operator.Restock{Total: 2})
			refused(sale.CodeConflict, err)
			require.True(t, changes(s.Restock(ctx, id, operator.Restock{Total: 3})))
			report, err := s.Audit(ctx, id)
			require.NoError(t, err)
			require.True(t, report.OK, "%+v", report.Breaches)

			all, err := s.Sales(ctx)
			require.NoError(t, err)
			require.NotEmpty(t, all)
			r, err := s.Reconcile(ctx, reconciler.Query{SaleID: id})
			require.NoError(t, err)
			require.Zero(t, r.Left)
			_, err = s.Audit(ctx, "nothing")
			refused(sale.CodeSaleNotFound, err)
		})
	}
}

func TestTimesInThePastAreTakenWithAWarning(t *testing.T) {
	p := newPort(t)
	s := spec("past")
	s.StartsAt, s.EndsAt = s.StartsAt.Add(-2*time.Hour), s.StartsAt.Add(-time.Hour)
	c, err := p.admin.CreateSale(context.Background(), s)
	require.NoError(t, err)
	require.True(t, c.Changed)
	require.Len(t, c.Warnings, 1)
}

func TestAnEmptyTokenIsRefusedAtStart(t *testing.T) {
	_, err := operator.NewServer(operator.ServerOptions{Listen: "127.0.0.1:0"})
	require.Error(t, err)
}
