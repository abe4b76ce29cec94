package ledger

import (
	"context"
	"fmt"
	"time"
	"unicode/utf8"

	"gorm.io/gorm"

	"flashgate/internal/sale"
)

// maxReasonBytes bounds what an operator says about a change; the column holds as many characters.
const maxReasonBytes = 500

// firstVersion is the version of a new sale's total; Redis counts an unknown one as 0.
const firstVersion = 1

// Inventory is a sale's row: Available + Locked + Sold = Total, in units.
type Inventory struct {
	SaleID                         string
	Total, Available, Locked, Sold int64
	Version                        int64 // of Total
}

// saleRow is a sale with its total and version, which its inventory keeps.
type saleRow struct {
	ID, Title    string
	PriceCents   int64
	Currency     string
	Total        int64
	PerUserLimit int
	StartsAt     moment
	EndsAt       moment
	Status       sale.Status
	Epoch        int64
	Version      int64
}

func (r *saleRow) sale() sale.Sale {
	return sale.Sale{
		ID: r.ID, Title: r.Title, PriceCents: r.PriceCents, Currency: r.Currency,
		Total: r.Total, PerUserLimit: r.PerUserLimit, StartsAt: r.StartsAt.Time, EndsAt: r.EndsAt.Time,
		Status: r.Status, Epoch: r.Epoch, Version: r.Version,
	}
}

const selectSales = "SELECT s.id, s.title, s.price_cents, s.currency, i.total, s.per_user_limit, s.starts_at, s.ends_at," +
	" s.status, s.epoch, i.version FROM sales AS s JOIN inventory AS i ON i.sale_id = s.id"

// CreateSale inserts the sale, its inventory with all units available, and a log row.
// Status may be "" for DRAFT; Epoch and Version are ignored (0 and 1). Times are kept
// to the millisecond. It returns false when a sale with this id and the same terms
// was there. Errors: INVALID_REQUEST, and CONFLICT for other terms.
func (l *Ledger) CreateSale(ctx context.Context, s *sale.Sale) (bool, error) {
	if err := s.Validate(); err != nil {
		return false, err
	}
	status := s.Status
	switch {
	case !utf8.ValidString(s.Title):
		return false, &sale.Error{Code: sale.CodeInvalid, Detail: "title is not UTF-8"}
	case status == "":
		status = sale.Draft
	case status != sale.Draft && status != sale.Opened && status != sale.Paused:
		return false, &sale.Error{Code: sale.CodeInvalid, Detail: fmt.Sprintf("status %q", status)}
	}
	created := false
	err := l.change(ctx, func(tx *gorm.DB) error {
		id, at := l.engine.bytes(s.ID), now()
		insert := tx.Exec(l.engine.insertIgnore+" INTO sales (id, title, price_cents, currency, total, per_user_limit,"+
			" starts_at, ends_at, status, epoch, created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 0, ?)",
			id, s.Title, s.PriceCents, s.Currency, s.Total, s.PerUserLimit, moment{s.StartsAt}, moment{s.EndsAt}, string(status), at)
		if created = insert.RowsAffected == 1; insert.Error != nil || !created {
			return insert.Error
		}
		err := tx.Exec("INSERT INTO inventory (sale_id, total, available, locked, sold, version) VALUES (?, ?, ?, 0, 0, ?)",
			id, s.Total, s.Total, firstVersion).Error
		if err != nil {
			return err
		}
		return l.logTotal(tx, logCreate, s.ID, 0, s.Total, firstVersion, "")
	})
	if err != nil || created {
		return created, err
	}
	have, err := l.Sale(ctx, s.ID)
	if err != nil {
		return false, err
	}
	return false, sameTerms(&have, s)
}

// sameTerms says in which term two sales differ, as a CONFLICT, or nil.
func sameTerms(have, want *sale.Sale) error {
	differs := func(term string, have, want any) error {
		return &sale.Error{Code: sale.CodeConflict, Detail: fmt.Sprintf("this sale exists with %s %v, not %v", term, have, want)}
	}
	millis := func(t time.Time) string { return moment{t}.text() }
	switch {
	case have.Title != want.Title:
		return differs("title", have.Title, want.Title)
	case have.PriceCents != want.PriceCents:
		return differs("price_cents", have.PriceCents, want.PriceCents)
	case have.Currency != want.Currency:
		return differs("currency", have.Currency, want.Currency)
	case have.Total != want.Total:
		return differs("total", have.Total, want.Total)
	case have.PerUserLimit != want.PerUserLimit:
		return differs("per_user_limit", have.PerUserLimit, want.PerUserLimit)
	case millis(have.StartsAt) != millis(want.StartsAt):
		return differs("starts_at", millis(have.StartsAt), millis(want.StartsAt))
	case millis(have.EndsAt) != millis(want.EndsAt):
		return differs("ends_at", millis(have.EndsAt), millis(want.EndsAt))
	}
	return nil
}

// Sale reads one sale. Error: SALE_NOT_FOUND.
func (l *Ledger) Sale(ctx context.Context, id string) (sale.Sale, error) {
	var rows []saleRow
	err := l.read(ctx, func(db *gorm.DB) error {
		return db.Raw(selectSales+" WHERE s.id = ?", l.engine.bytes(id)).Find(&rows).Error
	})
	if err != nil {
		return sale.Sale{}, err
	}
	if len(rows) == 0 {
		return sale.Sale{}, notFound(sale.CodeSaleNotFound, "no sale %s", id)
	}
	return rows[0].sale(), nil
}

// Sales reads all sales, drafts too, ordered by starts_at and id.
func (l *Ledger) Sales(ctx context.Context) ([]sale.Sale, error) {
	var rows []saleRow
	err := l.read(ctx, func(db *gorm.DB) error {
		return db.Raw(selectSales + " ORDER BY s.starts_at, s.id").Find(&rows).Error
	})
	sales := make([]sale.Sale, len(rows))
	for i := range rows {
		sales[i] = rows[i].sale()
	}
	return sales, err
}

// SetStatus publishes a draft (DRAFT → OPEN), pauses or reopens a sale (OPEN ↔
// PAUSED). The status it has already: changed is false. Errors: SALE_NOT_FOUND, and
// CONFLICT for any other change.
func (l *Ledger) SetStatus(ctx context.Context, id string, to sale.Status) (changed bool, err error) {
	err = l.change(ctx, func(tx *gorm.DB) error {
		changed = false
		var have []sale.Status
		err := tx.Raw("SELECT status FROM sales WHERE id = ?"+l.engine.forUpdate, l.engine.bytes(id)).Find(&have).Error
		switch {
		case err != nil:
			return err
		case len(have) == 0:
			return notFound(sale.CodeSaleNotFound, "no sale %s", id)
		case have[0] == to:
			return nil
		case have[0] == sale.Draft && to == sale.Opened,
			have[0] == sale.Opened && to == sale.Paused,
			have[0] == sale.Paused && to == sale.Opened:
		default:
			return &sale.Error{Code: sale.CodeConflict, Detail: fmt.Sprintf("a sale that is %s can't become %s", have[0], to)}
		}
		changed = true
		return tx.Exec("UPDATE sales SET status = ? WHERE id = ?", string(to), l.engine.bytes(id)).Error
	})
	return changed && err == nil, err
}

// NextEpoch increments the epoch of a sale's Redis data and returns it: no two calls
// return the same. Error: SALE_NOT_FOUND.
func (l *Ledger) NextEpoch(ctx context.Context, id string) (epoch int64, err error) {
	err = l.change(ctx, func(tx *gorm.DB) error {
		update := tx.Exec("UPDATE sales SET epoch = epoch + 1 WHERE id = ?", l.engine.bytes(id))
		if update.Error != nil {
			return update.Error
		}
		if update.RowsAffected == 0 {
			return notFound(sale.CodeSaleNotFound, "no sale %s", id)
		}
		return tx.Raw("SELECT epoch FROM sales WHERE id = ?", l.engine.bytes(id)).Find(&epoch).Error
	})
	return epoch, err
}

// Inventory reads a sale's units. Error: SALE_NOT_FOUND.
func (l *Ledger) Inventory(ctx context.Context, saleID string) (Inventory, error) {
	var rows []Inventory
	err := l.read(ctx, func(db *gorm.DB) (err error) {
		rows, err = l.inventory(db, saleID, "")
		return err
	})
	if err != nil {
		return Inventory{}, err
	}
	if len(rows) == 0 {
		return Inventory{}, notFound(sale.CodeSaleNotFound, "no sale %s", saleID)
	}
	return rows[0], nil
}

// Inventories reads the units of every sale, for what watches them all.
func (l *Ledger) Inventories(ctx context.Context) (rows []Inventory, err error) {
	err = l.read(ctx, func(db *gorm.DB) error {
		return db.Raw("SELECT sale_id, total, available, locked, sold, version FROM inventory").Find(&rows).Error
	})
	return rows, err
}

func (l *Ledger) inventory(db *gorm.DB, saleID, lock string) (rows []Inventory, err error) {
	err = db.Raw("SELECT sale_id, total, available, locked, sold, version FROM inventory WHERE sale_id = ?"+lock,
		l.engine.bytes(saleID)).Find(&rows).Error
	return rows, err
}

// SetTotal moves a sale's total (units) from version-1 to version; available takes the
// difference, and a log row keeps both totals and the reason. false: the row is at or
// past version already, and nothing changed. Errors: SALE_NOT_FOUND, INVALID_REQUEST,
// and CONFLICT for a cut that available does not cover or a version that skips one.
func (l *Ledger) SetTotal(ctx context.Context, saleID string, total, version int64, reason string) (changed bool, err error) {
	if total < 1 || total > sale.MaxTotal {
		return false, &sale.Error{Code: sale.CodeInvalid, Detail: fmt.Sprintf("total: want 1–%d units, got %d", sale.MaxTotal, total)}
	}
	conflict := func(format string, args ...any) error {
		return &sale.Error{Code: sale.CodeConflict, Detail: fmt.Sprintf(format, args...)}
	}
	err = l.change(ctx, func(tx *gorm.DB) error {
		changed = false
		rows, err := l.inventory(tx, saleID, l.engine.forUpdate)
		switch {
		case err != nil:
			return err
		case len(rows) == 0:
			return notFound(sale.CodeSaleNotFound, "no sale %s", saleID)
		}
		have := rows[0]
		switch {
		case have.Version >= version:
			return nil
		case have.Version != version-1:
			return conflict("total is at version %d, which %d does not follow", have.Version, version)
		case have.Available+total-have.Total < 0:
			return conflict("a cut from %d to %d: only %d units are available", have.Total, total, have.Available)
		}
		changed = true
		id := l.engine.bytes(saleID)
		err = tx.Exec("UPDATE inventory SET available = available + ?, total = ?, version = ? WHERE sale_id = ?",
			total-have.Total, total, version, id).Error
		if err != nil {
			return err
		}
		if err := tx.Exec("UPDATE sales SET total = ? WHERE id = ?", total, id).Error; err != nil {
			return err
		}
		return l.logTotal(tx, logTotal, saleID, have.Total, total, version, reason)
	})
	return changed && err == nil, err
}

func (l *Ledger) logTotal(tx *gorm.DB, kind, saleID string, before, after, version int64, reason string) error {
	return tx.Exec("INSERT INTO inventory_log (sale_id, kind, units, total_before, total_after, version, reason, created_at)"+
		" VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
		l.engine.bytes(saleID), kind, after-before, before, after, version, clip(reason, maxReasonBytes), now()).Error
}
