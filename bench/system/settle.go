package system

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"flashgate/bench/report"
)

// The rules that stocks are held to when a run is over.
const (
	RuleStockLeft = "stock_left is the total less the orders [4]"
	ruleLedger    = "the ledger holds exactly the orders that were promised [1, 2, 4]"
	RuleAudit     = "flashgate audit finds no breach"
)

// auditMargin is for clocks: an order's time is its gateway's.
const auditMargin = 200 * time.Millisecond

// Settled is what stands after a run.
type Settled struct {
	Drained  time.Time
	Audit    json.RawMessage
	Compared int64 // orders that the audit held against each other in both stores
}

// audited is what is read of an audit's findings; the rest is shown as it came.
type audited struct {
	Sales []struct {
		Orders      int64 `json:"ledger_orders_compared"`
		Records     int64 `json:"redis_records_compared"`
		Active      int64 `json:"active_units"`
		Stock       int64 `json:"stock"`
		Younger     int64 `json:"younger_than_watermark"`
		OpenBatches int64 `json:"open_batches"`
	} `json:"sales"`
}

// compared is the number of orders that an audit compared: those younger than the
// watermark of a process that runs with its own config are not.
func compared(findings json.RawMessage) (n int64) {
	var a audited
	if json.Unmarshal(findings, &a) != nil {
		return 0 // shown as it is: nothing that is known to be compared
	}
	for _, s := range a.Sales {
		n += min(s.Orders, s.Records)
	}
	return n
}

// AwaitAudit audits a sale whose buyers are not the driver's own, until everything of it
// has arrived: no batch on its way, and no unit neither free nor sold. It returns the
// units that the ledger has sold.
func (s *System) AwaitAudit(ctx context.Context, o *Options, sale Sale) (sold int64, out Settled, bs report.Breaches, err error) {
	s.Progress.Step("flashgate audit --sale %s, when everything has arrived", sale.ID)
	config, err := WriteConfig(s.Config, s.Dir, "audit.yaml", Setup{Watermark: auditWatermark.String()})
	if err != nil {
		return 0, out, nil, err
	}
	waiting, cancel := context.WithTimeout(ctx, o.Drain)
	defer cancel()
	var ok bool
	late := await(waiting, func() error {
		findings, sound, failed := s.audit(ctx, config, sale.ID)
		if failed != nil {
			return failed
		}
		var a audited
		if err := json.Unmarshal(findings, &a); err != nil || len(a.Sales) != 1 {
			return fmt.Errorf("the audit is not one of one sale: %.300s", findings)
		}
		ok, out.Audit, out.Compared, out.Drained = sound, findings, compared(findings), time.Now()
		of := a.Sales[0]
		sold = of.Active
		if of.OpenBatches > 0 || of.Younger > 0 || of.Active+of.Stock != int64(sale.Total) {
			return fmt.Errorf("%d batches open, %d orders young, %d sold and %d left of %d", of.OpenBatches, of.Younger, of.Active, of.Stock, sale.Total)
		}
		return nil
	})
	switch {
	case ctx.Err() != nil:
		return sold, out, nil, ctx.Err()
	case out.Audit == nil:
		return sold, out, nil, late
	case late != nil:
		bs.Add(RulePersisted, "%v", late)
	case !ok:
		bs.Add(RuleAudit, "%.2000s", out.Audit)
	}
	return sold, out, bs, nil
}

// Settle waits until all orders are in the ledger and checks the stores from outside:
// every order by its owner, and of each sale stock_left, MySQL's own rows if they are
// to be counted, and the audit.
func (s *System) Settle(ctx context.Context, o *Options, sales []Sale, orders []Placed) (Settled, report.Breaches, error) {
	newestFirst(orders)
	at, bs, err := s.Drain(ctx, orders, o.Drain)
	if err != nil {
		return Settled{}, bs, fmt.Errorf("waiting for the orders: %w", err)
	}
	sold := make(map[string]int, len(sales))
	for i := range orders {
		sold[orders[i].Owner.Sale]++
	}
	out, more, err := s.Verify(ctx, o, sales, sold, at)
	return out, append(bs, more...), err
}

// Verify checks the stores of sales, of which all orders are known to be in the ledger
// since drained: stock_left, MySQL's own rows if they are to be counted, and the audit.
func (s *System) Verify(ctx context.Context, o *Options, sales []Sale, sold map[string]int, drained time.Time) (Settled, report.Breaches, error) {
	out := Settled{Drained: drained}
	var bs report.Breaches
	for _, sale := range sales {
		if err := s.checkStock(ctx, o, sale, sold[sale.ID], &bs); err != nil {
			return out, bs, err
		}
	}
	select { // until the youngest order is past the watermark too
	case <-ctx.Done():
		return out, bs, ctx.Err()
	case <-time.After(time.Until(drained.Add(auditWatermark + auditMargin))):
	}
	return out, bs, s.auditAll(ctx, sales, &out, &bs)
}

// checkStock holds what a sale shows, and has in MySQL, against the orders there were.
func (s *System) checkStock(ctx context.Context, o *Options, sale Sale, orders int, bs *report.Breaches) error {
	left, status := int64(sale.Total-orders), "OPEN"
	if left <= 0 {
		left, status = 0, "SOLD_OUT"
	}
	if err := s.awaitSale(ctx, sale.ID, status, left, stockTimeoutSeconds*time.Second); err != nil {
		if ctx.Err() != nil {
			return err
		}
		bs.Add(RuleStockLeft, "%v", err)
	}
	if o.MySQL {
		return checkMySQL(ctx, bs, s.Secret(EnvMySQLDSN), sale.ID, orders, sale.Total)
	}
	return nil
}

// auditAll audits every sale, some at a time.
func (s *System) auditAll(ctx context.Context, sales []Sale, out *Settled, bs *report.Breaches) error {
	if len(sales) == 1 {
		s.Progress.Step("flashgate audit --sale %s", sales[0].ID)
	} else {
		s.Progress.Step("flashgate audit, of %d sales", len(sales))
	}
	audits := make([]json.RawMessage, len(sales))
	sound := make([]bool, len(sales))
	config, err := WriteConfig(s.Config, s.Dir, "audit.yaml", Setup{Watermark: auditWatermark.String()})
	if err != nil {
		return err
	}
	err = sideBySide(ctx, len(sales), func(ctx context.Context, i int) (err error) {
		audits[i], sound[i], err = s.audit(ctx, config, sales[i].ID)
		return err
	})
	if err != nil {
		return err
	}
	for i, findings := range audits {
		out.Compared += compared(findings)
		if !sound[i] {
			bs.Add(RuleAudit, "%.2000s", findings) // the JSON report has all of it
		}
	}
	if out.Audit = audits[0]; len(sales) > 1 {
		out.Audit, err = json.Marshal(audits)
	}
	return err
}

// commandsSideBySide bounds the commands that run at one time: each is a process.
const commandsSideBySide = 4

func sideBySide(ctx context.Context, n int, do func(ctx context.Context, i int) error) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(commandsSideBySide)
	for i := range n {
		g.Go(func() error { return do(ctx, i) })
	}
	return g.Wait()
}
