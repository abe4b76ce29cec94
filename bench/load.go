package main

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/valyala/fasthttp"
)

// pauseAfterFaultMillis keeps a connection from spinning while a gateway is away.
const pauseAfterFaultMillis = 20

// load is a bounded number of requests through a bounded number of connections. It
// is a closed loop (a connection sends its next request when the last was answered),
// or, with a rate, an open one: request i is due at i/rate from the start, whoever is
// still waiting, and its latency counts from when it was due.
type load struct {
	addrs       []string // request i goes to addrs[i % len]
	connections int
	requests    int
	rate        float64       // requests a second; 0 = closed loop
	duration    time.Duration // ends it early; 0 = when all were sent
	timeout     time.Duration // for one answer
	kinds       *kinds        // to go on counting in; nil = of its own

	// build appends request i, header and body, to buf; read makes an answer of
	// what came. Both are called by many at once.
	build func(buf []byte, addr string, i int) []byte
	read  func(r *reader, resp *fasthttp.Response) (answer, error)
}

// recording is what a load has seen: answers[i] is that of request i.
type recording struct {
	answers []answer
	kinds   *kinds
	began   time.Time
	took    time.Duration
	stopped bool // by ctx: not all was sent, and nothing can be concluded
}

// run sends the load and records every answer. An error means that it did not
// begin; a ctx that ends stops it, with the answers so far.
func (l *load) run(ctx context.Context, progress *progress) (*recording, error) {
	conns, err := l.dial()
	defer func() {
		for _, c := range conns {
			c.close()
		}
	}()
	if err != nil {
		return nil, err
	}

	rec := &recording{answers: make([]answer, l.requests), kinds: l.kinds}
	if rec.kinds == nil {
		rec.kinds = newKinds()
	}
	var stop atomic.Bool
	defer context.AfterFunc(ctx, func() { stop.Store(true) })()
	finish := progress.follow(rec.kinds, l.requests)
	defer finish()

	cursors := make([]atomic.Int64, len(l.addrs))
	rec.began = time.Now()
	if l.duration > 0 {
		defer time.AfterFunc(l.duration, func() { stop.Store(true) }).Stop()
	}
	var wg sync.WaitGroup
	for n, c := range conns {
		gateway := n % len(l.addrs)
		wg.Go(func() { l.drive(ctx, c, rec, gateway, &cursors[gateway], &stop) })
	}
	wg.Wait()
	rec.took = time.Since(rec.began)
	rec.stopped = ctx.Err() != nil
	return rec, nil
}

// dial opens all connections before the clock starts.
func (l *load) dial() ([]*conn, error) {
	conns := make([]*conn, 0, l.connections)
	for n := range max(l.connections, len(l.addrs)) {
		c := newConn(l.addrs[n%len(l.addrs)], l.timeout)
		if err := c.dial(); err != nil {
			return conns, fmt.Errorf("connection %d of %d: %w", n+1, l.connections, err)
		}
		conns = append(conns, c)
	}
	return conns, nil
}

// drive is the life of one connection: the requests of its gateway, in order.
func (l *load) drive(ctx context.Context, c *conn, rec *recording, gateway int, cursor *atomic.Int64, stop *atomic.Bool) {
	r := &reader{kinds: rec.kinds}
	var buf []byte
	for !stop.Load() {
		i := int(cursor.Add(1)-1)*len(l.addrs) + gateway
		if i >= l.requests {
			return
		}
		buf = l.build(buf[:0], c.addr, i)
		sent := time.Now()
		if l.rate > 0 {
			sent = rec.began.Add(time.Duration(float64(i) / l.rate * float64(time.Second)))
			if !sleepUntil(ctx, sent) {
				return
			}
		}
		a, err := l.ask(r, c, buf)
		done := time.Now()
		if err != nil {
			rec.kinds.fault(err)
		}
		a.tookNanos = int64(done.Sub(sent))
		a.doneNanos = int64(done.Sub(rec.began))
		rec.answers[i] = a
		rec.kinds.counts[a.kind].Add(1)
		if a.kind == kindNoAnswer {
			select {
			case <-ctx.Done():
			case <-time.After(pauseAfterFaultMillis * time.Millisecond):
			}
		}
	}
}

// sleepUntil waits for a moment; false: ctx ended first.
func sleepUntil(ctx context.Context, at time.Time) bool {
	wait := time.Until(at)
	if wait <= 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

func (l *load) ask(r *reader, c *conn, request []byte) (answer, error) {
	if err := c.do(request); err != nil {
		return answer{kind: kindNoAnswer}, err
	}
	return l.read(r, &c.resp)
}

// shopper is one who buys.
type shopper struct {
	user  string // the token's sub
	key   string // Idempotency-Key of the one thing that they buy
	token string
}

// appendPurchase appends the request by which a shopper buys one unit.
func appendPurchase(buf []byte, addr, saleID string, s *shopper) []byte {
	buf = append(buf, "POST /v1/sales/"...)
	buf = append(buf, saleID...)
	buf = append(buf, "/purchases HTTP/1.1\r\nHost: "...)
	buf = append(buf, addr...)
	buf = append(buf, "\r\nAuthorization: Bearer "...)
	buf = append(buf, s.token...)
	buf = append(buf, "\r\nIdempotency-Key: "...)
	buf = append(buf, s.key...)
	return append(buf, "\r\nContent-Type: application/json\r\nContent-Length: 14\r\n\r\n{\"quantity\":1}"...)
}

// appendGet appends a GET; token may be "".
func appendGet(buf []byte, addr, path, token string) []byte {
	buf = append(buf, "GET "...)
	buf = append(buf, path...)
	buf = append(buf, " HTTP/1.1\r\nHost: "...)
	buf = append(buf, addr...)
	if token != "" {
		buf = append(buf, "\r\nAuthorization: Bearer "...)
		buf = append(buf, token...)
	}
	return append(buf, "\r\n\r\n"...)
}
