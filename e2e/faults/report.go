package faults

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Line is a round in one line.
func (r *Result) Line(number int) string {
	end := "ok"
	if len(r.Breaches) > 0 {
		end = fmt.Sprintf("%d BREACHES", len(r.Breaches))
	}
	if r.Broken > 0 {
		end = fmt.Sprintf("%d 202s turned out otherwise, %s", r.Broken, end)
	}
	for _, kind := range slices.Sorted(maps.Keys(r.Mended)) {
		end += fmt.Sprintf(", mended %d %s", r.Mended[kind], kind)
	}
	return fmt.Sprintf("round %3d  seed %-10d  purchases %5d  unknown %4d  accepted %4d  orders %4d  cancelled %d  load %4.1f s  heal %4.1f s  rest %4.1f s  %s  [%s]",
		number, r.Seed, r.Purchases, r.Unknown, r.Accepted, r.Orders, r.Cancelled,
		r.Load.Seconds(), r.Heal.Seconds(), r.Rest.Seconds(), end, strings.Join(r.Faults, ", "))
}

// Tally is many rounds.
type Tally struct {
	rounds, purchases, unknown, accepted, orders, cancelled, broken, passed, breaches int
	kinds, mended                                                                     map[string]int
	heal, rest                                                                        time.Duration // longest
	restOf                                                                            uint64
}

// Add counts a round.
func (t *Tally) Add(r Result) {
	if t.kinds == nil {
		t.kinds, t.mended = make(map[string]int), make(map[string]int)
	}
	t.rounds++
	t.purchases += r.Purchases
	t.unknown += r.Unknown
	t.accepted += r.Accepted
	t.orders += r.Orders
	t.cancelled += r.Cancelled
	t.broken += r.Broken
	t.passed += r.Passed
	t.breaches += len(r.Breaches)
	for _, k := range r.Kinds {
		t.kinds[k]++
	}
	for kind, n := range r.Mended {
		t.mended[kind] += n
	}
	t.heal = max(t.heal, r.Heal)
	if r.Rest >= t.rest {
		t.rest, t.restOf = r.Rest, r.Seed
	}
}

func (t *Tally) String() string {
	var b strings.Builder
	all := 0
	names := make([]string, 0, len(t.kinds))
	for name, n := range t.kinds {
		names = append(names, name)
		all += n
	}
	slices.Sort(names)
	fmt.Fprintf(&b, "%d rounds, %d faults, %d purchases (%d with an open outcome), %d orders promised, %d in the ledger, %d promises cancelled, %d turned out otherwise, %d breaches\n",
		t.rounds, all, t.purchases, t.unknown, t.accepted, t.orders, t.cancelled, t.broken, t.breaches)
	fmt.Fprintf(&b, "longest until all was ready again %.1f s, and from there until all was settled %.1f s (seed %d)\n",
		t.heal.Seconds(), t.rest.Seconds(), t.restOf)
	for _, name := range names {
		fmt.Fprintf(&b, "  %-12s %4d\n", name, t.kinds[name])
	}
	for _, kind := range slices.Sorted(maps.Keys(t.mended)) {
		fmt.Fprintf(&b, "  mended by the reconciler: %s %d\n", kind, t.mended[kind])
	}
	fmt.Fprintf(&b, "  failpoints passed %d", t.passed)
	return b.String()
}
