package scenario

import (
	"context"
	"flashgate/bench/load"
	"flashgate/bench/report"
	"flashgate/bench/system"
	"fmt"
	"net"
	"time"

	"github.com/google/uuid"
	"github.com/valyala/fasthttp"
)

// Hello is the ceiling: what this driver gets on this machine out of a server that
// does nothing, with the same requests, as long as those of a real purchase.
type Hello struct {
	Requests int
}

// helloBody is as long as the answer to a purchase.
const helloBody = `{"order_id":"123456789012345678","sale_id":"bench-hello-20250101-000000-00000000",` +
	`"quantity":1,"amount_cents":9900,"currency":"CNY","status":"PROCESSING"}`

func (h *Hello) Run(ctx context.Context, o *system.Options, p *load.Progress) (*report.Report, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	server := &fasthttp.Server{
		Handler: func(c *fasthttp.RequestCtx) {
			c.SetContentType("application/json")
			c.SetBodyString(helloBody)
		},
		ReadTimeout:  o.Timeout,
		WriteTimeout: o.Timeout,
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()

	who := load.Shopper{User: uuid.NewString(), Key: uuid.NewString()}
	one := []load.Shopper{who}
	if err := system.Sign(one, []byte("hello looks at no token")); err != nil {
		return nil, err
	}
	saleID := system.NewSaleID("hello")
	rep := report.New("hello", "")
	rep.Set("requests", h.Requests)
	rep.Set("connections", o.Connections)
	p.Step("hello: %d requests to a bare fasthttp server in this process", h.Requests)
	l := &load.Load{
		Addrs:       []string{listener.Addr().String()},
		Connections: o.Connections,
		Requests:    h.Requests,
		Timeout:     o.Timeout,
		Build: func(buf []byte, addr string, _ int) []byte {
			return load.AppendPurchase(buf, addr, saleID, &one[0])
		},
		Read: load.ReadStatus,
	}
	rec, err := l.Run(ctx, p)
	if err != nil {
		return nil, err
	}
	if rec.Stopped {
		return nil, ctx.Err()
	}
	stopping, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := server.ShutdownWithContext(stopping); err != nil {
		return nil, fmt.Errorf("stopping the hello server: %w", err)
	}
	if err := <-served; err != nil {
		return nil, err
	}
	rep.Answered(rec)
	for i := range rec.Answers {
		if a := &rec.Answers[i]; a.Status != fasthttp.StatusOK {
			rep.Breaches.Add(RuleAnswered, "request %d: %s", i, rec.Kinds.At(a.Kind))
		}
	}
	rep.Figure("answers", float64(h.Requests)/rec.Took.Seconds(), "/s")
	rep.Latency("answer", rec.Answers, func(*load.Answer) bool { return true })
	return rep, nil
}
