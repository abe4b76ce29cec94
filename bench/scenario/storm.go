package scenario

import (
	"context"
	"flashgate/bench/load"
	"flashgate/bench/report"
	"flashgate/bench/system"
	"fmt"
	"net/http"
)

// Storm is many shoppers at once for few units, each sending twice with one key.
type Storm struct {
	Shoppers, Total int
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

func (st *Storm) Run(ctx context.Context, sys *system.System, o *system.Options) (*report.Report, error) {
	if st.Shoppers <= st.Total {
		return nil, fmt.Errorf("a storm needs more shoppers than units: %d shoppers, %d units", st.Shoppers, st.Total)
	}
	rep := report.New("storm", system.NewSaleID("storm"))
	rep.Set("shoppers", st.Shoppers)
	rep.Set("units", st.Total)
	rep.Set("requests", 2*st.Shoppers)
	rep.Set("connections", o.Connections)
	rep.Set("gateways", len(sys.Gateways))

	shoppers, err := sys.Prepare(ctx, rep.Sale, st.Shoppers, st.Total)
	if err != nil {
		return nil, err
	}
	sys.Progress.Step("storm: %d shoppers, two sends each, for %d units", st.Shoppers, st.Total)
	order := firstAndSecond(st.Shoppers)
	l := &load.Load{
		Addrs:       sys.Gateways,
		Connections: o.Connections,
		Requests:    len(order),
		Timeout:     sys.Timeout,
		Build: func(buf []byte, addr string, i int) []byte {
			return load.AppendPurchase(buf, addr, rep.Sale, &shoppers[order[i]/2])
		},
		Read: load.ReadPurchase,
	}
	rec, err := l.Run(ctx, sys.Progress)
	if err != nil {
		return nil, err
	}
	if rec.Stopped {
		return nil, ctx.Err()
	}
	sends := make([]load.Answer, len(order))
	for i, send := range order {
		sends[send] = rec.Answers[i]
	}
	rep.Answered(rec)
	rep.Breaches = checkStorm(sends, rec.Kinds, st.Total)

	orders := distinct(sends, func(i int) *load.Shopper { return &shoppers[i/2] })
	after, bs, err := sys.Settle(ctx, o, rep.Sale, orders, st.Total)
	rep.Breaches = append(rep.Breaches, bs...)
	if err != nil {
		return rep, err
	}
	rep.Audit = after.Audit
	rep.Set("audited", fmt.Sprintf("%d of %d orders across both stores", after.Compared, len(orders)))
	rep.Figure("answers", float64(len(sends))/rec.Took.Seconds(), "/s")
	rep.Latency("answer", sends, func(*load.Answer) bool { return true })
	rep.Latency("202", sends, func(a *load.Answer) bool { return a.Status == http.StatusAccepted })
	rep.Figure("last 202 in the ledger", after.Drained.Sub(rec.Began.Add(lastAccepted(sends))).Seconds(), "s after it was given")
	return rep, nil
}

// distinct is every order that was promised, once.
func distinct(sends []load.Answer, owner func(i int) *load.Shopper) []system.Placed {
	seen := make(map[int64]bool)
	var orders []system.Placed
	for i := range sends {
		if id := sends[i].Order; id != 0 && !seen[id] {
			seen[id] = true
			orders = append(orders, system.Placed{Order: id, Owner: owner(i)})
		}
	}
	return orders
}
