package cli

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"time"

	"flashgate/internal/config"
	"flashgate/internal/engines"
	"flashgate/internal/operator"
	"flashgate/internal/sale"
	"flashgate/reconciler"
)

// embeddedHolder names the one process of a data folder in the leader's lease: what
// was killed and started again is the same holder, and waits for nobody.
const embeddedHolder = "embedded"

// demoTokenTTL is how long the token of the printed line is good.
const demoTokenTTL = 12 * time.Hour

// runEmbedded is gateway, worker and reconciler in one process. Redis is loaded from
// the bus and the ledger before the shoppers' port answers.
func runEmbedded(ctx context.Context, c *config.Config, out io.Writer) error {
	if c.Engines != config.Embedded {
		return fmt.Errorf("%s is for the real engines: run `flashgate gateway`, `worker` and `reconciler`, or bare `flashgate` with %s", c.File, embeddedConfig)
	}
	if _, err := config.EnsureEnvFile(c.DataDir); err != nil {
		return err
	}
	p, err := newProcess(ctx, "embedded", c, logger(c))
	if err != nil {
		return err
	}
	e, err := engines.OpenEmbedded(ctx, p.needs())
	if err != nil {
		return err
	}
	err = p.embedded(e, out)
	return errors.Join(err, e.Close())
}

func (p *process) embedded(e *engines.Embedded, out io.Writer) error {
	c := p.config
	if err := e.Announce(p.port.Addr()); err != nil {
		return err
	}
	r := newReconciler(c, e.Ledger, e.Stock, e.Bus, embeddedHolder, p.log, p.registry)
	admin := newAdmin(c, e.Ledger, e.Stock, r)
	if err := loadAll(p.ctx, e, r); err != nil {
		return err
	}
	edge, err := p.newEdge(e.Ledger, e.Stock, e.Bus, holder("embedded"))
	if err != nil {
		return err
	}
	if c.Demo.Sale != "" {
		if err := openDemo(p.ctx, e, c, admin.OpenSale); err != nil {
			return err
		}
	}
	admin.Limiter = edge.limiter
	p.probe(e.Ledger, e.Stock, e.Bus)
	p.port.AddProbe("gateway", func(context.Context) error { return edge.Ready() })
	p.port.Serve(admin)
	if err := greet(out, c, edge.Addr().String(), p.port.Addr()); err != nil {
		return err
	}
	p.group.Go(func() error { return p.newWorker(e.Ledger, e.Stock, e.Bus).Run(p.ctx) })
	p.group.Go(func() error { return r.Run(p.ctx) })
	p.group.Go(func() error { return p.serve(edge) })
	return p.run()
}

// loadAll loads every sale that may still be asked for.
func loadAll(ctx context.Context, e *engines.Embedded, r *reconciler.Reconciler) error {
	sales, err := e.Ledger.Sales(ctx)
	if err != nil {
		return err
	}
	for i := range sales {
		if time.Now().After(sales[i].EndsAt.Add(sale.Retention)) {
			continue
		}
		if _, err := r.Load(ctx, sales[i].ID); err != nil {
			return fmt.Errorf("load sale %s: %w", sales[i].ID, err)
		}
	}
	return nil
}

// openDemo makes the demo sale on the first start. One that an operator has paused
// since stays paused.
func openDemo(ctx context.Context, e *engines.Embedded, c *config.Config, open func(context.Context, string) (operator.Change, error)) error {
	s := c.DemoSale(time.Now())
	stored, err := e.Ledger.Sale(ctx, s.ID)
	switch {
	case sale.CodeOf(err) == sale.CodeSaleNotFound:
		if _, err := e.Ledger.CreateSale(ctx, &s); err != nil {
			return err
		}
	case err != nil:
		return err
	case stored.Status != sale.Draft:
		return nil
	}
	_, err = open(ctx, s.ID)
	return err
}

// greet prints what a newcomer does next: a line that buys.
func greet(out io.Writer, c *config.Config, shoppers, operators string) error {
	fmt.Fprintf(out, "flashgate is selling on embedded engines; its data is in %s\n\n", c.DataDir)
	fmt.Fprintf(out, "  shoppers   http://%s/v1/sales\n", shoppers)
	fmt.Fprintf(out, "  operators  http://%s  (token: FLASHGATE_ADMIN_TOKEN in %s/env)\n\n", operators, c.DataDir)
	if c.Demo.Sale == "" || c.JWT.Secret.IsZero() {
		return nil
	}
	issuer, err := newIssuer(c)
	if err != nil {
		return err
	}
	random := make([]byte, 3)
	_, _ = rand.Read(random) // never fails: it ends the program instead
	name := hex.EncodeToString(random)
	bearer, err := issuer.Issue("shopper-"+name, demoTokenTTL)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, `Buy from the demo sale; the same line again returns the same order:

curl -i -X POST http://%s/v1/sales/%s/purchases -H 'Authorization: Bearer %s' -H 'Idempotency-Key: try-%s'

Other shoppers: go run . token --config %s --user NAME
`, shoppers, c.Demo.Sale, bearer, name, c.File)
	return nil
}
