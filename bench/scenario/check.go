package scenario

import (
	"flashgate/bench/load"
	"flashgate/bench/report"
	"net/http"
)

// The rules that answers are held to.
const (
	RuleAnswered = "every request is answered"
	RuleOrderID  = "a 202 names its order"
	RuleDistinct = "no two shoppers get one order [3]"
	RuleSameID   = "both sends with one key get the same order [3]"
	RuleTruthful = "who was told 202 is told 202 again [9]"
	RuleReplayed = "of two sends with one key, one is marked as replayed"
	RuleOversell = "no more orders than units [1]"
	ruleSellAll  = "a sold-out sale has sold every unit [7]"
	RuleSoldOut  = "who gets no unit is told 409 SOLD_OUT [9]"
	RuleAccepted = "while there is stock, everyone gets an order [9]"
	ruleFresh    = "a first purchase is no replay"
)

// checkStorm holds a storm to its rules. sends[2s] and sends[2s+1] are what
// shopper s got; everyone wanted one unit of total, and there were more shoppers
// than units.
func checkStorm(sends []load.Answer, ks *load.Kinds, total int) report.Breaches {
	var bs report.Breaches
	owners := make(map[int64]int, total)
	for s := range len(sends) / 2 {
		first, second := &sends[2*s], &sends[2*s+1]
		checkAnswered(&bs, s, first, ks)
		checkAnswered(&bs, s, second, ks)
		checkOwner(&bs, owners, s, first.Order)
		if second.Order != first.Order {
			checkOwner(&bs, owners, s, second.Order)
		}
		checkPair(&bs, s, first, second, ks)
	}
	if n := len(owners); n > total {
		bs.Add(RuleOversell, "%d orders for %d units", n, total)
	} else if n < total {
		bs.Add(ruleSellAll, "%d orders for %d units", n, total)
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

// checkPair holds the two sends of one shopper against each other. What was not
// answered is counted already, and says nothing.
func checkPair(bs *report.Breaches, s int, first, second *load.Answer, ks *load.Kinds) {
	won, lost := first, second
	if first.Status != http.StatusAccepted {
		won, lost = second, first
	}
	switch {
	case won.Status != http.StatusAccepted:
		for _, a := range []*load.Answer{first, second} {
			if k := ks.At(a.Kind); a.Status != 0 && (k.Status != http.StatusConflict || k.Code != "SOLD_OUT") {
				bs.Add(RuleSoldOut, "shopper %d: %s", s, k)
			}
		}
	case lost.Status == 0:
	case lost.Status != http.StatusAccepted:
		bs.Add(RuleTruthful, "shopper %d: order %d and %s", s, won.Order, ks.At(lost.Kind))
	case won.Order != lost.Order:
		bs.Add(RuleSameID, "shopper %d: orders %d and %d", s, won.Order, lost.Order)
	case won.Replayed == lost.Replayed:
		bs.Add(RuleReplayed, "shopper %d: order %d", s, won.Order)
	}
}

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
