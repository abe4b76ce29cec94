package scenario

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"flashgate/bench/load"
	"flashgate/bench/report"
	"flashgate/bench/system"
)

// Mixed is the sale as it is: a wave of arrivals, of whom most look at the page and
// some buy, the first of them too early.
type Mixed struct {
	Wave
	PageReads int // of a hundred arrivals
	Units     int // of a hundred who buy after the opening, how many there are units for
}

// Check refuses what makes no sense.
func (m *Mixed) Check() error {
	if m.PageReads < 0 || m.PageReads > 99 || m.Units < 1 || m.Units > 100 {
		return errors.New("want 0–99 page reads of 100, and 1–100 units of 100 buyers")
	}
	return m.Wave.Check()
}

// Requests is how many there are.
func (m *Mixed) Requests() int { return m.requests() }

const (
	// openingMargin around the opening either answer is right: the start of the load
	// and the clocks are not that exact.
	openingMargin = 500 * time.Millisecond
	// A sale is made this long before the load, and this long a shopper: they have to
	// get their tokens, and every gateway has to show it.
	mixedPrepare          = 8 * time.Second
	mixedPrepareAThousand = 50 * time.Millisecond
	pageRead              = -1 // in place of a shopper
	ruleNotBefore         = "nothing is sold before the opening [9]"
	rulePage              = "the sale's page is answered"
	hundred               = 100
	pageReadsScatter      = 37 // prime to a hundred: reads and purchases take turns, at every gateway
)

// plan is who does what in which request: a shopper's number, or pageRead. Those who
// are too early are the first of those who come back after the opening.
func (m *Mixed) plan(arrivals []time.Duration) (who []int, shoppers int) {
	who = make([]int, len(arrivals))
	early := 0
	for i, at := range arrivals {
		switch {
		case i*pageReadsScatter%hundred < m.PageReads:
			who[i] = pageRead
		case at < m.Lead:
			who[i] = early
			early++
		default:
			who[i] = shoppers
			shoppers++
		}
	}
	return who, max(shoppers, early)
}

// Run is the run.
func (m *Mixed) Run(ctx context.Context, sys *system.System, o *system.Options) (*report.Report, error) {
	arrivals := m.arrivals()
	who, n := m.plan(arrivals)
	if n == 0 {
		return nil, errors.New("nobody buys: a larger wave, or fewer page reads")
	}
	sale := system.Sale{ID: system.NewSaleID("mixed"), Total: max(1, n*m.Units/hundred)}
	sale.StartsAt = time.Now().Add(mixedPrepare + m.Lead + time.Duration(n/1000)*mixedPrepareAThousand)
	rep := report.New("mixed", sale.ID)
	rep.Set("arrivals", fmt.Sprintf("%d: %g/s, %g/s in the opening second, halving every %s", len(arrivals), m.Quiet, m.Peak, m.Half))
	rep.Set("buyers", n)
	rep.Set("units", sale.Total)
	rep.Set("connections", o.Connections)
	rep.Set("gateways", len(sys.Gateways))

	shoppers, err := sys.Prepare(ctx, n, sale)
	if err != nil {
		return nil, err
	}
	begin := sale.StartsAt.Add(-m.Lead)
	if time.Until(begin) < 0 {
		return nil, errors.New("the sale was not ready when its wave was to begin: this machine is too busy")
	}
	sys.Progress.Step("mixed: %d arrivals, the sale opens in %s", len(arrivals), time.Until(sale.StartsAt).Round(time.Second))
	l := &load.Load{
		Addrs:       sys.Gateways,
		Connections: o.Connections,
		Requests:    len(arrivals),
		Due:         func(i int) time.Duration { return arrivals[i] },
		Timeout:     sys.Timeout,
		Build: func(buf []byte, addr string, i int) []byte {
			if who[i] == pageRead {
				return load.AppendGet(buf, addr, "/v1/sales/"+sale.ID, "")
			}
			return load.AppendPurchase(buf, addr, &shoppers[who[i]])
		},
		Read: load.ReadPurchase,
	}
	if !load.SleepUntil(ctx, begin) {
		return nil, ctx.Err()
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
	rep.Answered(rec)
	rep.Breaches = m.check(rec, arrivals, who, sale.Total)
	owner := func(i int) *load.Shopper { return &shoppers[max(0, who[i])] }
	orders := distinct(rec.Answers, owner)
	if len(orders) == 0 {
		return rep, errors.New("no purchase was accepted")
	}
	after, bs, err := sys.Settle(ctx, o, []system.Sale{sale}, orders)
	rep.Breaches = append(rep.Breaches, bs...)
	if err != nil {
		return rep, err
	}
	audited(rep, &after, len(orders))
	m.figures(rep, rec, arrivals, who)
	rep.Took(used, len(arrivals))
	return rep, nil
}

// check holds the answers to the rules.
func (m *Mixed) check(rec *load.Recording, arrivals []time.Duration, who []int, total int) report.Breaches {
	var bs report.Breaches
	owners := map[int64]int{}
	tried := map[int]bool{} // who surely asked while it was open
	for i := range rec.Answers {
		a, k := &rec.Answers[i], rec.Kinds.At(rec.Answers[i].Kind)
		checkAnswered(&bs, max(0, who[i]), a, rec.Kinds)
		early := k.Status == http.StatusConflict && k.Code == "NOT_STARTED"
		switch s := who[i]; {
		case a.Status == 0:
		case s == pageRead && a.Status != http.StatusOK:
			bs.Add(rulePage, "request %d: %s", i, k)
		case s == pageRead:
		case time.Duration(a.DoneNanos) < m.Lead-openingMargin:
			if !early {
				bs.Add(ruleNotBefore, "shopper %d, %s before the opening: %s", s, m.Lead-arrivals[i], k)
			}
		case early && arrivals[i] < m.Lead+openingMargin:
		case a.Status == http.StatusAccepted:
			checkOwner(&bs, owners, s, a.Order)
			tried[s] = true
		case soldOut(k):
			tried[s] = true
		default:
			bs.Add(RuleSoldOut, "shopper %d: %s", s, k)
		}
	}
	if sold, want := len(owners), min(total, len(tried)); sold > total {
		bs.Add(RuleOversell, "%d orders for %d units", sold, total)
	} else if sold < want {
		bs.Add(ruleSellAll, "%d orders for %d units and %d shoppers", sold, total, len(tried))
	}
	return bs
}

func (m *Mixed) figures(rep *report.Report, rec *load.Recording, arrivals []time.Duration, who []int) {
	var pages, purchases, opening []load.Answer
	for i, a := range rec.Answers {
		if who[i] == pageRead {
			pages = append(pages, a)
		} else {
			purchases = append(purchases, a)
		}
		if arrivals[i] >= m.Lead && arrivals[i] < m.Lead+openingSecond {
			opening = append(opening, a)
		}
	}
	rep.Figure(FigureAnswers, float64(len(rec.Answers))/rec.Took.Seconds(), "/s over the whole wave")
	every := func(*load.Answer) bool { return true }
	rep.Latency("page", pages, every)
	rep.Latency("purchase", purchases, every)
	rep.Latency("opening second", opening, every)
	rep.Throughput(rec)
}
