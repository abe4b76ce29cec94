package gateway

import (
	"io"
	"net"
	"net/netip"
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
	owner  *listener
	addr   netip.Addr // of the peer; the zero Addr when it has none
	busy   bool       // touched by the connection's own goroutine only
	linger bool       // likewise
	once   sync.Once
	err    error
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
	_, _ = io.CopyN(io.Discard, c.Conn, lingerBytes)
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
