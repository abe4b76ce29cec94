package scenario

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"flashgate/bench/load"
	"flashgate/bench/report"
	"flashgate/bench/system"
)

// Sends is a run in which every shopper sends several times with one key: a storm, of
// many shoppers for few units, or duplicates, where everyone gets one.
type Sends struct {
	Name     string
	Shoppers int
	Total    int     // units
	Sends    int     // of each shopper
	Rate     float64 // requests a second; 0 = closed loop
}

// maxSends of one shopper: more than any client retries.
const maxSends = 100

// Check refuses what makes no sense.
func (sd *Sends) Check() error {
	if sd.Total < 1 || sd.Sends < 1 || sd.Sends > maxSends || sd.Rate < 0 {
		return fmt.Errorf("want units, 1–%d sends, and no negative rate", maxSends)
	}
	return nil
}

// sendOrder is the order in which n sends of each shopper go out: which of the answers
// is that of the i-th request. Of an even shopper all go out together, through different
// gateways if there are several, and meet in one batch or in some; of an odd one the
// others come round by round when all have sent once, and a storm is sold out.
func sendOrder(shoppers, n int) []int {
	order := make([]int, 0, n*shoppers)
	for s := range shoppers {
		order = append(order, n*s)
		for i := 1; s%2 == 0 && i < n; i++ {
			order = append(order, n*s+i)
		}
	}
	for i := 1; i < n; i++ {
		for s := 1; s < shoppers; s += 2 {
			order = append(order, n*s+i)
		}
	}
	return order
}

// Run is the run.
func (sd *Sends) Run(ctx context.Context, sys *system.System, o *system.Options) (*report.Report, error) {
	rep := report.New(sd.Name, system.NewSaleID(sd.Name))
	rep.Set("shoppers", sd.Shoppers)
	rep.Set("units", sd.Total)
	rep.Set("requests", sd.Sends*sd.Shoppers)
	setLoop(rep, o, sd.Rate)
	rep.Set("gateways", len(sys.Gateways))

	sale := system.Sale{ID: rep.Sale, Total: sd.Total}
	shoppers, err := sys.Prepare(ctx, sd.Shoppers, sale)
	if err != nil {
		return nil, err
	}
	if err := sys.Quiet(ctx); err != nil {
		return nil, err
	}
	sys.Progress.Step("%s: %d shoppers, %d sends each, for %d units", sd.Name, sd.Shoppers, sd.Sends, sd.Total)
	order := sendOrder(sd.Shoppers, sd.Sends)
	l := &load.Load{
		Addrs:       sys.Gateways,
		Connections: o.Connections,
		Requests:    len(order),
		Due:         load.AtRate(sd.Rate),
		Timeout:     sys.Timeout,
		Build: func(buf []byte, addr string, i int) []byte {
			return load.AppendPurchase(buf, addr, &shoppers[order[i]/sd.Sends])
		},
		Read: load.ReadPurchase,
	}
	watch := sys.Watch()
	defer watch.Stop()
	rec, err := l.Run(ctx, sys.Progress)
	if err != nil {
		return nil, err
	}
	if rec.Stopped {
		return nil, ctx.Err()
	}
	used := watch.Between(rec.Began, rec.Began.Add(rec.Took))
	answers := make([]load.Answer, len(order))
	for i, send := range order {
		answers[send] = rec.Answers[i]
	}
	rep.Answered(rec)
	rep.Breaches = checkSends(answers, sd.Sends, rec.Kinds, sd.Total)

	orders := distinct(answers, func(i int) *load.Shopper { return &shoppers[i/sd.Sends] })
	if len(orders) == 0 {
		return rep, errors.New("no purchase was accepted")
	}
	after, bs, err := sys.Settle(ctx, o, []system.Sale{sale}, orders)
	rep.Breaches = append(rep.Breaches, bs...)
	if err != nil {
		return rep, err
	}
	audited(rep, &after, len(orders))
	rep.Figure(FigureAnswers, float64(len(answers))/rec.Took.Seconds(), "/s")
	rep.Latency("answer", answers, func(*load.Answer) bool { return true })
	rep.Latency("202", answers, func(a *load.Answer) bool { return a.Status == http.StatusAccepted })
	rep.Figure("last 202 in the ledger", max(0, after.Drained.Sub(rec.Began.Add(lastAccepted(answers))).Seconds()), "s after it was given")
	rep.Throughput(rec)
	rep.Took(used, len(answers))
	return rep, nil
}

// FigureAnswers is the name of the rate of all answers.
const FigureAnswers = "answers"

func setLoop(rep *report.Report, o *system.Options, rate float64) {
	rep.Set("connections", o.Connections)
	if rate > 0 {
		rep.Set("open loop", fmt.Sprintf("%g/s", rate))
	}
}

func audited(rep *report.Report, after *system.Settled, orders int) {
	rep.Audit = after.Audit
	rep.Set("audited", fmt.Sprintf("%d of %d orders across both stores", after.Compared, orders))
}

// distinct is every order that was promised, once.
func distinct(answers []load.Answer, owner func(i int) *load.Shopper) []system.Placed {
	seen := make(map[int64]bool)
	var orders []system.Placed
	for i := range answers {
		if id := answers[i].Order; id != 0 && !seen[id] {
			seen[id] = true
			orders = append(orders, system.Placed{Order: id, Owner: owner(i)})
		}
	}
	return orders
}
