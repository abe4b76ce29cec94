package ledger

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"flashgate/internal/sale"
)

func testAccess(t *testing.T, r *rig) {
	ctx := context.Background()
	add := func(kind sale.AccessKind, value string, access sale.Access, until time.Time) bool {
		t.Helper()
		changed, err := r.AddAccess(ctx, sale.AccessRule{Kind: kind, Value: value, Access: access, Until: until, By: "root", Reason: "a test"})
		require.NoError(t, err)
		return changed
	}
	later := time.Now().Add(time.Hour).UTC().Truncate(time.Millisecond)
	require.False(t, add(sale.AccessUser, "mallory", sale.AccessLift, time.Time{}), "nothing to lift")
	require.True(t, add(sale.AccessUser, "mallory", sale.AccessBlock, time.Time{}))
	require.False(t, add(sale.AccessUser, "mallory", sale.AccessBlock, time.Time{}), "the same again")
	require.True(t, add(sale.AccessUser, "Mallory", sale.AccessBlock, time.Time{}), "users are compared byte by byte")
	require.True(t, add(sale.AccessUser, "mallory", sale.AccessBlock, later), "another end")
	require.True(t, add(sale.AccessAddress, "::ffff:192.0.2.77/120", sale.AccessAllow, time.Time{}))
	require.False(t, add(sale.AccessAddress, "192.0.2.0/24", sale.AccessAllow, time.Time{}), "the same network")
	require.True(t, add(sale.AccessUser, "Mallory", sale.AccessLift, time.Time{}))
	require.True(t, add(sale.AccessUser, "short", sale.AccessBlock, time.Now().Add(-time.Second)))
	require.False(t, add(sale.AccessUser, "short", sale.AccessLift, time.Time{}), "over by itself")

	page, err := r.AccessSince(ctx, 0, 2)
	require.NoError(t, err)
	require.Len(t, page, 2, "no more than asked for")
	var book sale.AccessBook
	_, err = book.Read(ctx, r, time.Now())
	require.NoError(t, err)
	rules := book.Rules()
	require.Len(t, rules, 2)
	require.Equal(t, "mallory", rules[0].Value)
	require.True(t, later.Equal(rules[0].Until), "%s", rules[0].Until)
	require.Equal(t, "a test", rules[0].Reason)
	require.Equal(t, "root", rules[0].By)
	require.Equal(t, "192.0.2.0/24", rules[1].Value)
	require.Equal(t, sale.AccessAllow, rules[1].Access)

	for _, bad := range []sale.AccessRule{
		{Kind: "SHOE", Value: "x", Access: sale.AccessBlock},
		{Kind: sale.AccessUser, Value: "", Access: sale.AccessBlock},
		{Kind: sale.AccessUser, Value: string(make([]byte, 65)), Access: sale.AccessBlock},
		{Kind: sale.AccessAddress, Value: "10.0.0.0/33", Access: sale.AccessBlock},
		{Kind: sale.AccessUser, Value: "x", Access: "DENY"},
		{Kind: sale.AccessUser, Value: "x", Access: sale.AccessBlock, Reason: string(make([]byte, 501))},
	} {
		_, err := r.AddAccess(ctx, bad)
		require.Equal(t, sale.CodeInvalid, sale.CodeOf(err), "%+v", bad)
	}
}

// A gateway reads on from the last id it has seen: none may be committed behind it.
func testAccessInOrder(t *testing.T, r *rig) {
	ctx := context.Background()
	const writers, each = 4, 10
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				if _, err := r.AddAccess(ctx, sale.AccessRule{Kind: sale.AccessUser, Value: fmt.Sprint(w, "-", i), Access: sale.AccessBlock}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	var book sale.AccessBook
	for ended := false; ; {
		changed, err := book.Read(ctx, r, time.Now())
		require.NoError(t, err)
		if ended && !changed {
			break
		}
		select {
		case <-done:
			ended = true
		default:
		}
	}
	own := 0
	for _, rule := range book.Rules() {
		if len(rule.Value) == 3 && rule.Value[1] == '-' {
			own++
		}
	}
	require.Equal(t, writers*each, own)
}
