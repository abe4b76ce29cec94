package ticket

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"flashgate/internal/sale"
)

var now = time.Unix(1_800_000_000, 0)

func issuer(t require.TestingT, key string) *Issuer {
	i, err := NewIssuer([]byte(strings.Repeat(key, minKeyBytes)))
	require.NoError(t, err)
	return i
}

func TestTicket(t *testing.T) {
	i := issuer(t, "k")
	ticket := i.Issue([]byte("alice"), "spring", now.Add(30*time.Second))
	require.Len(t, ticket, Bytes)
	require.NoError(t, i.Check([]byte(ticket), []byte("alice"), "spring", now))
	require.NoError(t, issuer(t, "k").Check([]byte(ticket), []byte("alice"), "spring", now.Add(30*time.Second-time.Millisecond)), "any gateway with the key")
	require.Equal(t, errExpired, i.Check([]byte(ticket), []byte("alice"), "spring", now.Add(30*time.Second)))
	require.Equal(t, errMissing, i.Check(nil, []byte("alice"), "spring", now))
	for name, c := range map[string]struct {
		by                   *Issuer
		ticket, user, saleID string
	}{
		"another user":   {i, ticket, "alicf", "spring"},
		"another sale":   {i, ticket, "alice", "summer"},
		"another split":  {i, ticket, "alices", "pring"},
		"another key":    {issuer(t, "q"), ticket, "alice", "spring"},
		"too long":       {i, ticket + "A", "alice", "spring"},
		"too short":      {i, ticket[1:], "alice", "spring"},
		"no base64":      {i, strings.Repeat("=", Bytes), "alice", "spring"},
		"nothing signed": {i, strings.Repeat("A", Bytes), "alice", "spring"},
	} {
		require.Equal(t, errForged, c.by.Check([]byte(c.ticket), []byte(c.user), c.saleID, now), name)
	}
	_, err := NewIssuer(make([]byte, minKeyBytes-1))
	require.Error(t, err)
}

// Not one bit of a ticket can be changed, its expiry's least of all.
func TestNoBitCanBeChanged(t *testing.T) {
	i := issuer(t, "k")
	rapid.Check(t, func(t *rapid.T) {
		user, saleID := rapid.StringN(1, -1, 64).Draw(t, "user"), rapid.StringMatching(`[A-Za-z0-9_-]{1,64}`).Draw(t, "sale")
		good := i.Issue([]byte(user), saleID, now.Add(time.Minute))
		require.NoError(t, i.Check([]byte(good), []byte(user), saleID, now))
		bad := []byte(good)
		at := rapid.IntRange(0, Bytes-1).Draw(t, "at")
		bad[at] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"[rapid.IntRange(0, 63).Draw(t, "to")]
		if string(bad) != good {
			require.Equal(t, errForged, i.Check(bad, []byte(user), saleID, now))
		}
	})
}

func TestCheckDoesNotAllocate(t *testing.T) {
	i := issuer(t, "k")
	user := []byte("0190b7c2-6d4e-7a5e-9d1c-1f0a5ad6c1e2")
	ticket := []byte(i.Issue(user, "spring", now.Add(time.Minute)))
	allocs := testing.AllocsPerRun(1000, func() {
		if i.Check(ticket, user, "spring", now) != nil {
			t.Error("refused")
		}
	})
	// Pools drop at random under the race detector.
	require.Less(t, allocs, 1.0+raceAllocs)
}

func BenchmarkCheck(b *testing.B) {
	i := issuer(b, "k")
	ticket := []byte(i.Issue([]byte("alice"), "spring", now.Add(time.Minute)))
	b.ReportAllocs()
	for b.Loop() {
		_ = i.Check(ticket, []byte("alice"), "spring", now)
	}
}

func TestJudge(t *testing.T) {
	answers := map[string]int{"human": 204, "fine": 200, "robot": 403, "stale": 422, "broken": 500, "elsewhere": 302, "hangs": 200}
	hang := make(chan struct{})
	var got Attempt
	judge := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var a Attempt
		if err := json.NewDecoder(r.Body).Decode(&a); err != nil || r.Method != http.MethodPost {
			t.Error(r.Method, err)
		}
		if a.Proof == "hangs" {
			<-hang
		}
		got = a
		w.Header().Set("Location", "/other")
		w.WriteHeader(answers[a.Proof])
	}))
	defer judge.Close()
	defer close(hang)
	ask := func(proof string, timeout time.Duration) error {
		return Judge(judge.URL, timeout)(context.Background(), Attempt{"alice", "spring", netip.MustParseAddr("192.0.2.1"), proof})
	}
	const patience = 10 * time.Second
	require.NoError(t, ask("human", patience))
	require.Equal(t, Attempt{"alice", "spring", netip.MustParseAddr("192.0.2.1"), "human"}, got)
	require.NoError(t, ask("fine", patience))
	require.Equal(t, sale.CodeChallenge, sale.CodeOf(ask("robot", patience)))
	require.Equal(t, sale.CodeChallenge, sale.CodeOf(ask("stale", patience)))
	for _, proof := range []string{"broken", "elsewhere"} {
		err := ask(proof, patience)
		require.Error(t, err)
		require.Equal(t, sale.CodeInternal, sale.CodeOf(err), "nobody knows: %s", proof)
	}
	require.Equal(t, sale.CodeInternal, sale.CodeOf(ask("hangs", 50*time.Millisecond)))
}
