package system

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/redis/rueidis"

	"flashgate/bench/load"
)

// AwaitPurchase has a shopper ask one gateway until it sells.
func (s *System) AwaitPurchase(ctx context.Context, addr string, who *load.Shopper) error {
	c, request := load.NewConn(addr, s.Timeout), load.AppendPurchase(nil, addr, who)
	defer c.Close()
	return await(ctx, func() error {
		if err := c.Do(request); err != nil {
			return fmt.Errorf("gateway %s: %w", addr, err)
		}
		if got := c.Resp.StatusCode(); got != http.StatusAccepted {
			return fmt.Errorf("gateway %s: %d %.300s", addr, got, c.Resp.Body())
		}
		return nil
	})
}

// FlushOwner empties the master of a cluster that owns a sale, and says when that was
// done.
func FlushOwner(ctx context.Context, addr, saleID string) (time.Time, error) {
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{addr}, DisableCache: true, DisableRetry: true})
	if err != nil {
		return time.Time{}, fmt.Errorf("--flushall %s: %w", addr, err)
	}
	defer client.Close()
	for node, c := range client.Nodes() {
		// Every node but the owner answers MOVED.
		n, err := c.Do(ctx, c.B().Exists().Key(keysOf(saleID)[0]).Build()).AsInt64()
		if err != nil || n == 0 {
			continue
		}
		if err := c.Do(ctx, c.B().Flushall().Build()).Error(); err != nil {
			return time.Time{}, fmt.Errorf("FLUSHALL at %s: %w", node, err)
		}
		return time.Now(), nil
	}
	return time.Time{}, fmt.Errorf("--flushall %s: no node of this cluster has sale %s", addr, saleID)
}
