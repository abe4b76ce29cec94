package e2e

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestE2EEmbeddedKilledWhileSelling: one command on embedded engines, whose Redis lives in
// the process, is killed again and again while shoppers buy with their keys until they get
// a definite answer. Each time it rebuilds what it sold from ledger and bus: nothing that was
// promised is lost, doubled or oversold (invariants 1, 2, 3, 4, 8, 9).
func TestE2EEmbeddedKilledWhileSelling(t *testing.T) {
	const (
		kills    = 3
		shoppers = 60
		total    = 50 // scarce: sold out while it is killed
		limit    = 2
		sale     = "scarce"
	)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	f := newFolder(t).embedded()
	d := f.start().ready()
	f.openSale(sale, "--total", fmt.Sprint(total), "--per-user-limit", fmt.Sprint(limit), "--ends-at", time.Now().Add(time.Hour).UTC().Format(time.RFC3339))
	tokens := f.tokens(shoppers)
	purchases := "http://" + d.shoppers + "/v1/sales/" + sale + "/purchases"

	var buying sync.WaitGroup
	var mu sync.Mutex
	promised := make(map[string]int) // order → shopper
	ctx, cancel := context.WithTimeout(t.Context(), loadTimeout)
	defer cancel()
	for n := range shoppers {
		random := rand.New(rand.NewPCG(seed, uint64(n)))
		buying.Go(func() {
			// Each wants two purchases of one unit: the second after the first.
			for key := range limit {
				if !rest(ctx, time.Duration(random.IntN(kills*killEveryMillis))*time.Millisecond) {
					return
				}
				for {
					status, id := try(ctx, purchases, tokens[n], fmt.Sprint("key-", key))
					if status == http.StatusAccepted {
						mu.Lock()
						promised[id] = n
						mu.Unlock()
						break
					}
					if status == http.StatusConflict {
						break
					}
					if !rest(ctx, retryEvery) {
						t.Errorf("shopper %d has no definite answer, the last was %d", n, status)
						return
					}
				}
			}
		})
	}
	random := rand.New(rand.NewPCG(seed, shoppers))
	for range kills {
		rest(ctx, time.Duration(killEveryMillis/4+random.IntN(killEveryMillis))*time.Millisecond)
		d.kill()
		d.again().ready()
	}
	buying.Wait()

	active := 0
	for id, n := range promised {
		eventually(t, waitTimeout, "the promised order "+id+" is in the ledger", func() bool {
			a := send(t, http.MethodGet, "http://"+d.shoppers+"/v1/orders/"+id+"?sale_id="+sale, tokens[n], "", "")
			require.NotEqual(t, http.StatusNotFound, a.status, a.body)
			if a.status != http.StatusOK || strings.Contains(a.body, "PROCESSING") {
				rest(ctx, retryEvery) // asked more often it would be told to slow down
				return false
			}
			if strings.Contains(a.body, "PENDING_PAYMENT") {
				active++
			} else {
				// What Redis forgot of a batch that was given up may have taken its unit.
				require.Contains(t, a.body, `"reason":"`)
			}
			return true
		})
	}
	require.LessOrEqual(t, active, total)
	require.GreaterOrEqual(t, active, total-limit*shoppers/10, "nearly all was sold to those who asked on")
	d.stop()
	require.Contains(t, f.must("audit"), "no invariant is broken")
	t.Logf("%d promised, %d of them active", len(promised), active)
}

// killEveryMillis is about the time between two deaths.
const killEveryMillis = 1_000

// rest waits; false: ctx ended first.
func rest(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

// try sends one purchase; status 0: no answer came back whole.
func try(ctx context.Context, url, token, key string) (status int, orderID string) {
	ctx, cancel := context.WithTimeout(ctx, waitTimeout)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, url, nil)
	if err != nil {
		return 0, ""
	}
	r.Header.Set("Authorization", "Bearer "+token)
	r.Header.Set("Idempotency-Key", key)
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0, ""
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, ""
	}
	if resp.StatusCode == http.StatusAccepted {
		_, id, _ := strings.Cut(string(text), `"order_id":"`)
		orderID, _, _ = strings.Cut(id, `"`)
	}
	return resp.StatusCode, orderID
}

// again starts a daemon that was killed, on the same ports.
func (d *daemon) again() *daemon {
	d.t.Helper()
	before := d.cmd
	d.cmd = exec.Command(before.Path, before.Args[1:]...)
	d.cmd.Dir, d.cmd.Env, d.cmd.Stdout, d.cmd.Stderr = before.Dir, before.Env, d.out, d.out
	require.NoError(d.t, d.cmd.Start())
	d.done = make(chan error, 1)
	go func(cmd *exec.Cmd, done chan<- error) { done <- cmd.Wait() }(d.cmd, d.done)
	return d
}
