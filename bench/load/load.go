package load

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/valyala/fasthttp"
)

// AtRate is the Due of an open loop of so many requests a second; 0 = a closed loop.
func AtRate(rate float64) func(i int) time.Duration {
	if rate <= 0 {
		return nil
	}
	return func(i int) time.Duration { return time.Duration(float64(i) / rate * float64(time.Second)) }
}

// pauseAfterFaultMillis keeps a connection from spinning while a gateway is away.
const pauseAfterFaultMillis = 20

// Load is a bounded number of requests through a bounded number of connections. It
// is a closed loop (a connection sends its next request when the last was answered),
// or, with Due, an open one: request i is due then, whoever is still waiting, and its
// latency counts from when it was due. So a stall is seen by all who would have come
// meanwhile, and not by one request a connection.
type Load struct {
	Addrs       []string // request i goes to addrs[i % len], but for the last ones: see shares
	Connections int
	Requests    int
	Due         func(i int) time.Duration // when request i is due, from the start, never earlier than i-1; nil = closed loop
	Duration    time.Duration             // ends it early; 0 = when all were sent
	Timeout     time.Duration             // for one answer
	Kinds       *Kinds                    // to go on counting in; nil = of its own

	// Build appends request i, header and body, to buf; Read makes an answer of
	// what came. Both are called by many at once.
	Build func(buf []byte, addr string, i int) []byte
	Read  func(r *Reader, resp *fasthttp.Response) (Answer, error)
}

// Recording is what a load has seen: Answers[i] is that of request i.
type Recording struct {
	Answers []Answer
	Kinds   *Kinds
	Began   time.Time
	Took    time.Duration
	Stopped bool // by ctx: not all was sent, and nothing can be concluded
}

// Run sends the load and records every answer. An error means that it did not
// begin; a ctx that ends stops it, with the answers so far.
func (l *Load) Run(ctx context.Context, progress *Progress) (*Recording, error) {
	conns, err := l.dial()
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	if err != nil {
		return nil, err
	}

	rec := &Recording{Answers: make([]Answer, l.Requests), Kinds: l.Kinds}
	if rec.Kinds == nil {
		rec.Kinds = NewKinds()
	}
	var stop atomic.Bool
	defer context.AfterFunc(ctx, func() { stop.Store(true) })()
	finish := progress.follow(rec.Kinds, l.Requests)
	defer finish()

	left := &shares{taken: make([]atomic.Int64, len(l.Addrs)), requests: l.Requests}
	rec.Began = time.Now()
	if l.Duration > 0 {
		defer time.AfterFunc(l.Duration, func() { stop.Store(true) }).Stop()
	}
	var wg sync.WaitGroup
	for n, c := range conns {
		wg.Go(func() { l.drive(ctx, c, rec, left, n%len(l.Addrs), &stop) })
	}
	wg.Wait()
	rec.Took = time.Since(rec.Began)
	rec.Stopped = ctx.Err() != nil
	return rec, nil
}

// dial opens all connections before the clock starts.
func (l *Load) dial() ([]*Conn, error) {
	conns := make([]*Conn, 0, l.Connections)
	for n := range max(l.Connections, len(l.Addrs)) {
		c := NewConn(l.Addrs[n%len(l.Addrs)], l.Timeout)
		if err := c.Dial(); err != nil {
			return conns, fmt.Errorf("connection %d of %d: %w", n+1, l.Connections, err)
		}
		conns = append(conns, c)
	}
	return conns, nil
}

// shares are the requests that nobody has sent yet, by gateway.
type shares struct {
	taken    []atomic.Int64 // of each gateway's share, or more: they go on counting
	requests int
}

// next takes a request for a gateway: of its own share, in order, and when all of that is
// taken one of another's. Otherwise the end of a load would be of the slowest gateway
// alone, while half of the connections have nothing to do. False: none are left.
func (s *shares) next(gateway int) (i int, ok bool) {
	for n := range s.taken {
		of := (gateway + n) % len(s.taken)
		if i = int(s.taken[of].Add(1)-1)*len(s.taken) + of; i < s.requests {
			return i, true
		}
	}
	return 0, false
}

// drive is the life of one connection to a gateway.
func (l *Load) drive(ctx context.Context, c *Conn, rec *Recording, left *shares, gateway int, stop *atomic.Bool) {
	r := &Reader{Kinds: rec.Kinds}
	var buf []byte
	for !stop.Load() {
		i, ok := left.next(gateway)
		if !ok {
			return
		}
		buf = l.Build(buf[:0], c.Addr, i)
		sent := time.Now()
		if l.Due != nil {
			sent = rec.Began.Add(l.Due(i))
			if !SleepUntil(ctx, sent) || stop.Load() {
				return
			}
		}
		a, err := l.ask(r, c, buf)
		done := time.Now()
		if err != nil {
			rec.Kinds.fault(err)
		}
		a.TookNanos = int64(done.Sub(sent))
		a.DoneNanos = int64(done.Sub(rec.Began))
		rec.Answers[i] = a
		rec.Kinds.counts[a.Kind].Add(1)
		if a.Kind == KindNoAnswer {
			select {
			case <-ctx.Done():
			case <-time.After(pauseAfterFaultMillis * time.Millisecond):
			}
		}
	}
}

// SleepUntil waits for a moment; false: ctx ended first.
func SleepUntil(ctx context.Context, at time.Time) bool {
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

func (l *Load) ask(r *Reader, c *Conn, request []byte) (Answer, error) {
	if err := c.Do(request); err != nil {
		return Answer{Kind: KindNoAnswer}, err
	}
	return l.Read(r, &c.Resp)
}

// Shopper is one who buys.
type Shopper struct {
	User  string // the token's sub
	Sale  string // where they buy
	Key   string // Idempotency-Key of the one thing that they buy
	Token string
}

// AppendPurchase appends the request by which a shopper buys one unit.
func AppendPurchase(buf []byte, addr string, s *Shopper) []byte {
	buf = append(buf, "POST /v1/sales/"...)
	buf = append(buf, s.Sale...)
	buf = append(buf, "/purchases HTTP/1.1\r\nHost: "...)
	buf = append(buf, addr...)
	buf = append(buf, "\r\nAuthorization: Bearer "...)
	buf = append(buf, s.Token...)
	buf = append(buf, "\r\nIdempotency-Key: "...)
	buf = append(buf, s.Key...)
	return append(buf, "\r\nContent-Type: application/json\r\nContent-Length: 14\r\n\r\n{\"quantity\":1}"...)
}

// AppendGet appends a GET; token may be "".
func AppendGet(buf []byte, addr, path, token string) []byte {
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
