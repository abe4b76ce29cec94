package main

import (
	"context"
	"fmt"
	"net/http"
)

// storm is many shoppers at once for few units, each sending twice with one key.
type storm struct {
	shoppers, total int
}

// firstAndSecond is the order in which the shoppers send: which of 2·shopper and
// 2·shopper+1 goes out as the i-th. Of an even shopper both sends go out together,
// through different gateways if there are several, and meet in one batch or in two;
// of an odd one the second comes when all have sent once and the sale is sold out.
func firstAndSecond(shoppers int) []int {
	order := make([]int, 0, 2*shoppers)
	for s := range shoppers {
		order = append(order, 2*s)
		if s%2 == 0 {
			order = append(order, 2*s+1)
		}
	}
	for s := 1; s < shoppers; s += 2 {
		order = append(order, 2*s+1)
	}
	return order
}

func (st *storm) run(ctx context.Context, sys *system, o *options) (*report, error) {
	if st.shoppers <= st.total {
		return nil, fmt.Errorf("a storm needs more shoppers than units: %d shoppers, %d units", st.shoppers, st.total)
	}
	rep := newReport("storm", newSaleID("storm"))
	rep.set("shoppers", st.shoppers)
	rep.set("units", st.total)
	rep.set("requests", 2*st.shoppers)
	rep.set("connections", o.connections)
	rep.set("gateways", len(sys.gateways))

	shoppers, err := sys.prepare(ctx, rep.Sale, st.shoppers, st.total)
	if err != nil {
		return nil, err
	}
	sys.progress.step("storm: %d shoppers, two sends each, for %d units", st.shoppers, st.total)
	order := firstAndSecond(st.shoppers)
	l := &load{
		addrs:       sys.gateways,
		connections: o.connections,
		requests:    len(order),
		timeout:     sys.timeout,
		build: func(buf []byte, addr string, i int) []byte {
			return appendPurchase(buf, addr, rep.Sale, &shoppers[order[i]/2])
		},
		read: readPurchase,
	}
	rec, err := l.run(ctx, sys.progress)
	if err != nil {
		return nil, err
	}
	if rec.stopped {
		return nil, ctx.Err()
	}
	sends := make([]answer, len(order))
	for i, send := range order {
		sends[send] = rec.answers[i]
	}
	rep.answered(rec)
	rep.Breaches = checkStorm(sends, rec.kinds, st.total)

	orders := distinct(sends, func(i int) *shopper { return &shoppers[i/2] })
	after, bs, err := sys.settle(ctx, o, rep.Sale, orders, st.total)
	rep.Breaches = append(rep.Breaches, bs...)
	if err != nil {
		return rep, err
	}
	rep.Audit = after.audit
	rep.set("audited", fmt.Sprintf("%d of %d orders across both stores", after.compared, len(orders)))
	rep.figure("answers", float64(len(sends))/rec.took.Seconds(), "/s")
	rep.latency("answer", sends, func(*answer) bool { return true })
	rep.latency("202", sends, func(a *answer) bool { return a.status == http.StatusAccepted })
	rep.figure("last 202 in the ledger", after.drained.Sub(rec.began.Add(lastAccepted(sends))).Seconds(), "s after it was given")
	return rep, nil
}

// distinct is every order that was promised, once.
func distinct(sends []answer, owner func(i int) *shopper) []placed {
	seen := make(map[int64]bool)
	var orders []placed
	for i := range sends {
		if id := sends[i].order; id != 0 && !seen[id] {
			seen[id] = true
			orders = append(orders, placed{order: id, owner: owner(i)})
		}
	}
	return orders
}
