package stock

import (
	"context"

	"github.com/redis/rueidis"
)

// maxUsersPerRead bounds one HMGET, which holds up the node for its length.
const maxUsersPerRead = 500

// RecordsOf reads the records of many users, by user; without their batches' states.
// Like a scan, it reads nothing of a sale that is not loaded.
func (s *Store) RecordsOf(ctx context.Context, saleID string, users []string) (map[string][]Record, error) {
	found := make(map[string][]Record, len(users))
	keys := keysOf(saleID, wholeSale, keyStock, keyBuyers)
	for slice := range slices(users, maxUsersPerRead) {
		values, err := s.readUsers(ctx, keys[0], keys[1], slice)
		if err != nil {
			return nil, err
		}
		for i, user := range slice {
			packed, err := values[i].ToString()
			if rueidis.IsRedisNil(err) {
				continue
			}
			if err == nil {
				found[user], err = appendRecords(nil, packed, user)
			}
			if err != nil {
				return nil, err
			}
		}
	}
	return found, nil
}

func (s *Store) readUsers(ctx context.Context, stockKey, buyersKey string, users []string) ([]rueidis.RedisMessage, error) {
	ctx, cancel := context.WithTimeout(ctx, s.opts.CallTimeout)
	defer cancel()
	results := s.client.DoMulti(ctx,
		s.client.B().Get().Key(stockKey).Build(),
		s.client.B().Hmget().Key(buyersKey).Field(users...).Build())
	if err := results[0].Error(); rueidis.IsRedisNil(err) {
		return nil, ErrNotReady
	} else if err != nil {
		return nil, classify("records", err)
	}
	values, err := results[1].ToArray()
	if err != nil {
		return nil, classify("records", err)
	}
	return values, nil
}
