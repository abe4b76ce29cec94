package main

import (
	"context"
	"fmt"
	"net"
	"time"

	"github.com/google/uuid"
	"github.com/valyala/fasthttp"
)

// hello is the ceiling: what this driver gets on this machine out of a server that
// does nothing, with the same requests, as long as those of a real purchase.
type hello struct {
	requests int
}

// helloBody is as long as the answer to a purchase.
const helloBody = `{"order_id":"123456789012345678","sale_id":"bench-hello-20250101-000000-00000000",` +
	`"quantity":1,"amount_cents":9900,"currency":"CNY","status":"PROCESSING"}`

func (h *hello) run(ctx context.Context, o *options, p *progress) (*report, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	server := &fasthttp.Server{
		Handler: func(c *fasthttp.RequestCtx) {
			c.SetContentType("application/json")
			c.SetBodyString(helloBody)
		},
		ReadTimeout:  o.timeout,
		WriteTimeout: o.timeout,
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()

	who := shopper{user: uuid.NewString(), key: uuid.NewString()}
	one := []shopper{who}
	if err := sign(one, []byte("hello looks at no token")); err != nil {
		return nil, err
	}
	saleID := newSaleID("hello")
	rep := newReport("hello", "")
	rep.set("requests", h.requests)
	rep.set("connections", o.connections)
	p.step("hello: %d requests to a bare fasthttp server in this process", h.requests)
	l := &load{
		addrs:       []string{listener.Addr().String()},
		connections: o.connections,
		requests:    h.requests,
		timeout:     o.timeout,
		build: func(buf []byte, addr string, _ int) []byte {
			return appendPurchase(buf, addr, saleID, &one[0])
		},
		read: readStatus,
	}
	rec, err := l.run(ctx, p)
	if err != nil {
		return nil, err
	}
	if rec.stopped {
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
	rep.answered(rec)
	for i := range rec.answers {
		if a := &rec.answers[i]; a.status != fasthttp.StatusOK {
			rep.Breaches.add(ruleAnswered, "request %d: %s", i, rec.kinds.at(a.kind))
		}
	}
	rep.figure("answers", float64(h.requests)/rec.took.Seconds(), "/s")
	rep.latency("answer", rec.answers, func(*answer) bool { return true })
	return rep, nil
}
