package sale

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// AccessKind says what an access rule is about.
type AccessKind string

// The kinds of access rules.
const (
	AccessUser    AccessKind = "USER"    // a token's sub, verbatim
	AccessAddress AccessKind = "ADDRESS" // an address or a network
)

// Access is what a rule says of a user or an address.
type Access string

// What an access rule can say.
const (
	AccessBlock Access = "BLOCK" // refused
	AccessAllow Access = "ALLOW" // never blocked, and not held to the limits of one user or address
	AccessLift  Access = "LIFT"  // no rule any more
)

// MaxAccessRules bounds the rules in force that operators made: every gateway holds
// them all, some 200 bytes each.
const MaxAccessRules = 100_000

// MaxReasonBytes bounds what an operator says of a rule.
const MaxReasonBytes = 500

// AccessRule is what an operator decided about a user or an address. A later one about
// the same replaces it.
type AccessRule struct {
	ID        int64 // grows; the ledger gives it
	Kind      AccessKind
	Value     string // a user; or a network in its canonical form
	Access    Access
	By        string // who said so
	Reason    string
	Until     time.Time // then it ends by itself; zero = never
	CreatedAt time.Time
}

// Canonical checks a rule as an operator wrote it and brings its value into the form
// in which it is compared. Error: INVALID_REQUEST.
func (r *AccessRule) Canonical() error {
	invalid := func(format string, args ...any) error {
		return &Error{Code: CodeInvalid, Detail: fmt.Sprintf(format, args...)}
	}
	switch r.Access {
	case AccessBlock, AccessAllow, AccessLift:
	default:
		return invalid("access %q: want %s, %s or %s", r.Access, AccessBlock, AccessAllow, AccessLift)
	}
	if len(r.Reason) > MaxReasonBytes {
		return invalid("reason: want at most %d bytes", MaxReasonBytes)
	}
	switch r.Kind {
	case AccessUser:
		if r.Value == "" || len(r.Value) > MaxUserIDBytes {
			return invalid("a user is 1–%d bytes", MaxUserIDBytes)
		}
	case AccessAddress:
		p, err := ParseNetwork(r.Value)
		if err != nil {
			return invalid("%v", err)
		}
		r.Value = p.String()
	default:
		return invalid("kind %q: want %s or %s", r.Kind, AccessUser, AccessAddress)
	}
	return nil
}

// ParseNetwork reads an address, which is a network of one, or a network such as
// 192.0.2.0/24. An IPv4 address written as IPv6 is IPv4.
func ParseNetwork(text string) (netip.Prefix, error) {
	if p, err := netip.ParsePrefix(text); err == nil {
		if !p.Addr().Is4In6() {
			return p.Masked(), nil
		}
		if p.Bits() >= 96 {
			return netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96).Masked(), nil
		}
	} else if a, err := netip.ParseAddr(text); err == nil && a.Zone() == "" {
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	return netip.Prefix{}, fmt.Errorf("%q: want an address such as 192.0.2.7 or a network such as 192.0.2.0/24 or 2001:db8::/32", text)
}

// AccessBook is the rules that operators made, brought up to date rule by rule. The
// zero value is empty.
type AccessBook struct {
	last  int64
	rules map[accessKey]AccessRule
}

type accessKey struct {
	kind  AccessKind
	value string
}

// AccessSource is where rules are kept.
type AccessSource interface {
	// AccessSince reads up to limit rules with ids after id, in their order.
	AccessSince(ctx context.Context, id int64, limit int) ([]AccessRule, error)
}

// accessPage is how many rules are read at a time, some 200 bytes each.
const accessPage = 5000

// Read enters the rules that were made since it was last called, and drops those that are
// over at now. changed says whether any rule came or went; after an error, what was read
// before it is in the book, and the next Read goes on from there.
func (b *AccessBook) Read(ctx context.Context, from AccessSource, now time.Time) (changed bool, err error) {
	for {
		page, err := from.AccessSince(ctx, b.last, accessPage)
		b.take(page)
		changed = changed || len(page) > 0
		if err != nil || len(page) < accessPage {
			return b.drop(now) || changed, err
		}
	}
}

// take enters rules, in the order of their ids.
func (b *AccessBook) take(rules []AccessRule) {
	if b.rules == nil {
		b.rules = map[accessKey]AccessRule{}
	}
	for _, r := range rules {
		b.last = r.ID
		if r.Access == AccessLift {
			delete(b.rules, accessKey{r.Kind, r.Value})
		} else {
			b.rules[accessKey{r.Kind, r.Value}] = r
		}
	}
}

// drop drops the rules that are over at now, and says whether there were any.
func (b *AccessBook) drop(now time.Time) (some bool) {
	for key, r := range b.rules {
		if !r.Until.IsZero() && !now.Before(r.Until) {
			delete(b.rules, key)
			some = true
		}
	}
	return some
}

// Rules lists those in force, oldest first.
func (b *AccessBook) Rules() []AccessRule {
	list := make([]AccessRule, 0, len(b.rules))
	for _, r := range b.rules {
		list = append(list, r)
	}
	slices.SortFunc(list, func(x, y AccessRule) int { return cmp.Compare(x.ID, y.ID) })
	return list
}
