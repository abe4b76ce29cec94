package cli

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sync/errgroup"

	"flashgate/gateway"
	"flashgate/internal/bus"
	"flashgate/internal/config"
	"flashgate/internal/engines"
	"flashgate/internal/failpoint"
	"flashgate/internal/ledger"
	"flashgate/internal/limits"
	"flashgate/internal/purchase"
	"flashgate/internal/sale"
	"flashgate/internal/stock"
	"flashgate/internal/ticket"
	"flashgate/internal/token"
	"flashgate/worker"
)

// reconcilerProducers: a reconciler sends nothing; it only answers check-backs, so
// that half messages are decided when no gateway is left.
const reconcilerProducers = 1

// onEngines starts a process on the real engines: it opens the ledger and Redis, as
// soon as they are there, and then calls start with both.
func onEngines(ctx context.Context, role string, c *config.Config, start func(*process, *ledger.Ledger, *stock.Store) error) (err error) {
	if c.Engines != config.Real {
		return fmt.Errorf("%s has embedded engines, which run in one process: use bare `flashgate`, or a config with real engines, such as %s", c.File, localConfig)
	}
	p, err := newProcess(ctx, role, c, logger(c))
	if err != nil {
		return err
	}
	l, err := engines.Ledger(p.needs())
	if err != nil {
		return err
	}
	defer func() {
		if closed := l.Close(); err == nil {
			err = closed
		}
	}()
	p.group.Go(func() error {
		s, err := engines.AwaitStock(p.ctx, p.needs(), p.waitFor)
		if err != nil {
			return err
		}
		defer s.Close()
		return start(p, l, s)
	})
	return p.run()
}

func runGateway(ctx context.Context, c *config.Config) error {
	return onEngines(ctx, "gateway", c, func(p *process, l *ledger.Ledger, s *stock.Store) error {
		b, err := engines.Bus(p.needs(), purchase.Checker(s, p.log), c.RocketMQ.Producers)
		if err != nil {
			return err
		}
		e, err := p.newEdge(l, s, b, holder("gateway"))
		if err != nil {
			return closeAfter(b, err)
		}
		p.probe(l, s, b)
		p.port.AddProbe("gateway", func(context.Context) error { return e.Ready() })
		admin := newAdmin(c, l, s, newReconciler(c, l, s, b, holder("admin"), p.log, nil))
		admin.Limiter = e.limiter
		p.port.Serve(admin)
		return closeAfter(b, p.serve(e))
	})
}

func runWorker(ctx context.Context, c *config.Config) error {
	return onEngines(ctx, "worker", c, func(p *process, l *ledger.Ledger, s *stock.Store) error {
		b, err := engines.Bus(p.needs(), nil, 0)
		if err != nil {
			return err
		}
		p.probe(l, s, b)
		p.port.Serve(newAdmin(c, l, s, newReconciler(c, l, s, b, holder("admin"), p.log, nil)))
		p.waitFor(nil)
		p.log.Info("worker is consuming", "topic", c.RocketMQ.Topic, "operators", p.port.Addr())
		return closeAfter(b, p.newWorker(l, s, b).Run(p.ctx))
	})
}

func runReconciler(ctx context.Context, c *config.Config) error {
	return onEngines(ctx, "reconciler", c, func(p *process, l *ledger.Ledger, s *stock.Store) error {
		b, err := engines.Bus(p.needs(), purchase.Checker(s, p.log), reconcilerProducers)
		if err != nil {
			return err
		}
		r := newReconciler(c, l, s, b, holder("reconciler"), p.log, p.registry)
		p.probe(l, s, b)
		p.port.Serve(newAdmin(c, l, s, r))
		p.waitFor(nil)
		p.log.Info("reconciler is running", "operators", p.port.Addr())
		return closeAfter(b, r.Run(p.ctx))
	})
}

func closeAfter(b bus.Bus, err error) error {
	if closed := b.Close(); err == nil {
		err = closed
	}
	return err
}

func (p *process) newWorker(l *ledger.Ledger, s *stock.Store, b bus.Bus) *worker.Worker {
	w := &p.config.Worker
	return worker.New(worker.Options{
		Bus: b, Ledger: l, Stock: s, Check: purchase.Checker(s, p.log), PoisonTries: w.PoisonTries,
		BackoffMin: w.BackoffMin, BackoffMax: w.BackoffMax, SettleTimeout: w.SettleTimeout,
		Tracer: p.tracer, Log: p.log, Registerer: p.registry,
	})
}

// edge is a gateway with all that stands behind it.
type edge struct {
	*gateway.Gateway
	protocol *purchase.Protocol
	limiter  *limits.Limiter
	ledger   *ledger.Ledger
}

// newEdge binds the shoppers' port. holder names this gateway in its node lease.
func (p *process) newEdge(l *ledger.Ledger, s *stock.Store, b bus.Bus, holder string) (*edge, error) {
	c := p.config
	o, err := c.TokenOptions()
	if err != nil {
		return nil, err
	}
	o.Now = failpoint.Now
	verifier, err := token.NewVerifier(o)
	if err != nil {
		return nil, err
	}
	tickets, err := newTickets(c)
	if err != nil {
		return nil, err
	}
	limiter, err := limits.New(c.Rules, limits.Options{
		Registerer: p.registry, Log: p.log, Tickets: tickets != nil,
		Lease: func(ctx context.Context, name string, size limits.Bucket, want int64) (granted int64, gateways int, err error) {
			return s.Quota(ctx, holder, name, size.Rate, int64(size.Burst), want)
		},
	})
	if err != nil {
		return nil, err
	}
	ids := sale.NewIDs(0, failpoint.Now) // the lease sets the number
	redis := limiter.Breaker(limits.Redis, failed)
	protocol := purchase.New(purchase.Options{
		Stock: s, Bus: b, IDs: ids, RedisBreaker: redis, BusBreaker: limiter.Breaker(limits.RocketMQ, failed),
		Hold: c.Batch.Hold, HalfTimeout: c.RocketMQ.HalfSendTimeout, ReleaseTimeout: c.Batch.ReleaseTimeout,
		Log: p.log, Registerer: p.registry,
	})
	g := &c.Gateway
	gw, err := gateway.New(gateway.Options{
		Listen: c.Listen, Verifier: verifier, Limits: limiter, Tickets: tickets, Challenge: challenge(c), Ledger: l, Stock: s, Runner: protocol, IDs: ids,
		Lease:         &gateway.NodeLease{Ledger: l, IDs: ids, Holder: holder, TTL: g.NodeLease, Log: p.log},
		LedgerBreaker: limiter.Breaker(limits.MySQL, failed), RedisBreaker: redis,
		Tracer: p.tracer, Log: p.log, Registerer: p.registry,
		Connections: g.Concurrency, HeaderBytes: g.MaxHeaderBytes, BodyBytes: g.MaxBodyBytes,
		ReadTimeout: g.ReadTimeout, WriteTimeout: g.WriteTimeout, IdleTimeout: g.IdleTimeout,
		PurchaseTimeout: g.RequestTimeout, ReadWait: g.PollTimeout, ReplayWait: g.ReplayWait, DrainTimeout: g.DrainTimeout,
		ReadsMax: g.MaxReads, BatchMax: c.Batch.Max, Flushers: c.Batch.Flushers, BatchLinger: c.Batch.Linger, BatchPatience: c.Batch.Patience, QueueMax: c.Batch.Queue, SalesMax: g.MaxSales,
		SaleRefresh: g.SaleRefresh, StockRefresh: g.StockRefresh, CutoffLease: g.CutoffLease, CutoffBuyers: g.CutoffBuyers,
		Now: failpoint.Now,
	})
	if err != nil {
		return nil, err
	}
	return &edge{gw, protocol, limiter, l}, nil
}

// newTickets is nil when the config has no key for tickets.
func newTickets(c *config.Config) (*ticket.Issuer, error) {
	key, err := c.TicketSecret()
	if err != nil || key == nil {
		return nil, err
	}
	return ticket.NewIssuer(key)
}

// challenge is nil when the config names no judge.
func challenge(c *config.Config) ticket.Challenge {
	if c.Ticket.ChallengeURL == "" {
		return nil
	}
	return ticket.Judge(c.Ticket.ChallengeURL, c.Ticket.ChallengeTimeout)
}

// serve runs the edge until the process is told to stop and what is in hand has been
// answered.
func (p *process) serve(e *edge) error {
	p.waitFor(nil)
	p.log.Info("gateway is serving", "shoppers", e.Addr(), "operators", p.port.Addr())
	// Limits can be turned during the drain, too.
	background, stop := context.WithCancel(context.WithoutCancel(p.ctx))
	var following errgroup.Group
	following.Go(func() error { return e.limiter.Watch(background, p.config.LimitsFile()) })
	following.Go(func() error { return e.limiter.FollowAccess(background, e.ledger) })
	following.Go(func() error { e.limiter.KeepShares(background); return nil })
	err := e.Run(p.ctx)
	e.protocol.Wait()
	stop()
	return errors.Join(err, following.Wait(), e.limiter.Close())
}

// failed reports whether an error speaks against an engine, to its breaker. A refusal
// is an answer, and a shopper who left is none of the engine's doing.
func failed(err error) bool {
	var refusal *sale.Error
	switch {
	case errors.As(err, &refusal),
		errors.Is(err, context.Canceled),
		errors.Is(err, stock.ErrNotReady), errors.Is(err, stock.ErrBatchKnown):
		return false
	}
	return true
}
