// Package stock is the sale's side in Redis: who holds which unit, and what has
// become of each batch. Every change is one Lua script of lua/; the same code runs
// on a Redis Cluster and on miniredis.
//
// # Data
//
// A sale has five keys, in one hash slot (keysOf builds them):
//
//	fg:{S}:stock    string  units free to reserve; absent = not loaded: nothing is sold
//	fg:{S}:buyers   hash    user, verbatim → their records, one after the other
//	fg:{S}:batches  hash    batch id → RESERVED or CONFIRMED with its orders, or VOID
//	fg:{S}:pending  zset    RESERVED batch id → deadline, ms of Redis time
//	fg:{S}:meta     hash    epoch, total, version, held, moves (and, during a load,
//	                        loading and steps)
//
// Records and batches are packed (lua/prelude.lua gives the bytes), and a request key
// that is a UUID takes 16 bytes. A batch id is its 8 bytes, as a field too: Lua can't
// make a decimal of 63 bits, and a record has to lead to its batch. Held counts the
// units of HELD records; stock + held = total after every script (invariant 4a).
// Moves grows with every change of a record, so that a recount in slices sees that it
// was disturbed.
//
// The scripts' rules are those of ARCHITECTURE.md; each script's header says what it
// returns.
package stock

import (
	"context"
	"time"

	"flashgate/internal/sale"
)

// State is what Redis knows of a batch. The scripts use the same numbers.
type State uint8

// The states of a batch.
const (
	StateAbsent     State = iota // no record, and nothing to conclude from that
	StateReserved                // units are held, the shopper has no answer yet
	StateConfirmed               // promised
	StateSettled                 // removed after the ledger took it; a buyer's record names it
	StateVoid                    // shall never happen
	StateOtherEpoch              // no record, no buyer names it, and Redis was rebuilt since: nothing was written
)

func (s State) String() string {
	names := [...]string{"absent", "reserved", "confirmed", "settled", "void", "other epoch"}
	if int(s) >= len(names) {
		return "malformed"
	}
	return names[s]
}

// Verdict is reserve's answer to one order, in the order of precedence.
type Verdict uint8

// The verdicts. The script uses the same numbers.
const (
	Reserved     Verdict = iota // the order holds its units
	KeyReused                   // the key's order has another quantity
	Replay                      // the key has an order: see the other fields
	Paused                      // the sale is paused
	NotStarted                  // before starts_at, by Redis time
	Ended                       // at or after ends_at, by Redis time
	LimitReached                // the user would hold more than the limit
	SoldOut                     // fewer units left than asked for
)

func (v Verdict) String() string {
	names := [...]string{"reserved", "key reused", "replay", "paused", "not started", "ended", "limit reached", "sold out"}
	if int(v) >= len(names) {
		return "malformed"
	}
	return names[v]
}

// Outcome is reserve's answer to one order. The fields after Verdict describe the
// order that a Replay or KeyReused found: the key's HELD one, or else the latest that
// was returned.
type Outcome struct {
	Verdict  Verdict
	OrderID  sale.ID
	BatchID  sale.ID
	Quantity int
	Returned bool // the order gave its units back (cancelled)
	// Batch is StateReserved, StateConfirmed or StateSettled. For a Returned order it
	// may be StateAbsent or StateVoid as well, which says nothing more of the order.
	Batch State
}

// Terms are the conditions reserve holds an order against.
type Terms struct {
	StartsAt     time.Time
	EndsAt       time.Time
	Paused       bool
	PerUserLimit int // units
}

// Record is one order in its buyer's record: the holder of units.
type Record struct {
	OrderID    sale.ID
	BatchID    sale.ID
	UserID     string
	RequestKey string
	Quantity   int
	Returned   bool  // RETURNED; otherwise HELD
	Batch      State // of BatchID; only Lookup fills it in, as Outcome.Batch
}

// BatchRecord is one unsettled batch.
type BatchRecord struct {
	ID       sale.ID
	State    State        // StateReserved, StateConfirmed or StateVoid
	Orders   []sale.Order // without AmountCents, which is not kept here; none for VOID
	VoidedAt time.Time    // Redis time; for VOID only
}

// Snapshot is a sale's Redis side at one instant, read in O(1). Of a sale that is not
// loaded it has Now alone.
type Snapshot struct {
	Loaded  bool
	Stock   int64 // units free to reserve; may be below zero
	Held    int64 // units of HELD records
	Total   int64
	Version int64
	Epoch   int64
	Pending int64     // RESERVED batches
	Batches int64     // unsettled batches, VOID included
	Buyers  int64     // users with a record
	Now     time.Time // Redis time

	moves int64 // changes of records, from another start under each epoch
}

// LoadSource streams what a load writes, in the order of its fields. Each func calls its
// argument with slices and returns the first error; nil = none. An order that comes twice
// is loaded once.
type LoadSource struct {
	Orders  func(ctx context.Context, each func([]LoadedOrder) error) error // of the ledger, of any status
	Batches func(ctx context.Context, each func([]sale.Batch) error) error  // undelivered: become CONFIRMED
	// Owed are orders of batches that the ledger consumed and Redis has not settled: of
	// those consumed after Orders had passed them, too.
	Owed func(ctx context.Context, each func([]LoadedOrder) error) error
}

// LoadedOrder is an order of the ledger on its way into a buyer's record.
type LoadedOrder struct {
	sale.Order
	BatchID  sale.ID
	Returned bool // cancelled: it holds no units
}
