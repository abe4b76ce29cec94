package main

import (
	"fmt"
	"net/http"
)

// maxExamples is how many cases of one breach are shown: enough to look for them.
const maxExamples = 3

// breach is a rule that the answers broke. Numbers in brackets are the invariants
// of ARCHITECTURE.md.
type breach struct {
	Rule     string   `json:"rule"`
	Count    int      `json:"count"`
	Examples []string `json:"examples,omitempty"`
}

// breaches is what a run broke, in the order of discovery.
type breaches []breach

func (bs *breaches) add(rule, format string, args ...any) {
	for i := range *bs {
		if b := &(*bs)[i]; b.Rule == rule {
			b.Count++
			if len(b.Examples) < maxExamples {
				b.Examples = append(b.Examples, fmt.Sprintf(format, args...))
			}
			return
		}
	}
	*bs = append(*bs, breach{Rule: rule, Count: 1, Examples: []string{fmt.Sprintf(format, args...)}})
}

// The rules that answers are held to.
const (
	ruleAnswered = "every request is answered"
	ruleOrderID  = "a 202 names its order"
	ruleDistinct = "no two shoppers get one order [3]"
	ruleSameID   = "both sends with one key get the same order [3]"
	ruleTruthful = "who was told 202 is told 202 again [9]"
	ruleReplayed = "of two sends with one key, one is marked as replayed"
	ruleOversell = "no more orders than units [1]"
	ruleSellAll  = "a sold-out sale has sold every unit [7]"
	ruleSoldOut  = "who gets no unit is told 409 SOLD_OUT [9]"
	ruleAccepted = "while there is stock, everyone gets an order [9]"
	ruleFresh    = "a first purchase is no replay"
)

// checkStorm holds a storm to its rules. sends[2s] and sends[2s+1] are what
// shopper s got; everyone wanted one unit of total, and there were more shoppers
// than units.
func checkStorm(sends []answer, ks *kinds, total int) breaches {
	var bs breaches
	owners := make(map[int64]int, total)
	for s := range len(sends) / 2 {
		first, second := &sends[2*s], &sends[2*s+1]
		checkAnswered(&bs, s, first, ks)
		checkAnswered(&bs, s, second, ks)
		checkOwner(&bs, owners, s, first.order)
		if second.order != first.order {
			checkOwner(&bs, owners, s, second.order)
		}
		checkPair(&bs, s, first, second, ks)
	}
	if n := len(owners); n > total {
		bs.add(ruleOversell, "%d orders for %d units", n, total)
	} else if n < total {
		bs.add(ruleSellAll, "%d orders for %d units", n, total)
	}
	return bs
}

// checkAnswered: there was an answer, and an order in it if it was a yes.
func checkAnswered(bs *breaches, s int, a *answer, ks *kinds) {
	switch {
	case a.status == 0:
		bs.add(ruleAnswered, "shopper %d: %s", s, ks.at(a.kind))
	case a.status == http.StatusAccepted && a.order == 0:
		bs.add(ruleOrderID, "shopper %d", s)
	}
}

// checkOwner: nobody else has the order that shopper s was given.
func checkOwner(bs *breaches, owners map[int64]int, s int, order int64) {
	if order == 0 {
		return
	}
	if other, taken := owners[order]; taken && other != s {
		bs.add(ruleDistinct, "order %d: shoppers %d and %d", order, other, s)
		return
	}
	owners[order] = s
}

// checkPair holds the two sends of one shopper against each other. What was not
// answered is counted already, and says nothing.
func checkPair(bs *breaches, s int, first, second *answer, ks *kinds) {
	won, lost := first, second
	if first.status != http.StatusAccepted {
		won, lost = second, first
	}
	switch {
	case won.status != http.StatusAccepted:
		for _, a := range []*answer{first, second} {
			if k := ks.at(a.kind); a.status != 0 && (k.Status != http.StatusConflict || k.Code != "SOLD_OUT") {
				bs.add(ruleSoldOut, "shopper %d: %s", s, k)
			}
		}
	case lost.status == 0:
	case lost.status != http.StatusAccepted:
		bs.add(ruleTruthful, "shopper %d: order %d and %s", s, won.order, ks.at(lost.kind))
	case won.order != lost.order:
		bs.add(ruleSameID, "shopper %d: orders %d and %d", s, won.order, lost.order)
	case won.replayed == lost.replayed:
		bs.add(ruleReplayed, "shopper %d: order %d", s, won.order)
	}
}

// checkAccept holds a run in which there was stock for all to its rules: sends[s]
// is what shopper s got. cut says that the time was up before all were sent, so
// that those not sent are no fault.
func checkAccept(sends []answer, ks *kinds, cut bool) breaches {
	var bs breaches
	owners := make(map[int64]int, len(sends))
	for s := range sends {
		a := &sends[s]
		if cut && a.kind == kindNotSent {
			continue
		}
		checkAnswered(&bs, s, a, ks)
		checkOwner(&bs, owners, s, a.order)
		switch {
		case a.status != 0 && a.status != http.StatusAccepted:
			bs.add(ruleAccepted, "shopper %d: %s", s, ks.at(a.kind))
		case a.replayed:
			bs.add(ruleFresh, "shopper %d: order %d", s, a.order)
		}
	}
	return bs
}
