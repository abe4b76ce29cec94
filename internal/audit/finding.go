// Package audit compares what Redis and the ledger hold of a sale, order by order,
// and checks the invariants on it. It changes nothing; the reconciler repairs what
// it finds.
package audit

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"flashgate/internal/ledger"
	"flashgate/internal/sale"
)

// Kind names a difference.
type Kind string

// The kinds of difference, each with the invariant that it breaks.
const (
	ConfirmedNotPersisted   Kind = "CONFIRMED_NOT_PERSISTED"    // promised, older than the watermark, not in the ledger
	PersistedUnknownToRedis Kind = "PERSISTED_UNKNOWN_TO_REDIS" // active in the ledger, no buyer's record
	CancelledStillHeld      Kind = "CANCELLED_STILL_HELD"       // its units are not back
	HeldWithoutOrder        Kind = "HELD_WITHOUT_ORDER"         // a settled record that the ledger does not know
	ReturnedButActive       Kind = "RETURNED_BUT_ACTIVE"        // given back in Redis, active in the ledger
	ConsumedNotSettled      Kind = "CONSUMED_NOT_SETTLED"       // in the ledger, still open in Redis
	QuantityDiffers         Kind = "QUANTITY_DIFFERS"
	StockDrift              Kind = "STOCK_DRIFT"         // stock + held is not total
	TotalDiffers            Kind = "TOTAL_DIFFERS"       // the two stores have other totals
	NotLoaded               Kind = "NOT_LOADED"          // a published sale that Redis has not
	LedgerCountsDrift       Kind = "LEDGER_COUNTS_DRIFT" // the inventory row is not what its orders say
	Oversold                Kind = "OVERSOLD"            // more active units than the total
	LimitExceeded           Kind = "LIMIT_EXCEEDED"      // a user's active units are over the limit
	DoubleOrder             Kind = "DOUBLE_ORDER"        // two active orders of one (user, key)
	StuckReservation        Kind = "STUCK_RESERVATION"   // RESERVED long after its deadline
	StuckTask               Kind = "STUCK_TASK"          // a task out of tries
)

// invariants maps each kind to the invariant of DESIGN that it breaks.
var invariants = map[Kind]string{
	ConfirmedNotPersisted:   "2",
	PersistedUnknownToRedis: "4c",
	CancelledStillHeld:      "4c",
	HeldWithoutOrder:        "4c",
	ReturnedButActive:       "4c",
	ConsumedNotSettled:      "4c",
	QuantityDiffers:         "4c",
	StockDrift:              "4a",
	TotalDiffers:            "4c",
	NotLoaded:               "4c",
	LedgerCountsDrift:       "4b",
	Oversold:                "1",
	LimitExceeded:           "8",
	DoubleOrder:             "3",
	StuckReservation:        "7",
	StuckTask:               "7",
}

// Kinds are all of them, in the order of their names.
func Kinds() []Kind { return slices.Sorted(maps.Keys(invariants)) }

// Finding is one difference.
type Finding struct {
	Kind    Kind
	SaleID  string
	OrderID sale.ID // 0 where it is not about one order
	BatchID sale.ID // 0 where it is not about one batch
	UserID  string
	Units   int64
	Detail  string
	Before  string // the side to be mended, as it stands; "" where that can't be said in short
	After   string // as the other side has it
}

// Invariant is the number of the invariant the finding breaks.
func (f *Finding) Invariant() string { return invariants[f.Kind] }

// Compared counts what one comparison looked at.
type Compared struct {
	Balance      ledger.Balance
	LedgerOrders int64 // older than the watermark
	RedisRecords int64 // older than the watermark
	Younger      int64 // records younger than the watermark: not compared
	OpenBatches  int64 // RESERVED or CONFIRMED, of any age
	NotLoaded    bool  // Redis has not the sale: only the ledger was checked
	NotRecounted bool  // too many records and too busy: Redis was checked by its meta alone

	Accepted      []Accepted // what is left by decision, the first of it
	AcceptedUnits int64      // of all of it
}

// Report is what an audit found, for people and machines.
type Report struct {
	OK        bool         `json:"ok"`
	CheckedAt time.Time    `json:"checked_at"`
	Took      string       `json:"took"`
	Watermark string       `json:"watermark"`
	Sales     []SaleReport `json:"sales"`
	Breaches  []Breach     `json:"breaches"`
	Breached  int          `json:"breached"` // all of them; Breaches is cut at maxBreaches
	Accepted  []Accepted   `json:"accepted"` // no breach: an operator has decided so; cut at maxAccepted a sale
}

// SaleReport is one sale's terms of conservation, in units, and what was compared.
type SaleReport struct {
	SaleID       string `json:"sale_id"`
	Total        int64  `json:"total"`
	Available    int64  `json:"available"`
	Locked       int64  `json:"locked"`
	Sold         int64  `json:"sold"`
	Stock        int64  `json:"stock"`
	Held         int64  `json:"held"`
	Loaded       bool   `json:"loaded"`
	ActiveUnits  int64  `json:"active_units"`
	LedgerOrders int64  `json:"ledger_orders_compared"`
	RedisRecords int64  `json:"redis_records_compared"`
	Younger      int64  `json:"younger_than_watermark"`
	OpenBatches  int64  `json:"open_batches"`
	NotRecounted bool   `json:"not_recounted,omitempty"`
	Accepted     int64  `json:"accepted_units,omitempty"` // held for cancelled orders, by decision
}

// Accepted is a difference that an operator has decided to leave: units that Redis holds
// for a cancelled order, whose give-back was abandoned.
type Accepted struct {
	SaleID  string    `json:"sale_id"`
	OrderID sale.ID   `json:"order_id"`
	UserID  string    `json:"user_id"`
	Units   int64     `json:"units"`
	TaskID  int64     `json:"task_id"`
	By      string    `json:"by"`
	Reason  string    `json:"reason"`
	At      time.Time `json:"at"`
}

func (a *Accepted) String() string {
	return fmt.Sprintf("sale %s  order %s  %d units stay held: task %d was abandoned by %s on %s: %s",
		a.SaleID, a.OrderID, a.Units, a.TaskID, a.By, a.At.Format(time.DateOnly), a.Reason)
}

// maxAccepted bounds what a comparison lists of a sale; the units go on.
const maxAccepted = 1000

// Breach is a broken invariant, with the ids that show it.
type Breach struct {
	Invariant string `json:"invariant"`
	Kind      Kind   `json:"kind"`
	SaleID    string `json:"sale_id"`
	OrderID   string `json:"order_id,omitempty"`
	BatchID   string `json:"batch_id,omitempty"`
	UserID    string `json:"user_id,omitempty"`
	Units     int64  `json:"units,omitempty"`
	Detail    string `json:"detail"`
}

// maxBreaches bounds a report; the count goes on.
const maxBreaches = 1000

func (r *Report) add(f Finding) {
	r.OK = false
	r.Breached++
	if len(r.Breaches) == maxBreaches {
		return
	}
	b := Breach{
		Invariant: f.Invariant(), Kind: f.Kind, SaleID: f.SaleID, UserID: f.UserID, Units: f.Units, Detail: f.Detail,
	}
	if f.OrderID != 0 {
		b.OrderID = f.OrderID.String()
	}
	if f.BatchID != 0 {
		b.BatchID = f.BatchID.String()
	}
	r.Breaches = append(r.Breaches, b)
}

func (b *Breach) String() string {
	s := fmt.Sprintf("invariant %s  %s  sale %s", b.Invariant, b.Kind, b.SaleID)
	if b.OrderID != "" {
		s += "  order " + b.OrderID
	}
	if b.BatchID != "" {
		s += "  batch " + b.BatchID
	}
	if b.UserID != "" {
		s += fmt.Sprintf("  user %q", b.UserID)
	}
	return s + "  " + b.Detail
}
