package limits

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"flashgate/internal/sale"
)

func TestBlockAndAllow(t *testing.T) {
	c, r := newClock(), shipped(t)
	r.User.Purchase, r.Address.Purchase = Bucket{1, 1}, Bucket{1, 1}
	r.Block = Listed{Users: []string{"mallory"}, Addresses: []string{"203.0.113.0/24", "2001:db8:bad::/48"}}
	r.Allow = Listed{Users: []string{"probe"}, Addresses: []string{"203.0.113.7", "198.51.100.0/24"}}
	l := newLimiter(t, r, Options{Now: c.Now})
	user := func(name string) (limit string) {
		_, limit, _ = l.AllowUser(Purchase, []byte(name), l.now())
		return limit
	}
	address := func(text string) (limit string) {
		_, limit, _ = l.AllowAddress(Purchase, netip.MustParseAddr(text), l.now())
		return limit
	}
	require.Equal(t, BlockedUser, user("mallory"))
	require.Equal(t, "", user("Mallory"), "users are compared byte by byte")
	require.Equal(t, BlockedAddress, address("203.0.113.8"))
	require.Equal(t, BlockedAddress, address("::ffff:203.0.113.8"))
	require.Equal(t, BlockedAddress, address("2001:db8:bad:1::1"))
	for range 5 {
		require.Equal(t, "", user("probe"), "held to no bucket")
		require.Equal(t, "", address("203.0.113.7"), "allow beats block")
		require.Equal(t, "", address("198.51.100.200"))
	}
	require.Equal(t, "", user("alice"))
	require.Equal(t, "user_purchase", user("alice"))
	require.Equal(t, "", address("192.0.2.1"))
	require.Equal(t, "address_purchase", address("192.0.2.1"))

	// Operators' rules beside those of the file; a reload keeps them.
	l.putAccess([]sale.AccessRule{
		{Kind: sale.AccessUser, Value: "bob", Access: sale.AccessBlock},
		{Kind: sale.AccessUser, Value: "mallory", Access: sale.AccessAllow},
		{Kind: sale.AccessAddress, Value: "192.0.2.0/24", Access: sale.AccessBlock},
	})
	for range 2 {
		require.Equal(t, BlockedUser, user("bob"))
		require.Equal(t, "", user("mallory"))
		require.Equal(t, BlockedAddress, address("192.0.2.9"))
		require.Equal(t, BlockedAddress, address("203.0.113.8"))
		require.NoError(t, l.Swap(r))
	}
	l.putAccess(nil)
	require.Equal(t, BlockedUser, user("mallory"))
	require.Equal(t, "", user("bob"))
}

// rulebook is a ledger of rules.
type rulebook struct {
	mu    sync.Mutex
	rules []sale.AccessRule
	away  bool
}

func (b *rulebook) add(rules ...sale.AccessRule) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, r := range rules {
		r.ID = int64(len(b.rules) + 1)
		b.rules = append(b.rules, r)
	}
}

func (b *rulebook) setAway(away bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.away = away
}

func (b *rulebook) AccessSince(_ context.Context, id int64, limit int) ([]sale.AccessRule, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.away {
		return nil, errors.New("ledger is away")
	}
	rules := b.rules[id:]
	return append([]sale.AccessRule(nil), rules[:min(len(rules), limit)]...), nil
}

// In a bubble of its own time: a second is a second, and the machine's load is nothing.
func TestFollowAccess(t *testing.T) {
	r := shipped(t)
	synctest.Test(t, func(t *testing.T) {
		var text bytes.Buffer
		// Without Sentinel, whose clock is not of this bubble.
		l := &Limiter{metrics: newMetrics(), log: slog.New(slog.NewTextHandler(&text, nil))}
		l.rules.Store(&inForce{Rules: *r})
		l.access.Store(newAccess(r, nil))
		source := &rulebook{}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- l.FollowAccess(ctx, source) }()
		is := func(user string, blocked bool, why string) {
			t.Helper()
			<-time.After(time.Second) // of the bubble's time: what is promised
			synctest.Wait()
			got, _ := l.access.Load().user([]byte(user))
			require.Equal(t, blocked, got, why)
		}
		block := func(user string, until time.Time) sale.AccessRule {
			return sale.AccessRule{Kind: sale.AccessUser, Value: user, Access: sale.AccessBlock, Until: until}
		}
		is("bob", false, "nobody has said so")
		source.add(block("bob", time.Time{}), block("eve", time.Now().Add(time.Minute)))
		is("bob", true, "within a second")
		is("eve", true, "for a minute")
		<-time.After(time.Minute)
		is("eve", false, "over by itself")
		source.setAway(true)
		is("bob", true, "the ledger is away")
		is("bob", true, "still")
		require.Equal(t, 1, bytes.Count(text.Bytes(), []byte("cannot be read")), "said once: %s", text.String())
		source.add(sale.AccessRule{Kind: sale.AccessUser, Value: "bob", Access: sale.AccessLift})
		source.setAway(false)
		is("bob", false, "lifted meanwhile")
		require.Zero(t, l.accessRules())
		stop()
		require.NoError(t, <-done)
	})
}
