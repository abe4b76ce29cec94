package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"flashgate/internal/limits"
)

// How long a rate is counted. What it may be above is held to strictly; below, only so
// that a machine that stands still for a while is no failure: the figure is in the log.
const (
	countSeconds = 3
	above        = 1.05
	below        = 0.5
)

// wide is a limit that nobody reaches here.
var wide = limits.Bucket{Rate: 1e11, Burst: 1e11}

// limitsFile is what the folder's processes follow.
func (f *folder) limitsFile() string { return filepath.Join(f.dir, "configs", "limits.yaml") }

// tune writes the shipped limits with edits, by a rename as editors do. Those of one
// address, which all shoppers here have, are wide.
func (f *folder) tune(edit func(*limits.Rules)) {
	f.t.Helper()
	r, err := limits.Load("../configs/limits.yaml")
	require.NoError(f.t, err)
	r.Address.Purchase, r.Address.Read = wide, wide
	edit(r)
	text, err := yaml.Marshal(r)
	require.NoError(f.t, err)
	f.putLimits(string(text))
}

func (f *folder) putLimits(text string) {
	f.t.Helper()
	require.NoError(f.t, os.WriteFile(f.limitsFile()+".new", []byte(text), 0o644))
	require.NoError(f.t, os.Rename(f.limitsFile()+".new", f.limitsFile()))
}

// metric reads a counter or a gauge of a daemon; series is its name with its labels.
func (f *folder) metric(d *daemon, series string) float64 {
	f.t.Helper()
	token := ""
	for _, v := range f.env {
		if value, ok := strings.CutPrefix(v, "FLASHGATE_ADMIN_TOKEN="); ok {
			token = value
		}
	}
	if token == "" { // of embedded engines
		text, err := os.ReadFile(filepath.Join(f.dir, "data", "env"))
		require.NoError(f.t, err)
		token = regexp.MustCompile(`ADMIN_TOKEN='([^']+)'`).FindStringSubmatch(string(text))[1]
	}
	a := send(f.t, http.MethodGet, "http://"+d.operators+"/metrics", token, "", "")
	require.Equal(f.t, http.StatusOK, a.status)
	found := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(series) + ` (\S+)$`).FindStringSubmatch(a.body)
	require.NotNil(f.t, found, series)
	value, err := strconv.ParseFloat(found[1], 64)
	require.NoError(f.t, err)
	return value
}

// purchase is one that a rush makes.
type purchase struct {
	gateway *daemon
	sale    string
	token   string
	address string // in X-Forwarded-For, if any
	who     string // under which it is counted
}

// rush buys over and over until it is ended; every purchase has a key of its own.
type rush struct {
	t    *testing.T
	end  chan struct{}
	busy sync.WaitGroup

	mu       sync.Mutex
	answered map[string]map[int]int // who → status → how often
	failed   []string
}

// newRush starts as many shoppers, each of whom sends when the last answer is there, and
// no sooner than every; next is the nth purchase of one.
func newRush(t *testing.T, shoppers int, every time.Duration, next func(shopper, n int) purchase) *rush {
	r := &rush{t: t, end: make(chan struct{}), answered: map[string]map[int]int{}}
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: shoppers}, Timeout: waitTimeout}
	for s := range shoppers {
		r.busy.Go(func() {
			tick := time.NewTicker(max(every, 1))
			defer tick.Stop()
			for n := 0; ; n++ {
				select {
				case <-r.end:
					return
				case <-tick.C:
				}
				p := next(s, n)
				status, err := p.buy(client, fmt.Sprint(s, "-", n))
				r.note(p.who, status, err)
			}
		})
	}
	t.Cleanup(client.CloseIdleConnections)
	return r
}

func (p *purchase) buy(client *http.Client, key string) (status int, err error) {
	q, err := http.NewRequest(http.MethodPost, "http://"+p.gateway.shoppers+"/v1/sales/"+p.sale+"/purchases", nil)
	if err != nil {
		return 0, err
	}
	q.Header.Set("Authorization", "Bearer "+p.token)
	q.Header.Set("Idempotency-Key", key)
	if p.address != "" {
		q.Header.Set("X-Forwarded-For", p.address)
	}
	resp, err := client.Do(q)
	if err != nil {
		return 0, err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	switch resp.StatusCode {
	case http.StatusAccepted, http.StatusConflict, http.StatusTooManyRequests:
		return resp.StatusCode, err
	case http.StatusServiceUnavailable: // an engine was late: what a busy machine does is no limit's doing
		return resp.StatusCode, err
	default:
		return 0, errors.Join(err, fmt.Errorf("%d %s", resp.StatusCode, body))
	}
}

func (r *rush) note(who string, status int, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		r.failed = append(r.failed, err.Error())
		return
	}
	if r.answered[who] == nil {
		r.answered[who] = map[int]int{}
	}
	r.answered[who][status]++
}

// let is how many of someone's purchases passed the limits so far: whoever has bought
// all he may is told LIMIT_REACHED by the sale itself. refused is how many did not.
func (r *rush) let(who string) (in, refused int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for status, n := range r.answered[who] {
		if status == http.StatusTooManyRequests {
			refused += n
		} else {
			in += n
		}
	}
	return in, refused
}

// reached waits until someone is refused and what the burst let in is answered, which takes
// longer than to refuse.
func (r *rush) reached(who string, limit limits.Bucket) {
	r.t.Helper()
	eventually(r.t, waitTimeout, who+" is refused", func() bool {
		in, refused := r.let(who)
		return refused > 0 && in >= limit.Burst
	})
}

// stop ends the rush; not one purchase may have failed or been dropped.
func (r *rush) stop() {
	r.t.Helper()
	close(r.end)
	r.busy.Wait()
	require.Empty(r.t, r.failed)
	r.t.Logf("answers by shopper and status: %v", r.answered)
}

// held counts for some seconds what of someone is let in, and holds it against a limit.
func (r *rush) held(who string, limit limits.Bucket) {
	r.t.Helper()
	began := time.Now()
	inBefore, refusedBefore := r.let(who)
	rest(r.t.Context(), countSeconds*time.Second)
	in, refused := r.let(who)
	took := time.Since(began).Seconds()
	in, refused = in-inBefore, refused-refusedBefore
	due := limit.Rate * took
	r.t.Logf("%s: of %d in %.2f s, %d let in: %.3f × the limit of %g/s", who, in+refused, took, in, float64(in)/due, limit.Rate)
	require.LessOrEqual(r.t, float64(in), above*(due+float64(limit.Burst)))
	require.GreaterOrEqual(r.t, float64(in), below*min(due, float64(in+refused)))
}

// TestE2ELimitsAreTunedWhileSelling: while shoppers buy, a change of limits.yaml is in force
// without one request that fails; a broken file changes nothing, and says why.
func TestE2ELimitsAreTunedWhileSelling(t *testing.T) {
	f := newFolder(t).realEngines()
	f.must("migrate")
	sale := fmt.Sprintf("live-%d", time.Now().UnixNano())
	rate := func(rate float64) (limits.Bucket, func(*limits.Rules)) {
		b := limits.Bucket{Rate: rate, Burst: int(rate) / 2}
		return b, func(r *limits.Rules) { r.User.Purchase, r.Gateway.Purchase = wide, b }
	}
	before, edit := rate(40)
	f.tune(edit)
	d := f.start("gateway").ready()
	f.openSale(sale, "--total", "1000", "--ends-at", time.Now().Add(time.Hour).UTC().Format(time.RFC3339))
	tokens := f.tokens(16)
	r := newRush(t, len(tokens), time.Millisecond, func(s, _ int) purchase {
		return purchase{gateway: d, sale: sale, token: tokens[s], who: "all"}
	})
	r.reached("all", before)
	r.held("all", before)

	reloads := 0.0
	for _, perSecond := range []float64{10, 80} {
		after, edit := rate(perSecond)
		edited := time.Now()
		f.tune(edit)
		reloads++
		eventually(t, waitTimeout, "the change is in force", func() bool { return f.metric(d, "flashgate_limits_reloads_total") == reloads })
		t.Logf("in force %d ms after the edit", time.Since(edited).Milliseconds())
		r.held("all", after)
	}

	text, err := os.ReadFile(f.limitsFile())
	require.NoError(t, err)
	f.putLimits(strings.Replace(string(text), "cold_factor: 3", "cold_factor: -3", 1))
	eventually(t, waitTimeout, "it is refused", func() bool { return f.metric(d, "flashgate_limits_reload_failures_total") == 1 })
	after, _ := rate(80)
	r.held("all", after)
	var shown limits.View
	require.NoError(t, json.Unmarshal([]byte(f.must("limits", "show", "--json", "--operators-listen", d.operators)), &shown))
	require.Regexp(t, `limits.yaml:\d+: flow.cold_factor: -3 is out of range`, shown.Refused.Problems)
	require.Contains(t, d.output(), "limits file refused")
	r.stop()
}

// TestE2EOneUserAndOneAddressAreHeld: a user who clicks a thousand times a second, and an
// address behind which ten thousand users are, are held to their limits; others buy.
func TestE2EOneUserAndOneAddressAreHeld(t *testing.T) {
	const few, many = 40, 10_000
	f := newFolder(t).embedded()
	user, address := limits.Bucket{Rate: 10, Burst: 5}, limits.Bucket{Rate: 20, Burst: 10}
	f.tune(func(r *limits.Rules) {
		r.User.Purchase, r.Address.Purchase = user, address
		r.Proxies.Trusted = []string{"127.0.0.1"}
	})
	d := f.start().ready()
	f.openSale("held", "--total", "20000", "--ends-at", time.Now().Add(time.Hour).UTC().Format(time.RFC3339))
	tokens := f.tokens(1 + many + few)
	greedy, behind, others := tokens[0], tokens[1:1+many], tokens[1+many:]
	r := newRush(t, 33, 8*time.Millisecond, func(s, n int) purchase {
		p := purchase{gateway: d, sale: "held"}
		switch {
		case s < 8: // 8 × 125 a second
			p.who, p.token, p.address = "user", greedy, fmt.Sprintf("10.%d.%d.%d", s, n/250%250, n%250)
		case s < 32:
			p.who, p.token, p.address = "address", behind[(24*n+s)%many], "203.0.113.9"
		default:
			p.who, p.token, p.address = "others", others[n%few], fmt.Sprintf("192.0.2.%d", n%few)
		}
		return p
	})
	var counting sync.WaitGroup
	for who, limit := range map[string]limits.Bucket{"user": user, "address": address} {
		r.reached(who, limit)
		counting.Go(func() { r.held(who, limit) })
	}
	counting.Wait()
	in, refused := r.let("others")
	require.Positive(t, in)
	require.Zero(t, refused, "others are served")
	r.stop()
}

// TestE2EGatewaysKeepALimitTogether: two gateways on the real engines, one total.
func TestE2EGatewaysKeepALimitTogether(t *testing.T) {
	f := newFolder(t).realEngines()
	f.must("migrate")
	total := limits.Bucket{Rate: 100, Burst: 20}
	f.tune(func(r *limits.Rules) {
		r.User.Purchase = wide
		r.Cluster = limits.Cluster{Enabled: true, Gateways: 2, Purchase: total, Read: wide}
	})
	sale := fmt.Sprintf("together-%d", time.Now().UnixNano())
	f.openSale(sale, "--total", "100", "--ends-at", time.Now().Add(time.Hour).UTC().Format(time.RFC3339))
	gateways := []*daemon{f.start("gateway").ready(), f.start("gateway").ready()}
	tokens := f.tokens(24)
	r := newRush(t, len(tokens), time.Millisecond, func(s, _ int) purchase {
		return purchase{gateway: gateways[s%2], sale: sale, token: tokens[s], who: "all"}
	})
	r.reached("all", total)
	r.held("all", total)
	for _, g := range gateways {
		require.NotZero(t, f.metric(g, `flashgate_limits_refusals_total{limit="cluster_purchase"}`))
	}
	r.stop()
}
