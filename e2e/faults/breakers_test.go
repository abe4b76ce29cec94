package faults

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"flashgate/internal/rig"
)

const (
	breakerClosed = 0
	breakerOpen   = 2

	// breakerShoppers ask at one time: calls of an engine that hangs end by their time-out,
	// and some must end within the breaker's window.
	breakerShoppers = 16
	breakerSeconds  = 90 // for a breaker to open, or to close, on a busy machine
	answersTimed    = 3
)

// TestE2EBreakers stops each engine and lets it go on, while shoppers ask: its breaker
// opens, and closes again by itself, and the gateway then sells as before.
func TestE2EBreakers(t *testing.T) {
	site := start(t, Options{WaitReplicas: 1})
	ctx := interruptible(t)
	r := &round{seed: 1, began: time.Now()}
	require.NoError(t, site.openOffers(ctx, r))
	w := &breakerWatch{t: t, site: site, gateway: site.ofRole("gateway")[0], sale: r.offers[len(r.offers)-1].id}
	for _, c := range []struct {
		engine    string
		processes []*rig.Process
		ask       func(context.Context) int
	}{
		{"redis", site.redis, w.buy},
		{"rocketmq", []*rig.Process{site.engine("broker")}, w.buy},
		{"mysql", []*rig.Process{site.engine("mariadb")}, w.list},
	} {
		require.Equal(t, breakerClosed, w.state(ctx, c.engine), c.engine)
		for _, p := range c.processes {
			require.NoError(t, p.Signal(syscall.SIGSTOP))
		}
		opened := w.until(ctx, c.engine, breakerOpen, c.ask)
		fastest := time.Hour
		for range answersTimed { // one of them may try the engine out
			began := time.Now()
			require.NotEqual(t, http.StatusAccepted, c.ask(ctx), c.engine)
			fastest = min(fastest, time.Since(began))
		}
		for _, p := range c.processes {
			require.NoError(t, p.Signal(syscall.SIGCONT))
		}
		closed := w.until(ctx, c.engine, breakerClosed, c.ask)
		t.Logf("%s: breaker open %.1f s after the engine stood still, an answer then took %d ms; closed %.1f s after it went on",
			c.engine, opened.Seconds(), fastest.Milliseconds(), closed.Seconds())
		require.NotZero(t, w.metric(ctx, `flashgate_breaker_opened_total{engine="`+c.engine+`"}`))
		require.NoError(t, await(ctx, breakerSeconds*time.Second, func(ctx context.Context) error {
			if status := w.buy(ctx); status != http.StatusAccepted {
				return fmt.Errorf("a purchase is answered %d", status)
			}
			return nil
		}), c.engine)
	}
	require.NoError(t, site.healed(ctx))
}

// breakerWatch asks one gateway, past the proxy, and reads its breakers.
type breakerWatch struct {
	t       *testing.T
	site    *Site
	gateway *daemon
	sale    string

	mu     sync.Mutex
	buyers int
}

// until has shoppers ask until an engine's breaker is in a state, and says how long it took.
func (w *breakerWatch) until(ctx context.Context, engine string, state int, ask func(context.Context) int) time.Duration {
	w.t.Helper()
	asking, stop := context.WithCancel(ctx)
	var shoppers sync.WaitGroup
	for range breakerShoppers {
		shoppers.Go(func() {
			for pause(asking, pollMillis*time.Millisecond) {
				ask(ctx)
			}
		})
	}
	began := time.Now()
	err := await(ctx, breakerSeconds*time.Second, func(ctx context.Context) error {
		if now := w.state(ctx, engine); now != state {
			return fmt.Errorf("the breaker of %s is in state %d, not %d", engine, now, state)
		}
		return nil
	})
	took := time.Since(began)
	stop()
	shoppers.Wait()
	require.NoError(w.t, err)
	return took
}

// buy buys as someone new, and list asks for the orders of one; the status is 0 when
// nothing was answered.
func (w *breakerWatch) buy(ctx context.Context) int {
	w.mu.Lock()
	w.buyers++
	user := fmt.Sprint("breaker-", w.buyers)
	w.mu.Unlock()
	return w.ask(ctx, http.MethodPost, "/v1/sales/"+w.sale+"/purchases", user)
}

func (w *breakerWatch) list(ctx context.Context) int {
	return w.ask(ctx, http.MethodGet, "/v1/orders?sale_id="+w.sale, fmt.Sprint("breaker-", time.Now().UnixNano()))
}

func (w *breakerWatch) ask(ctx context.Context, method, path, user string) int {
	token, err := w.site.token(user)
	if err != nil {
		w.t.Error(err)
		return 0
	}
	status, _ := w.request(ctx, method, "http://"+w.gateway.shoppers+path, token)
	return status
}

func (w *breakerWatch) request(ctx context.Context, method, url, token string) (status int, body string) {
	ctx, cancel := context.WithTimeout(ctx, breakerSeconds*time.Second)
	defer cancel()
	q, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		w.t.Error(err)
		return 0, ""
	}
	q.Header.Set("Authorization", "Bearer "+token)
	resp, err := http.DefaultClient.Do(q)
	if err != nil {
		return 0, ""
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, ""
	}
	return resp.StatusCode, string(text)
}

// state is that of an engine's breaker; half-open lies between the two.
func (w *breakerWatch) state(ctx context.Context, engine string) int {
	return int(w.metric(ctx, `flashgate_breaker_state{engine="`+engine+`"}`))
}

// metric reads one series of the gateway; -1: it did not answer.
func (w *breakerWatch) metric(ctx context.Context, series string) float64 {
	token := ""
	for _, v := range w.site.env {
		if value, ok := strings.CutPrefix(v, rig.EnvAdminToken+"="); ok {
			token = value
		}
	}
	_, text := w.request(ctx, http.MethodGet, "http://"+w.gateway.operators+"/metrics", token)
	found := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(series) + ` (\S+)$`).FindStringSubmatch(text)
	if found == nil {
		return -1
	}
	value, err := strconv.ParseFloat(found[1], 64)
	if err != nil {
		w.t.Error(series, err)
	}
	return value
}
