// Package operator is what operators do to a running system: the operators' port
// with metrics, probes and the admin API, and the service behind it, which the
// command line uses directly or, through Client, on a running process.
package operator

import (
	"context"
	"fmt"
	"time"

	"flashgate/internal/audit"
	"flashgate/internal/ledger"
	"flashgate/internal/limits"
	"flashgate/internal/sale"
	"flashgate/internal/stock"
	"flashgate/reconciler"
)

// Service is what an operator can ask for. Admin does it; Client asks a running
// process to.
type Service interface {
	CreateSale(ctx context.Context, spec SaleSpec) (Change, error)
	Sales(ctx context.Context) ([]SaleView, error)
	Sale(ctx context.Context, id string) (SaleView, error)
	OpenSale(ctx context.Context, id string) (Change, error)
	PauseSale(ctx context.Context, id string) (Change, error)
	LoadSale(ctx context.Context, id string) (Change, error)
	Restock(ctx context.Context, id string, r Restock) (Change, error)
	Reconcile(ctx context.Context, q reconciler.Query) (reconciler.Report, error)
	Audit(ctx context.Context, saleID string) (audit.Report, error)
	// Reports lists reconcile reports, newest first, without their items; limit 0 is 20.
	Reports(ctx context.Context, saleID string, limit int) ([]ledger.ReconcileReport, error)
	Report(ctx context.Context, id int64) (ledger.ReconcileReport, error)
	// Tasks lists the tasks in a state; "" are those that are STUCK, and then the OPEN ones.
	Tasks(ctx context.Context, state ledger.TaskState) ([]TaskView, error)
	RetryTask(ctx context.Context, id int64) (Change, error)
	AbandonTask(ctx context.Context, id int64, d Decision) (Change, error)
	DeadBatches(ctx context.Context) ([]DeadBatchView, error)
	DeadBatch(ctx context.Context, id int64) (DeadBatchView, error)
	ReplayDeadBatch(ctx context.Context, id int64, r Replay) (Change, error)
	Limits(ctx context.Context) (limits.View, error)
	Access(ctx context.Context) ([]AccessView, error)
	SetAccess(ctx context.Context, change AccessChange) (Change, error)
}

// SaleSpec is a sale as an operator writes it.
type SaleSpec struct {
	ID           string    `json:"id"`
	Title        string    `json:"title"`
	Total        int64     `json:"total"` // units
	PriceCents   int64     `json:"price_cents"`
	Currency     string    `json:"currency"`
	PerUserLimit int       `json:"per_user_limit"` // units
	StartsAt     time.Time `json:"starts_at"`      // zero = now, or when the sale that is there has begun
	EndsAt       time.Time `json:"ends_at"`
}

// Change says whether a command changed anything, and what should be known of it.
type Change struct {
	Changed  bool     `json:"changed"`
	Message  string   `json:"message"`
	Warnings []string `json:"warnings,omitempty"`
}

// SaleView is a sale as operators see it: both stores side by side.
type SaleView struct {
	SaleSpec
	Status    sale.Status    `json:"status"`
	Epoch     int64          `json:"epoch"`
	Version   int64          `json:"version"`
	Inventory *InventoryView `json:"inventory,omitempty"`
	Redis     *RedisView     `json:"redis,omitempty"`
	Problem   string         `json:"problem,omitempty"` // why Redis is not shown
}

// InventoryView is the ledger's row, in units.
type InventoryView struct {
	Total     int64 `json:"total"`
	Available int64 `json:"available"`
	Locked    int64 `json:"locked"`
	Sold      int64 `json:"sold"`
}

// RedisView is the sale's Redis side, in units and batches.
type RedisView struct {
	Loaded  bool  `json:"loaded"`
	Stock   int64 `json:"stock"`
	Held    int64 `json:"held"`
	Total   int64 `json:"total"`
	Version int64 `json:"version"`
	Epoch   int64 `json:"epoch"`
	Pending int64 `json:"pending_batches"`
	Batches int64 `json:"unsettled_batches"`
}

// Restock is a change of a sale's total: by Add units, or to Total units.
type Restock struct {
	Add   int64 `json:"add,omitempty"`
	Total int64 `json:"total,omitempty"`
}

// Admin is the Service on the engines themselves.
type Admin struct {
	Ledger     *ledger.Ledger
	Stock      *stock.Store
	Reconciler *reconciler.Reconciler
	Auditor    *audit.Auditor
	Limiter    *limits.Limiter // nil in a process that is no gateway
}

var _ Service = (*Admin)(nil)

// firstVersion is that of a new sale's total; a restock moves it.
const firstVersion = 1

// CreateSale stores a sale as a draft. A sale with the same id and terms is left as
// it is; one with other terms is a CONFLICT. The total that a restock has changed
// since is not another term.
func (a *Admin) CreateSale(ctx context.Context, spec SaleSpec) (Change, error) {
	now := time.Now().UTC().Truncate(time.Millisecond)
	stored, err := a.Ledger.Sale(ctx, spec.ID)
	there := err == nil
	if err != nil && sale.CodeOf(err) != sale.CodeSaleNotFound {
		return Change{}, err
	}
	if spec.StartsAt.IsZero() {
		spec.StartsAt = now
		if there && stored.StartsAt.Before(now) {
			spec.StartsAt = stored.StartsAt
		}
	}
	if there && stored.Version > firstVersion {
		spec.Total = stored.Total
	}
	s := sale.Sale{
		ID: spec.ID, Title: spec.Title, PriceCents: spec.PriceCents, Currency: spec.Currency, Total: spec.Total,
		PerUserLimit: spec.PerUserLimit, StartsAt: spec.StartsAt.UTC(), EndsAt: spec.EndsAt.UTC(), Status: sale.Draft,
	}
	if err := s.Validate(); err != nil {
		return Change{}, err
	}
	created, err := a.Ledger.CreateSale(ctx, &s)
	if err != nil {
		return Change{}, err
	}
	c := Change{Changed: created, Message: fmt.Sprintf("sale %s created: %d units; open it with `flashgate sale open %s`", s.ID, s.Total, s.ID)}
	if !created {
		c.Message = fmt.Sprintf("sale %s is there already, with these terms", s.ID)
	}
	switch {
	case now.After(s.EndsAt):
		c.Warnings = append(c.Warnings, "ends_at is in the past: the sale will be ENDED when it is opened")
	case now.Sub(s.StartsAt) > time.Minute:
		c.Warnings = append(c.Warnings, "starts_at is in the past: the sale will be OPEN as soon as it is opened")
	}
	return c, nil
}

// OpenSale publishes a sale, or ends its pause. Its Redis data is loaded first: an
// opened sale is one that can sell.
func (a *Admin) OpenSale(ctx context.Context, id string) (Change, error) {
	if err := a.loaded(ctx, id); err != nil {
		return Change{}, err
	}
	changed, err := a.Ledger.SetStatus(ctx, id, sale.Opened)
	if err != nil {
		return Change{}, err
	}
	s, err := a.Ledger.Sale(ctx, id)
	if err != nil {
		return Change{}, err
	}
	phase := s.PhaseAt(time.Now(), s.Total)
	c := Change{Changed: changed, Message: fmt.Sprintf("sale %s is open to shoppers: %s", id, phase)}
	if !changed {
		c.Message = fmt.Sprintf("sale %s was open already: %s", id, phase)
	}
	if phase == sale.PhaseEnded {
		c.Warnings = append(c.Warnings, "its ends_at has passed: it sells nothing")
	}
	return c, nil
}

// A load by another process is waited for this long.
const (
	loadPollMillis  = 50
	loadWaitSeconds = 10
)

// loaded loads a sale, or waits until another process has: once a sale is published,
// Redis must have it.
func (a *Admin) loaded(ctx context.Context, id string) error {
	limit := time.Now().Add(loadWaitSeconds * time.Second)
	for {
		if _, err := a.Reconciler.Load(ctx, id); err != nil {
			return err
		}
		snap, err := a.Stock.Snapshot(ctx, id)
		if err != nil || snap.Loaded {
			return err
		}
		if time.Now().After(limit) {
			return &sale.Error{Code: sale.CodeConflict, Detail: "another process is loading the sale and has not finished: try again"}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(loadPollMillis * time.Millisecond):
		}
	}
}

// PauseSale stops a sale from selling until it is opened again.
func (a *Admin) PauseSale(ctx context.Context, id string) (Change, error) {
	changed, err := a.Ledger.SetStatus(ctx, id, sale.Paused)
	if err != nil {
		return Change{}, err
	}
	c := Change{Changed: changed, Message: fmt.Sprintf("sale %s is paused", id)}
	if !changed {
		c.Message = fmt.Sprintf("sale %s was paused already", id)
	}
	return c, nil
}

// LoadSale fills Redis with a sale that it has not.
func (a *Admin) LoadSale(ctx context.Context, id string) (Change, error) {
	loaded, err := a.Reconciler.Load(ctx, id)
	if err != nil {
		return Change{}, err
	}
	c := Change{Changed: loaded, Message: fmt.Sprintf("sale %s is loaded into Redis", id)}
	if !loaded {
		c.Message = fmt.Sprintf("sale %s was loaded already", id)
	}
	return c, nil
}

// Restock changes a sale's total. A raise is written in the ledger first, a cut in
// Redis first: whichever way a crash leaves them, no unit is sold that is not there,
// and the reconciler brings the side behind to the other.
func (a *Admin) Restock(ctx context.Context, id string, r Restock) (Change, error) {
	if (r.Add == 0) == (r.Total == 0) {
		return Change{}, &sale.Error{Code: sale.CodeInvalid, Detail: "give either add (units, may be negative) or total (units)"}
	}
	if err := a.Reconciler.LevelTotal(ctx, id); err != nil {
		return Change{}, err
	}
	inv, err := a.Ledger.Inventory(ctx, id)
	if err != nil {
		return Change{}, err
	}
	total := r.Total
	if r.Add != 0 {
		total = inv.Total + r.Add
	}
	if total < 1 || total > sale.MaxTotal {
		return Change{}, &sale.Error{Code: sale.CodeInvalid, Detail: fmt.Sprintf("the total would be %d: want 1–%d units", total, sale.MaxTotal)}
	}
	version := inv.Version + 1
	done := Change{Changed: true, Message: fmt.Sprintf("sale %s: total %d → %d units", id, inv.Total, total)}
	switch {
	case total == inv.Total:
		return Change{Message: fmt.Sprintf("sale %s has %d units already", id, total)}, nil
	case total > inv.Total:
		moved, err := a.Ledger.SetTotal(ctx, id, total, version, "restock")
		if err != nil {
			return Change{}, err
		}
		if !moved {
			return Change{}, errRaced
		}
		if _, err := a.Stock.Adjust(ctx, id, total, version); err != nil {
			done.Warnings = append(done.Warnings, "Redis has not taken it yet ("+err.Error()+"); the reconciler will bring it there")
		}
		return done, nil
	default:
		cut, err := a.Stock.Adjust(ctx, id, total, version)
		if err != nil {
			return Change{}, err
		}
		if !cut {
			return Change{}, &sale.Error{Code: sale.CodeConflict, Detail: fmt.Sprintf("fewer than %d units are free: a cut takes only free ones", inv.Total-total)}
		}
		// The ledger follows; if it cannot, the cut is taken back on both sides.
		if err := a.Reconciler.LevelTotal(ctx, id); err != nil {
			done.Warnings = append(done.Warnings, "the ledger has not taken it yet ("+err.Error()+"); the reconciler will bring it there")
			return done, nil //nolint:nilerr // the cut stands; the warning says what is left
		}
		after, err := a.Ledger.Inventory(ctx, id)
		if err == nil && after.Total != total {
			return Change{}, &sale.Error{Code: sale.CodeConflict, Detail: "the units were sold meanwhile: nothing was cut"}
		}
		return done, err
	}
}

var errRaced = &sale.Error{Code: sale.CodeConflict, Detail: "another restock came first: look at the total and try again"}

// Reconcile runs a reconcile now.
func (a *Admin) Reconcile(ctx context.Context, q reconciler.Query) (reconciler.Report, error) {
	return a.Reconciler.Reconcile(ctx, q)
}

// Audit checks the invariants on what is stored, for one sale or ("") all.
func (a *Admin) Audit(ctx context.Context, saleID string) (audit.Report, error) {
	return a.Auditor.Audit(ctx, saleID)
}
