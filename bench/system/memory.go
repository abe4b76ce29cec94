package system

import (
	"context"
	"fmt"
	"time"

	"github.com/redis/rueidis"
)

// saleKeys are the keys of a sale in Redis, as the documents name them.
var saleKeys = []string{"stock", "buyers", "batches", "pending", "meta"}

func keysOf(sale string) []string {
	keys := make([]string, len(saleKeys))
	for i, key := range saleKeys {
		keys[i] = "fg:{" + sale + "}:" + key
	}
	return keys
}

const (
	memoryTimeoutSeconds = 30 // MEMORY USAGE looks at every field of a large hash
	everyField           = 0  // of MEMORY USAGE's SAMPLES: estimate nothing
)

// RedisBytes is the memory that sales take in the Redis of the config; 0 if the config
// names none.
func (s *System) RedisBytes(ctx context.Context, sales []Sale) (bytes int64, err error) {
	addresses := s.Redis()
	if len(addresses) == 0 {
		return 0, nil
	}
	ctx, cancel := context.WithTimeout(ctx, memoryTimeoutSeconds*time.Second)
	defer cancel()
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: addresses, DisableCache: true, ConnWriteTimeout: memoryTimeoutSeconds * time.Second})
	if err != nil {
		return 0, fmt.Errorf("Redis: %w", err)
	}
	defer client.Close()
	for _, sale := range sales {
		for _, key := range keysOf(sale.ID) {
			n, err := client.Do(ctx, client.B().MemoryUsage().Key(key).Samples(everyField).Build()).AsInt64()
			if rueidis.IsRedisNil(err) {
				continue // nothing pending, no batch open
			}
			if err != nil {
				return 0, fmt.Errorf("MEMORY USAGE: %w", err)
			}
			bytes += n
		}
	}
	return bytes, nil
}
