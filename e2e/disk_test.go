package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// retryEvery is how patient a shopper is: one that asks more often is told to slow down.
const retryEvery = 300 * time.Millisecond

// TestE2EEmbeddedDiskFull: while no file can take another byte, every purchase gets a 503
// and none a promise, and what was promised is still shown; with room again it sells
// without a restart; and a kill -9 in the middle loses nothing (invariants 2, 3, 4, 9).
func TestE2EEmbeddedDiskFull(t *testing.T) {
	const before, during, after = 4, 8, 4 // shoppers
	f := newFolder(t).embedded()
	d := f.start().ready()
	tokens := f.tokens(before + during + after)
	buy := func(n int) answer {
		return send(t, http.MethodPost, "http://"+d.shoppers+"/v1/sales/demo/purchases", tokens[n], "key", "")
	}
	orders := make([]string, len(tokens))
	buyAll := func(from, to int) {
		for n := from; n < to; n++ {
			require.Eventually(t, func() bool {
				a := buy(n)
				if a.status != http.StatusAccepted {
					require.Contains(t, []int{http.StatusServiceUnavailable, http.StatusTooManyRequests}, a.status, a.body)
					return false
				}
				orders[n] = orderID(t, a)
				return true
			}, waitTimeout, retryEvery, "it sells")
		}
	}
	buyAll(0, before)

	d.room(0)
	var shoppers sync.WaitGroup
	refused := make([]answer, len(tokens))
	for n := before; n < before+during; n++ {
		shoppers.Go(func() { refused[n] = buy(n) })
	}
	shoppers.Wait()
	for n := before; n < before+during; n++ {
		require.Equal(t, http.StatusServiceUnavailable, refused[n].status, refused[n].body)
		require.NotEmpty(t, refused[n].header.Get("Retry-After"))
	}
	shown := send(t, http.MethodGet, "http://"+d.shoppers+"/v1/orders/"+orders[0]+"?sale_id=demo", tokens[0], "", "")
	require.Equal(t, http.StatusOK, shown.status, shown.body)
	require.Equal(t, orders[0], orderID(t, shown))

	d.room(unix.RLIM_INFINITY)
	buyAll(before, before+during)

	// Killed with a full disk and purchases that failed on it.
	d.room(0)
	for n := before + during; n < len(tokens); n++ {
		a := buy(n)
		require.Equal(t, http.StatusServiceUnavailable, a.status, a.body)
	}
	d.kill()
	d = f.start().ready()
	buyAll(before+during, len(tokens))
	for n := range tokens {
		shown := send(t, http.MethodGet, "http://"+d.shoppers+"/v1/orders/"+orders[n]+"?sale_id=demo", tokens[n], "", "")
		require.Equal(t, http.StatusOK, shown.status, shown.body)
		require.Equal(t, orders[n], orderID(t, shown))
	}
	eventually(t, waitTimeout, "all units but the sold ones are free", func() bool {
		page := send(t, http.MethodGet, "http://"+d.shoppers+"/v1/sales/demo", "", "", "").body
		return strings.Contains(page, fmt.Sprintf(`"stock_left":%d`, 100-len(tokens)))
	})
	d.stop()
	require.Contains(t, f.must("audit"), "no invariant is broken")
}

// room bounds the size of every file that the process writes, from now on: at 0 no
// write succeeds, as on a full disk.
func (d *daemon) room(bytes uint64) {
	d.t.Helper()
	require.NoError(d.t, unix.Prlimit(d.cmd.Process.Pid, unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: bytes, Max: unix.RLIM_INFINITY}, nil))
}

// tokens are those of so many users.
func (f *folder) tokens(n int) []string {
	f.t.Helper()
	users := make([]string, n)
	for i := range users {
		users[i] = fmt.Sprintf("shopper-%d", i)
	}
	file := filepath.Join(f.dir, "users")
	require.NoError(f.t, os.WriteFile(file, []byte(strings.Join(users, "\n")+"\n"), 0o644))
	tokens := make([]string, 0, n)
	for line := range strings.Lines(f.must("token", "--users", file)) {
		_, token, ok := strings.Cut(strings.TrimSpace(line), " ")
		require.True(f.t, ok, line)
		tokens = append(tokens, token)
	}
	require.Len(f.t, tokens, n)
	return tokens
}
