package gateway

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/valyala/fasthttp"
)

// A connection closed with unread input resets, and the reset can overtake the
// answer. So after a refusal that leaves input unread, its rest is read: as long,
// and as much, as these allow.
const (
	lingerMillis = 500
	lingerBytes  = 256 << 10
)

// refuseWriteMillis bounds the answer to a connection over the limit: it is
// written by the goroutine that accepts.
const refuseWriteMillis = 50

// listener counts connections, refuses those over the limit, and can close what
// is left of them: fasthttp's own shutdown leaves busy ones open.
type listener struct {
	net.Listener
	limit    int
	refused  func()
	response []byte // to a connection over the limit

	active atomic.Int64 // connections with a request in hand
	mu     sync.Mutex
	conns  map[*conn]struct{}
	shut   bool
	gone   chan struct{} // closed when shut and no connection is left
}

func newListener(ln net.Listener, limit int, response []byte, refused func()) *listener {
	return &listener{
		Listener: ln, limit: limit, response: response, refused: refused,
		conns: make(map[*conn]struct{}), gone: make(chan struct{}),
	}
}

// conn is a shopper's connection.
type conn struct {
	net.Conn
	owner *listener
	addr  netip.Addr // of the peer; the zero Addr when it has none
	once  sync.Once
	err   error

	// Touched by the connection's own goroutine only.
	busy        bool
	linger      bool
	read, write deadline
}

// deadline is one that is moved with every request. The runtime is told of it only when
// the one it has would be too late: one that is passed too early says so, and is told
// the right one then, once in many requests.
type deadline struct {
	wanted, set time.Time // zero: never
}

// move reports whether the runtime has to be told.
func (d *deadline) move(to time.Time) bool {
	d.wanted = to
	if !d.set.IsZero() && !to.Before(d.set) {
		return false
	}
	d.set = to
	return true
}

// early reports whether err is of a deadline before the one that is wanted, which the
// runtime has to be told then.
func (d *deadline) early(err error) bool {
	if err == nil || !errors.Is(err, os.ErrDeadlineExceeded) || !d.wanted.IsZero() && !time.Now().Before(d.wanted) {
		return false
	}
	d.set = d.wanted
	return true
}

// SetReadDeadline is of net.Conn.
func (c *conn) SetReadDeadline(t time.Time) error {
	if c.read.move(t) {
		return c.Conn.SetReadDeadline(t)
	}
	return nil
}

// SetWriteDeadline is of net.Conn.
func (c *conn) SetWriteDeadline(t time.Time) error {
	if c.write.move(t) {
		return c.Conn.SetWriteDeadline(t)
	}
	return nil
}

// SetDeadline is of net.Conn.
func (c *conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// Read is of net.Conn.
func (c *conn) Read(p []byte) (n int, err error) {
	for {
		n, err = c.Conn.Read(p)
		if n > 0 || !c.read.early(err) {
			return n, err
		}
		if err = c.Conn.SetReadDeadline(c.read.set); err != nil {
			return 0, err
		}
	}
}

// Write is of net.Conn.
func (c *conn) Write(p []byte) (n int, err error) {
	for {
		m, err := c.Conn.Write(p[n:])
		if n += m; !c.write.early(err) {
			return n, err
		}
		if err = c.Conn.SetWriteDeadline(c.write.set); err != nil {
			return n, err
		}
	}
}

// Accept waits for a connection within the limit.
func (l *listener) Accept() (net.Conn, error) {
	for {
		raw, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		c := &conn{Conn: raw, owner: l}
		if tcp, ok := raw.RemoteAddr().(*net.TCPAddr); ok {
			c.addr = tcp.AddrPort().Addr().Unmap()
		}
		if l.add(c) {
			return c, nil
		}
		l.refused()
		_ = raw.SetWriteDeadline(time.Now().Add(refuseWriteMillis * time.Millisecond))
		_, _ = raw.Write(l.response)
		_ = raw.Close()
	}
}

func (l *listener) add(c *conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.shut || len(l.conns) >= l.limit {
		return false
	}
	l.conns[c] = struct{}{}
	return true
}

// open is the number of connections.
func (l *listener) open() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.conns)
}

// shutdown closes every connection that is left. l.gone tells when they are gone.
func (l *listener) shutdown() {
	l.mu.Lock()
	left := make([]*conn, 0, len(l.conns))
	for c := range l.conns {
		left = append(left, c)
	}
	if !l.shut && len(left) == 0 {
		close(l.gone)
	}
	l.shut = true
	l.mu.Unlock()
	// Not Close: that is for the connection's own goroutine, which counts as gone
	// only when it has noticed.
	for _, c := range left {
		_ = c.Conn.Close()
	}
}

// Close closes the connection; it may be called more than once.
func (c *conn) Close() error {
	c.once.Do(func() {
		if c.linger {
			c.drain()
		}
		c.err = c.Conn.Close()
		l := c.owner
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.conns, c)
		if l.shut && len(l.conns) == 0 {
			close(l.gone)
		}
	})
	return c.err
}

func (c *conn) drain() {
	half, ok := c.Conn.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		return
	}
	_ = c.SetReadDeadline(time.Now().Add(lingerMillis * time.Millisecond))
	_, _ = io.CopyN(io.Discard, c, lingerBytes)
}

// track is fasthttp's ConnState hook. A connection is busy from a request's first
// byte until its answer is flushed.
func track(nc net.Conn, state fasthttp.ConnState) {
	c := nc.(*conn)
	busy := state == fasthttp.StateActive
	if busy == c.busy {
		return
	}
	c.busy = busy
	if busy {
		c.owner.active.Add(1)
	} else {
		c.owner.active.Add(-1)
	}
}
