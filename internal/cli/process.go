package cli

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"strconv"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"

	"flashgate/internal/audit"
	"flashgate/internal/bus"
	"flashgate/internal/config"
	"flashgate/internal/engines"
	"flashgate/internal/ledger"
	"flashgate/internal/operator"
	"flashgate/internal/stock"
	"flashgate/internal/tracing"
	"flashgate/reconciler"
)

// process is what every daemon has: metrics, the operators' port, and a group whose
// first error ends it.
type process struct {
	config   *config.Config
	log      *slog.Logger
	registry *prometheus.Registry
	tracer   *tracing.Tracer // nil = off
	port     *operator.Server
	group    *errgroup.Group
	ctx      context.Context
	starting atomic.Pointer[error] // what the start is waiting for; nil once it is through
}

// gcPercent is how much a daemon's heap may grow before garbage is collected, unless GOGC
// says otherwise. What lives on is some ten megabytes; at Go's 100 a gateway spends a
// tenth of its processor on looking through them. GOMEMLIMIT holds as ever.
const gcPercent = 400

// newProcess binds the operators' port, which answers from now on.
func newProcess(ctx context.Context, role string, c *config.Config, log *slog.Logger) (*process, error) {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	token, err := c.AdminToken()
	if err != nil {
		return nil, err
	}
	p := &process{config: c, log: log, registry: prometheus.NewRegistry()}
	p.registry.MustRegister(collectors.NewGoCollector(), collectors.NewBuildInfoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	p.port, err = operator.NewServer(operator.ServerOptions{
		Listen: c.OperatorsListen, Token: token, Gatherer: p.registry, Log: log,
	})
	if err != nil {
		return nil, err
	}
	if t := &c.Tracing; t.Endpoint != "" {
		p.tracer, err = tracing.Start(ctx, tracing.Options{
			Endpoint: t.Endpoint, Sample: t.Sample, Timeout: t.Timeout, Service: role, Version: version(), Log: log,
		})
		if err != nil {
			return nil, fmt.Errorf("tracing: %w", err)
		}
	}
	p.waitFor(errors.New("starting"))
	p.port.AddProbe("start", func(context.Context) error {
		if err := p.starting.Load(); err != nil {
			return *err
		}
		return nil
	})
	p.group, p.ctx = errgroup.WithContext(ctx)
	p.group.Go(func() error { return p.port.Run(p.ctx) })
	return p, nil
}

// waitFor says on /readyz what the start is waiting for; nil ends the start.
func (p *process) waitFor(err error) {
	if err == nil {
		p.starting.Store(nil)
		return
	}
	p.starting.Store(&err)
}

func (p *process) needs() engines.Needs {
	return engines.Needs{Config: p.config, Log: p.log, Registerer: p.registry}
}

// probe adds the engines to /readyz.
func (p *process) probe(l *ledger.Ledger, s *stock.Store, b bus.Bus) {
	p.port.AddProbe("ledger", l.Ping)
	p.port.AddProbe("redis", s.Ping)
	if b != nil {
		p.port.AddProbe("bus", b.Ping)
	}
}

// run ends when the process is told to stop, or with the first error of a part.
func (p *process) run() error {
	err := p.group.Wait()
	last, cancel := context.WithTimeout(context.Background(), p.config.Tracing.Timeout)
	defer cancel()
	if failed := p.tracer.Close(last); failed != nil {
		p.log.Warn("the last spans are not sent", "err", failed)
	}
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// newReconciler makes a reconciler. Only the daemon that runs it registers its metrics.
func newReconciler(c *config.Config, l *ledger.Ledger, s *stock.Store, lister bus.Lister, holder string, log *slog.Logger, reg prometheus.Registerer) *reconciler.Reconciler {
	r := &c.Reconciler
	rebuildWait := r.RebuildWait
	if c.Engines == config.Embedded {
		rebuildWait = 0 // its Redis goes with its gateway
	}
	return reconciler.New(reconciler.Options{
		Ledger: l, Stock: s, Lister: lister, Auditor: newAuditor(c, l, s),
		Holder: holder, LeaseTTL: r.LeaseTTL, Interval: r.Interval, StepTimeout: r.StepTimeout, LoadTimeout: r.LoadTimeout, RebuildWait: rebuildWait,
		VoidAge: r.VoidAge, SettleAge: r.SettleAge, TaskTries: r.TaskTries, TaskBackoff: r.TaskBackoff,
		FusePercent: r.FusePercent, FuseUnits: int64(r.FuseUnits), Pace: r.Pace, ReportRetention: r.ReportRetention,
		Schedule: c.Schedule(), Log: log, Registerer: reg,
	})
}

func newAuditor(c *config.Config, l *ledger.Ledger, s *stock.Store) *audit.Auditor {
	return &audit.Auditor{Ledger: l, Stock: s, Watermark: c.Reconciler.Watermark}
}

func newAdmin(c *config.Config, l *ledger.Ledger, s *stock.Store, r *reconciler.Reconciler) *operator.Admin {
	return &operator.Admin{Ledger: l, Stock: s, Reconciler: r, Auditor: newAuditor(c, l, s)}
}

// holder names this process among all: in leases, and to people who read them.
func holder(role string) string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	random := make([]byte, 4)
	_, _ = rand.Read(random) // never fails: it ends the program instead
	return role + "/" + host + "/" + strconv.Itoa(os.Getpid()) + "/" + hex.EncodeToString(random)
}
