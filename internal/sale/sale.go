// Package sale is the domain: a sale, its orders, the batch they travel in, and
// the ids and codes by which everyone speaks of them. It imports nothing of ours.
package sale

import (
	"fmt"
	"regexp"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Limits of the domain. A value outside them is refused where it enters.
const (
	MaxIDBytes         = 64 // a sale's id, in bytes
	MaxUserIDBytes     = 64 // a token's sub, in bytes
	MaxRequestKeyBytes = 64 // an Idempotency-Key, in bytes
	MaxTitleBytes      = 200
	MaxQuantity        = 10_000        // units in one purchase; two bytes in the packed record hold it
	MaxTotal           = 1_000_000_000 // units in one sale; far below 2^53, so Lua counts it exactly
)

// Retention is how long after a sale's end its dedup records stay in Redis.
const Retention = 7 * 24 * time.Hour

// Status is a sale's stored state. What a shopper sees is a Phase.
type Status string

// The stored states of a sale.
const (
	Draft  Status = "DRAFT"  // created, shown to no shopper
	Opened Status = "OPEN"   // published: its times decide the phase
	Paused Status = "PAUSED" // published, sells nothing until it is opened again
)

// Phase is what a shopper sees of a sale at an instant.
type Phase string

// The phases of a published sale.
const (
	PhaseUpcoming Phase = "UPCOMING"
	PhaseOpen     Phase = "OPEN"
	PhaseSoldOut  Phase = "SOLD_OUT"
	PhasePaused   Phase = "PAUSED"
	PhaseEnded    Phase = "ENDED"
)

// Sale is one promotion of one article, as the ledger holds it.
type Sale struct {
	ID           string
	Title        string
	PriceCents   int64  // a unit's price; never changes once the sale exists
	Currency     string // ISO 4217, three capital letters
	Total        int64  // units on sale
	PerUserLimit int    // units one user may hold
	StartsAt     time.Time
	EndsAt       time.Time
	Status       Status
	Epoch        int64 // incremented before every load of its Redis data; 0 = never loaded
	Version      int64 // of Total: every change of it is one step
}

var (
	idPattern       = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)
	currencyPattern = regexp.MustCompile(`^[A-Z]{3}$`)
)

// ValidID reports whether id can name a sale: 1–64 of A–Z a–z 0–9 _ -.
func ValidID(id string) bool { return idPattern.MatchString(id) }

// Validate says what is wrong with the sale as an operator wrote it, or nil.
func (s *Sale) Validate() error {
	bad := func(format string, args ...any) error {
		return &Error{Code: CodeInvalid, Detail: fmt.Sprintf(format, args...)}
	}
	switch {
	case !ValidID(s.ID):
		return bad("sale id %q: want 1–64 of A–Z a–z 0–9 _ -", s.ID)
	case s.Title == "" || len(s.Title) > MaxTitleBytes:
		return bad("title: want 1–%d bytes, got %d", MaxTitleBytes, len(s.Title))
	case !utf8.ValidString(s.Title) || strings.ContainsFunc(s.Title, unicode.IsControl):
		return bad("title: want UTF-8 without control characters")
	case s.Total < 1 || s.Total > MaxTotal:
		return bad("total: want 1–%d units, got %d", MaxTotal, s.Total)
	case s.PriceCents < 0 || s.PriceCents > 1e12:
		return bad("price: want 0–10^12 cents, got %d", s.PriceCents)
	case !currencyPattern.MatchString(s.Currency):
		return bad("currency %q: want three capital letters, such as CNY", s.Currency)
	case s.PerUserLimit < 1 || s.PerUserLimit > MaxQuantity:
		return bad("per-user limit: want 1–%d units, got %d", MaxQuantity, s.PerUserLimit)
	case !s.EndsAt.After(s.StartsAt):
		return bad("ends_at %s is not after starts_at %s", s.EndsAt.Format(time.RFC3339), s.StartsAt.Format(time.RFC3339))
	}
	return nil
}

// PhaseAt is what the sale is at now, given the units free to reserve.
func (s *Sale) PhaseAt(now time.Time, stockLeft int64) Phase {
	switch {
	case now.After(s.EndsAt) || now.Equal(s.EndsAt):
		return PhaseEnded
	case s.Status == Paused:
		return PhasePaused
	case now.Before(s.StartsAt):
		return PhaseUpcoming
	case stockLeft <= 0:
		return PhaseSoldOut
	default:
		return PhaseOpen
	}
}
