package load

import (
	"bufio"
	"fmt"
	"net"
	"time"

	"github.com/valyala/fasthttp"
)

const (
	dialTimeoutSeconds = 5
	readBufferBytes    = 4 << 10 // holds any answer of the API but a list
	maxAnswerBytes     = 1 << 20 // a longer one is a fault, not an answer
)

// Conn is one keep-alive connection with one request on its way at a time. It never
// sends anything twice by itself: a request that got no answer is one without an
// answer, which is just what a load driver has to see. So it is fasthttp's codec on
// a connection of its own and not fasthttp.HostClient, which retries.
type Conn struct {
	Addr    string
	timeout time.Duration

	net  net.Conn // nil: not connected
	in   *bufio.Reader
	Resp fasthttp.Response
}

// NewConn makes a connection to host:port; it dials with its first request.
func NewConn(addr string, timeout time.Duration) *Conn {
	return &Conn{Addr: addr, timeout: timeout, in: bufio.NewReaderSize(nil, readBufferBytes)}
}

// Dial opens the connection, if its first request is not to do so.
func (c *Conn) Dial() error {
	n, err := net.DialTimeout("tcp", c.Addr, dialTimeoutSeconds*time.Second)
	if err != nil {
		return err
	}
	c.net = n
	c.in.Reset(n)
	return nil
}

// Close closes it. Idempotent.
func (c *Conn) Close() {
	if c.net != nil {
		_ = c.net.Close()
		c.net = nil
	}
}

// Do sends one request as it stands, header and body, and reads its answer into
// c.resp, which the next call overwrites. After an error the next call dials anew.
func (c *Conn) Do(request []byte) error {
	if c.net == nil {
		if err := c.Dial(); err != nil {
			return err
		}
	}
	err := c.exchange(request)
	if err != nil || c.Resp.ConnectionClose() {
		c.Close()
	}
	return err
}

func (c *Conn) exchange(request []byte) error {
	if err := c.net.SetDeadline(time.Now().Add(c.timeout)); err != nil {
		return err
	}
	if _, err := c.net.Write(request); err != nil {
		return err
	}
	if err := c.Resp.ReadLimitBody(c.in, maxAnswerBytes); err != nil {
		return fmt.Errorf("reading the answer: %w", err)
	}
	return nil
}
