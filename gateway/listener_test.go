package gateway

import (
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// told counts how often the runtime is told of a deadline.
type told struct {
	net.Conn
	times int
}

func (c *told) SetReadDeadline(t time.Time) error {
	c.times++
	return c.Conn.SetReadDeadline(t)
}

func (c *told) SetWriteDeadline(t time.Time) error {
	c.times++
	return c.Conn.SetWriteDeadline(t)
}

func TestDeadlinesAreKeptAndSeldomSet(t *testing.T) {
	const idle, reading, writing = time.Minute, 5 * time.Second, 7 * time.Second
	pair := func(t *testing.T) (c *conn, runtime *told, peer net.Conn) {
		near, far := net.Pipe()
		t.Cleanup(func() { _, _ = near.Close(), far.Close() })
		runtime = &told{Conn: near}
		return &conn{Conn: runtime}, runtime, far
	}
	// request is what fasthttp does for one, 1 s after the last.
	request := func(t *testing.T, c *conn, peer net.Conn) {
		t.Helper()
		got := make(chan error, 1)
		go func() {
			<-time.After(time.Second)
			_, err := peer.Write([]byte("ask"))
			if err == nil {
				_, err = peer.Read(make([]byte, 8))
			}
			got <- err
		}()
		require.NoError(t, c.SetReadDeadline(time.Now().Add(idle)))
		n, err := c.Read(make([]byte, 8))
		require.NoError(t, err)
		require.Equal(t, 3, n)
		require.NoError(t, c.SetReadDeadline(time.Now().Add(reading)))
		require.NoError(t, c.SetWriteDeadline(time.Now().Add(writing)))
		n, err = c.Write([]byte("answer"))
		require.NoError(t, err)
		require.Equal(t, 6, n)
		require.NoError(t, <-got)
	}

	t.Run("requests without end", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c, runtime, peer := pair(t)
			for range 1000 {
				request(t, c, peer)
			}
			require.Less(t, runtime.times, 600, "of 3,000: twice in 5 s, once in 7 s")
		})
	})
	t.Run("a wait is as long as the last deadline says", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			for _, wait := range []time.Duration{idle, reading, time.Millisecond} {
				c, _, peer := pair(t)
				for range 3 {
					request(t, c, peer)
				}
				began := time.Now()
				require.NoError(t, c.SetDeadline(began.Add(wait)))
				_, err := c.Read(make([]byte, 8))
				require.ErrorIs(t, err, os.ErrDeadlineExceeded)
				require.Equal(t, wait, time.Since(began), "reading")

				began = time.Now()
				require.NoError(t, c.SetWriteDeadline(began.Add(wait)))
				_, err = c.Write([]byte("nobody reads"))
				require.ErrorIs(t, err, os.ErrDeadlineExceeded)
				require.Equal(t, wait, time.Since(began), "writing")
			}
		})
	})
	t.Run("no deadline any more", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c, _, peer := pair(t)
			request(t, c, peer)
			require.NoError(t, c.SetDeadline(time.Time{}))
			go func() {
				<-time.After(time.Hour)
				_, _ = peer.Write([]byte("late"))
			}()
			n, err := c.Read(make([]byte, 8))
			require.NoError(t, err)
			require.Equal(t, 4, n)
		})
	})
	t.Run("an answer in pieces is written once", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c, _, peer := pair(t)
			require.NoError(t, c.SetWriteDeadline(time.Now().Add(writing)))
			read := make(chan string, 1)
			go func() {
				var all []byte
				for piece := make([]byte, 2); len(all) < 6; {
					<-time.After(writing / 2)
					n, err := peer.Read(piece)
					if err != nil {
						break
					}
					all = append(all, piece[:n]...)
				}
				read <- string(all)
			}()
			require.NoError(t, c.SetWriteDeadline(time.Now().Add(idle))) // the runtime's is before the last piece
			n, err := c.Write([]byte("answer"))
			require.NoError(t, err)
			require.Equal(t, 6, n)
			require.Equal(t, "answer", <-read)
		})
	})
}
