package scenario

import (
	"net/http"
	"slices"

	"flashgate/bench/load"
	"flashgate/bench/report"
)

// The rules that answers are held to.
const (
	RuleAnswered = "every request is answered"
	RuleOrderID  = "a 202 names its order"
	RuleDistinct = "no two shoppers get one order [3]"
	RuleSameID   = "all sends with one key get the same order [3]"
	RuleTruthful = "who was told 202 is told 202 again [9]"
	RuleReplayed = "of the sends with one key, all but one are marked as replayed"
	RuleOversell = "no more orders than units [1]"
	ruleSellAll  = "a sold-out sale has sold every unit [7]"
	RuleSoldOut  = "who gets no unit is told 409 SOLD_OUT [9]"
	RuleAccepted = "while there is stock, everyone gets an order [9]"
	ruleFresh    = "a first purchase is no replay"
)

// checkSends holds shoppers who all sent n times with one key to the rules:
// answers[s*n:s*n+n] are what shopper s got; everyone wanted one unit of total.
func checkSends(answers []load.Answer, n int, ks *load.Kinds, total int) report.Breaches {
	var bs report.Breaches
	shoppers := len(answers) / n
	owners := make(map[int64]int, min(total, shoppers))
	for s := range shoppers {
		mine := answers[s*n : s*n+n]
		for i := range mine {
			checkAnswered(&bs, s, &mine[i], ks)
			checkOwner(&bs, owners, s, mine[i].Order)
		}
		checkShopper(&bs, s, mine, ks)
	}
	if sold, want := len(owners), min(total, shoppers); sold > want {
		bs.Add(RuleOversell, "%d orders for %d units and %d shoppers", sold, total, shoppers)
	} else if sold < want {
		bs.Add(ruleSellAll, "%d orders for %d units and %d shoppers", sold, total, shoppers)
	}
	return bs
}

// checkAnswered: there was an answer, and an order in it if it was a yes.
func checkAnswered(bs *report.Breaches, s int, a *load.Answer, ks *load.Kinds) {
	switch {
	case a.Status == 0:
		bs.Add(RuleAnswered, "shopper %d: %s", s, ks.At(a.Kind))
	case a.Status == http.StatusAccepted && a.Order == 0:
		bs.Add(RuleOrderID, "shopper %d", s)
	}
}

// checkOwner: nobody else has the order that shopper s was given.
func checkOwner(bs *report.Breaches, owners map[int64]int, s int, order int64) {
	if order == 0 {
		return
	}
	if other, taken := owners[order]; taken && other != s {
		bs.Add(RuleDistinct, "order %d: shoppers %d and %d", order, other, s)
		return
	}
	owners[order] = s
}

// checkShopper holds the sends of one shopper against each other. What was not
// answered is counted already, and says nothing.
func checkShopper(bs *report.Breaches, s int, sends []load.Answer, ks *load.Kinds) {
	won := slices.IndexFunc(sends, func(a load.Answer) bool { return a.Status == http.StatusAccepted })
	if won < 0 {
		for i := range sends {
			if k := ks.At(sends[i].Kind); sends[i].Status != 0 && !soldOut(k) {
				bs.Add(RuleSoldOut, "shopper %d: %s", s, k)
			}
		}
		return
	}
	order, answered, fresh := sends[won].Order, true, 0
	for i := range sends {
		switch a := &sends[i]; {
		case a.Status == 0:
			answered = false
		case a.Status != http.StatusAccepted:
			bs.Add(RuleTruthful, "shopper %d: order %d and %s", s, order, ks.At(a.Kind))
			return
		case a.Order != order:
			bs.Add(RuleSameID, "shopper %d: orders %d and %d", s, order, a.Order)
			return
		case !a.Replayed:
			fresh++
		}
	}
	if fresh > 1 || answered && fresh == 0 {
		bs.Add(RuleReplayed, "shopper %d: order %d, given %d times as new", s, order, fresh)
	}
}

func soldOut(k load.Kind) bool { return k.Status == http.StatusConflict && k.Code == "SOLD_OUT" }

// checkAccept holds a run in which there was stock for all to its rules: sends[s]
// is what shopper s got. cut says that the time was up before all were sent, so
// that those not sent are no fault.
func checkAccept(sends []load.Answer, ks *load.Kinds, cut bool) report.Breaches {
	var bs report.Breaches
	owners := make(map[int64]int, len(sends))
	for s := range sends {
		a := &sends[s]
		if cut && a.Kind == load.KindNotSent {
			continue
		}
		checkAnswered(&bs, s, a, ks)
		checkOwner(&bs, owners, s, a.Order)
		switch {
		case a.Status != 0 && a.Status != http.StatusAccepted:
			bs.Add(RuleAccepted, "shopper %d: %s", s, ks.At(a.Kind))
		case a.Replayed:
			bs.Add(ruleFresh, "shopper %d: order %d", s, a.Order)
		}
	}
	return bs
}
