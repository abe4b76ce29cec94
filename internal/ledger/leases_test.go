package ledger

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"flashgate/internal/sale"
)

func testLeases(t *testing.T, r *rig) {
	ctx := context.Background()
	acquire := func(holder string, ttl time.Duration) (int64, bool) {
		token, ok, err := r.Acquire(ctx, "leader", holder, ttl)
		require.NoError(t, err)
		return token, ok
	}
	token, ok := acquire("a", time.Hour)
	require.True(t, ok)
	require.EqualValues(t, 1, token)
	_, ok = acquire("b", time.Hour)
	require.False(t, ok, "a has it")
	token, ok = acquire("a", time.Hour)
	require.True(t, ok)
	require.EqualValues(t, 1, token, "a renewal keeps the token")

	require.NoError(t, r.Release(ctx, "leader", "b"))
	_, ok = acquire("b", time.Hour)
	require.False(t, ok, "b can't release what a has")
	require.NoError(t, r.Release(ctx, "leader", "a"))
	token, ok = acquire("b", 50*time.Millisecond)
	require.True(t, ok)
	require.EqualValues(t, 2, token)

	require.Eventually(t, func() bool { token, ok = acquire("a", time.Hour); return ok }, 5*time.Second, 10*time.Millisecond, "b's expires")
	require.EqualValues(t, 3, token)
	token, ok, err := r.Acquire(ctx, "another", "b", time.Hour)
	require.NoError(t, err)
	require.True(t, ok)
	require.EqualValues(t, 1, token)
}

func testLeaseRace(t *testing.T, r *rig) {
	var winners atomic.Int64
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			_, ok, err := r.Acquire(context.Background(), "race", fmt.Sprint("racer-", i), time.Hour)
			if err != nil {
				t.Error(err)
			}
			if ok {
				winners.Add(1)
			}
		})
	}
	wg.Wait()
	require.EqualValues(t, 1, winners.Load())
}

func testNodes(t *testing.T, r *rig) {
	ctx := context.Background()
	const ttl = time.Minute
	var mu sync.Mutex
	got := map[int]string{}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			holder := fmt.Sprint("gateway-", i)
			node, err := r.AcquireNode(ctx, holder, ttl)
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			got[node] = holder
			mu.Unlock()
		})
	}
	wg.Wait()
	require.Len(t, got, 8, "each has a number of its own")
	for node := range 8 {
		require.Contains(t, got, node, "the lowest that were never used")
	}

	require.NoError(t, r.ReleaseNode(ctx, 3, "another"))
	ok, err := r.RenewNode(ctx, 3, got[3], ttl)
	require.NoError(t, err)
	require.True(t, ok)
	require.NoError(t, r.ReleaseNode(ctx, 3, got[3]))
	ok, err = r.RenewNode(ctx, 3, got[3], ttl)
	require.NoError(t, err)
	require.False(t, ok, "given back")
	node, err := r.AcquireNode(ctx, "late", ttl)
	require.NoError(t, err)
	require.Equal(t, 8, node, "never used comes before given back")

	for n := 9; n < sale.Nodes; n++ {
		r.exec(t, "INSERT INTO nodes (node, holder, expires_at, renewed_at) VALUES (?, 'x', "+r.engine.after(time.Hour)+", "+r.engine.now+")", n)
	}
	_, err = r.AcquireNode(ctx, "one-too-many", ttl)
	requireCode(t, sale.CodeUnavailable, err)
	require.ErrorContains(t, err, "all 1024 node numbers")

	age := func(node int, d time.Duration) {
		r.exec(t, "UPDATE nodes SET expires_at = "+r.engine.after(-d)+" WHERE node = ?", node)
	}
	age(3, nodeReleaseQuarantine-time.Minute)
	age(5, NodeQuarantine-time.Minute)
	_, err = r.AcquireNode(ctx, "one-too-many", ttl)
	requireCode(t, sale.CodeUnavailable, err)
	ok, err = r.RenewNode(ctx, 5, got[5], ttl)
	require.NoError(t, err)
	require.True(t, ok, "expired, and nobody else's: a gateway cut off from the ledger goes on")

	age(3, nodeReleaseQuarantine+time.Minute)
	age(6, NodeQuarantine+time.Minute)
	node, err = r.AcquireNode(ctx, "next", ttl)
	require.NoError(t, err)
	require.Equal(t, 6, node, "the longest unused of those that are free")
	ok, err = r.RenewNode(ctx, 6, got[6], ttl)
	require.NoError(t, err)
	require.False(t, ok, "it went to another")
	node, err = r.AcquireNode(ctx, "next-but-one", ttl)
	require.NoError(t, err)
	require.Equal(t, 3, node)
}
