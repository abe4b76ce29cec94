//go:build measure

package faults

import (
	"context"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"flashgate/internal/failpoint"
)

// Figures for the documentation, with the waits that are shipped:
//
//	go test -tags measure -v -timeout 30m -run TestMeasure ./e2e/faults

// What is promised (ARCHITECTURE.md, invariant 7, and docs/faults.md).
const (
	shippedHoldSeconds    = 20
	deadReservationWithin = 30 * time.Second
	brokerAwaySeconds     = 120
	resumesWithin         = 10 * time.Second
	measuredTries         = 3
	probeMillis           = 100
)

// TestMeasureDeadReservation: units held by a gateway that died are free again within 30 s.
func TestMeasureDeadReservation(t *testing.T) {
	site := start(t, Options{WaitReplicas: 1, HoldSeconds: shippedHoldSeconds})
	ctx := t.Context()
	for _, point := range []failpoint.Point{failpoint.AfterReserve, failpoint.AfterHalf} {
		for try := range measuredTries {
			r := &round{seed: uint64(try), began: time.Now()}
			require.NoError(t, site.openOffers(ctx, r))
			o, h := r.offers[0], &history{began: time.Now()}
			c := newCrowd(site.gatewayURLs(), h)
			g := site.ofRole("gateway")[0]
			gone := g.expectEnd()
			require.NoError(t, g.arm(point, "kill"))
			p := site.buyer(t, fmt.Sprintf("%s-%d", point, try), c)
			a := p.post(ctx, want{offer: o, key: "k", quantity: 1}, buy, 1, 0, requestTimeoutMillis*time.Millisecond)
			require.Zero(t, a.status, "the gateway died")
			<-gone
			died := time.Now()
			_, v, err := site.view(ctx, o.id)
			require.NoError(t, err)
			require.Equal(t, o.total-1, v.stock, "a unit is held")
			require.NoError(t, await(ctx, 2*deadReservationWithin, func(ctx context.Context) error {
				_, v, err := site.view(ctx, o.id)
				if err == nil && v.stock != o.total {
					err = fmt.Errorf("%d of %d units are free", v.stock, o.total)
				}
				return err
			}))
			took := time.Since(died)
			t.Logf("gateway killed %s: its unit was free again after %.1f s", point, took.Seconds())
			require.Less(t, took, deadReservationWithin)
			require.NoError(t, g.start())
			require.NoError(t, site.healed(ctx))
		}
	}
}

// TestMeasureBrokerOutage: after the broker was away for two minutes, every gateway sells
// within 10 s of its return, without anybody's doing.
func TestMeasureBrokerOutage(t *testing.T) {
	site := start(t, Options{WaitReplicas: 1, HoldSeconds: shippedHoldSeconds})
	ctx := t.Context()
	r := &round{seed: 1, began: time.Now()}
	require.NoError(t, site.openOffers(ctx, r))
	h := &history{began: time.Now()}
	c := newCrowd(site.gatewayURLs(), h)
	offer := r.offers[1] // the ample one
	n := 0
	sells := func(gateway int) (bool, answer) {
		n++
		p := site.buyer(t, fmt.Sprintf("b-%d", n), c)
		a := p.post(ctx, want{offer: offer, key: "k", quantity: 1}, buy, 1, gateway, requestTimeoutMillis*time.Millisecond)
		return a.status == http.StatusAccepted, a
	}
	for g := range c.gateways {
		ok, a := sells(g)
		require.True(t, ok, one(&a))
	}
	broker := site.engine("broker")
	require.NoError(t, broker.Kill(ctx))
	// Shoppers come all the while: breakers are open when the broker returns.
	var slowest time.Duration
	for down := time.Now(); time.Since(down) < brokerAwaySeconds*time.Second; {
		for g := range c.gateways {
			began := time.Now()
			ok, a := sells(g)
			require.False(t, ok, "sold without a broker: %s", one(&a))
			slowest = max(slowest, time.Since(began))
		}
		pause(ctx, probeMillis*time.Millisecond)
	}
	started := time.Now()
	require.NoError(t, broker.Start())
	require.NoError(t, await(ctx, 2*healSeconds*time.Second, func(ctx context.Context) error {
		_, err := site.rig.Backlog(ctx, topic, consumerGroup, topicQueues)
		return err
	}))
	back := time.Now()
	t.Logf("the broker was killed for %d s (slowest answer meanwhile %.1f s), and needed %.1f s to start", brokerAwaySeconds, slowest.Seconds(), back.Sub(started).Seconds())
	for g := range c.gateways {
		var last answer
		require.NoError(t, await(ctx, 4*resumesWithin, func(context.Context) error {
			ok, a := sells(g)
			last = a
			if !ok {
				return fmt.Errorf("%s", one(&a))
			}
			return nil
		}))
		took := time.Since(back)
		t.Logf("gateway %d sold %.1f s after the broker's return: %s", g, took.Seconds(), last.order)
		require.Less(t, took, resumesWithin)
	}
	require.NoError(t, site.healed(ctx))
	t.Logf("all was ready %.1f s after the broker's return", time.Since(back).Seconds())
}

// buyer is a user with a token.
func (s *Site) buyer(t *testing.T, user string, c *crowd) *shopper {
	t.Helper()
	p := &shopper{user: user, crowd: c}
	var err error
	p.token, err = s.token(user)
	require.NoError(t, err)
	return p
}
