package scenario

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/google/uuid"
	"github.com/valyala/fasthttp"

	"flashgate/bench/load"
	"flashgate/bench/report"
	"flashgate/bench/system"
)

// Hello is the ceiling: what this driver gets on this machine out of a server that
// does nothing, with the same requests, as long as those of a real purchase. Like a
// gateway, the server is a process of its own.
type Hello struct {
	Requests int
	Rate     float64 // requests a second; 0 = closed loop
}

// helloBody is as long as the answer to a purchase.
const helloBody = `{"order_id":"123456789012345678","sale_id":"bench-hello-20250101-000000-00000000",` +
	`"quantity":1,"amount_cents":9900,"currency":"CNY","status":"PROCESSING"}`

// HelloServerCommand is the driver's command that serves, and is told where to by its
// one argument.
const HelloServerCommand = "hello-server"

const (
	helloTimeoutSeconds = 60 // to read a request, and to write its answer
	helloStopSeconds    = 5
)

// ServeHello serves on host:port until ctx ends.
func ServeHello(ctx context.Context, listen string) error {
	server := &fasthttp.Server{
		Handler: func(c *fasthttp.RequestCtx) {
			c.SetContentType("application/json")
			c.SetBodyString(helloBody)
		},
		ReadTimeout:  helloTimeoutSeconds * time.Second,
		WriteTimeout: helloTimeoutSeconds * time.Second,
	}
	served := make(chan error, 1)
	go func() { served <- server.ListenAndServe(listen) }()
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), helloStopSeconds*time.Second)
	defer cancel()
	return errors.Join(server.ShutdownWithContext(stopping), <-served)
}

// Run is the run.
func (h *Hello) Run(ctx context.Context, o *system.Options, p *load.Progress) (rep *report.Report, err error) {
	driver, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p.Step("hello: %d requests to a bare fasthttp server", h.Requests)
	err = system.WithServer(ctx, o, p, driver, HelloServerCommand, func(sys *system.System) error {
		rep, err = h.load(ctx, sys, o)
		return rep.Verdict(err)
	})
	return rep, err
}

func (h *Hello) load(ctx context.Context, sys *system.System, o *system.Options) (*report.Report, error) {
	// As many shoppers as in a storm: what the driver does to have their tokens at hand is
	// then in both.
	shoppers := make([]load.Shopper, min(h.Requests, stormShoppers))
	sale := system.NewSaleID("hello")
	for i := range shoppers {
		shoppers[i] = load.Shopper{User: uuid.NewString(), Key: uuid.NewString(), Sale: sale}
	}
	if err := system.Sign(shoppers, []byte("hello looks at no token")); err != nil {
		return nil, err
	}
	if err := sys.Quiet(ctx); err != nil {
		return nil, err
	}
	rep := report.New("hello", "")
	rep.Set("requests", h.Requests)
	rep.Set("shoppers", len(shoppers))
	setLoop(rep, o, h.Rate)
	l := &load.Load{
		Addrs:       sys.Gateways,
		Connections: o.Connections,
		Requests:    h.Requests,
		Due:         load.AtRate(h.Rate),
		Timeout:     o.Timeout,
		Build: func(buf []byte, addr string, i int) []byte {
			return load.AppendPurchase(buf, addr, &shoppers[i%len(shoppers)])
		},
		Read: load.ReadStatus,
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
	for i := range rec.Answers {
		if a := &rec.Answers[i]; a.Status != fasthttp.StatusOK {
			rep.Breaches.Add(RuleAnswered, "request %d: %s", i, rec.Kinds.At(a.Kind))
		}
	}
	rep.Figure(FigureAnswers, float64(h.Requests)/rec.Took.Seconds(), "/s")
	rep.Latency("answer", rec.Answers, func(*load.Answer) bool { return true })
	rep.Throughput(rec)
	rep.Took(used, h.Requests)
	return rep, nil
}
