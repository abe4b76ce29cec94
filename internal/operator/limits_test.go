package operator_test

import (
	"context"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"flashgate/internal/limits"
	"flashgate/internal/operator"
	"flashgate/internal/sale"
	"flashgate/internal/storetest"
)

func newLimiter(t *testing.T) *limits.Limiter {
	t.Helper()
	rules, err := limits.Load("../../configs/limits.yaml")
	require.NoError(t, err)
	l, err := limits.New(rules, limits.Options{Log: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, l.Close()) })
	return l
}

// What an operator says by one process reaches the gateways of all, and one that is
// started later.
func TestAccessReachesEveryGateway(t *testing.T) {
	storetest.Each(t, func(t *testing.T, s *storetest.Stores) {
		p := newPortOn(t, s)
		p.server.Serve(p.admin)
		ctx, stop := context.WithCancel(t.Context())
		follow := func() *limits.Limiter {
			l, done := newLimiter(t), make(chan error, 1)
			go func() { done <- l.FollowAccess(ctx, s.Ledger) }()
			t.Cleanup(func() { stop(); require.NoError(t, <-done) })
			return l
		}
		gateways := []*limits.Limiter{follow(), follow()}
		becomes := func(gateways []*limits.Limiter, want string, ask func(*limits.Limiter) string) {
			t.Helper()
			for _, l := range gateways {
				require.Eventually(t, func() bool { return ask(l) == want }, 15*time.Second, 5*time.Millisecond)
			}
		}
		mallory := func(l *limits.Limiter) string {
			_, limit, _ := l.AllowUser(limits.Purchase, []byte("mallory"), time.Now())
			return limit
		}
		network := func(l *limits.Limiter) string {
			_, limit, _ := l.AllowAddress(limits.Read, netip.MustParseAddr("203.0.113.77"), time.Now())
			return limit
		}

		change := operator.AccessChange{User: "mallory", Access: sale.AccessBlock, Decision: operator.Decision{By: "root", Reason: "resells"}}
		c, err := p.client.SetAccess(t.Context(), change)
		require.NoError(t, err)
		require.Equal(t, operator.Change{Changed: true, Message: "user mallory is blocked; every gateway follows within a second"}, c)
		c, err = p.client.SetAccess(t.Context(), change)
		require.NoError(t, err)
		require.Equal(t, operator.Change{Message: "user mallory is blocked already"}, c)
		_, err = p.client.SetAccess(t.Context(), operator.AccessChange{Address: "203.0.113.5/24", Access: sale.AccessBlock, Until: time.Now().Add(time.Hour)})
		require.NoError(t, err)
		becomes(gateways, limits.BlockedUser, mallory)
		becomes(gateways, limits.BlockedAddress, network)

		late := []*limits.Limiter{follow()}
		becomes(late, limits.BlockedUser, mallory)
		becomes(late, limits.BlockedAddress, network)

		list, err := p.client.Access(t.Context())
		require.NoError(t, err)
		require.Len(t, list, 2)
		require.Equal(t, "mallory", list[0].User)
		require.Equal(t, operator.Decision{By: "root", Reason: "resells"}, list[0].Decision)
		require.Equal(t, "203.0.113.0/24", list[1].Address)
		require.Equal(t, "operators' port", list[1].By)

		for _, lift := range []operator.AccessChange{{User: "mallory"}, {Address: "203.0.113.0/24"}} {
			lift.Access = sale.AccessLift
			_, err = p.client.SetAccess(t.Context(), lift)
			require.NoError(t, err)
		}
		becomes(append(gateways, late...), "", mallory)
		becomes(append(gateways, late...), "", network)
		list, err = p.client.Access(t.Context())
		require.NoError(t, err)
		require.Empty(t, list)
	})
}

func TestAccessThatIsRefused(t *testing.T) {
	p := newPort(t)
	p.server.Serve(p.admin)
	for name, change := range map[string]operator.AccessChange{
		"nobody":      {Access: sale.AccessBlock},
		"both":        {User: "u", Address: "192.0.2.1", Access: sale.AccessBlock},
		"no access":   {User: "u"},
		"no address":  {Address: "192.0.2.300", Access: sale.AccessBlock},
		"in the past": {User: "u", Access: sale.AccessBlock, Until: time.Now().Add(-time.Second)},
	} {
		_, err := p.client.SetAccess(t.Context(), change)
		require.Equal(t, sale.CodeInvalid, sale.CodeOf(err), name)
	}
	_, err := p.client.Limits(t.Context())
	require.Equal(t, sale.CodeNotFound, sale.CodeOf(err), "a worker has none")
}

func TestLimitsInForce(t *testing.T) {
	p := newPort(t)
	p.admin.Limiter = newLimiter(t)
	p.server.Serve(p.admin)
	v, err := p.client.Limits(t.Context())
	require.NoError(t, err)
	require.WithinDuration(t, time.Now(), v.Since, time.Minute)
	require.Equal(t, map[limits.Engine]string{"redis": "closed", "rocketmq": "closed", "mysql": "closed"}, v.Breakers)
	shown, err := limits.Parse("shown", []byte(v.Limits))
	require.NoError(t, err, "what is shown is a limits file")
	shipped, err := limits.Load("../../configs/limits.yaml")
	require.NoError(t, err)
	require.Equal(t, shipped.Summary(), shown.Summary())
	require.Equal(t, shipped.Breakers, shown.Breakers)
}
