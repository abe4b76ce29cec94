package stock

import (
	"context"
	"errors"
	"time"

	"github.com/redis/rueidis"
)

// Lease is a sold-out lease: for Left from the moment at which Redis gave it, reserve
// sells nothing of the sale, whatever comes back, and no user gets a first record in
// another way. It is on the replicas, so that a failover does not end it.
type Lease struct {
	// Left counts from an instant after the call was sent: count from before that. 0:
	// there is no lease, since there are free units, or an order waits to be adopted.
	Left   time.Duration
	Mark   BuyersMark
	Buyers int  // users with a record
	Many   bool // none was given because there are more buyers than the caller allows
}

// BuyersMark stands for a sale's buyers at one moment: at two moments with the same mark
// they are the same.
type BuyersMark struct {
	Epoch, Moves int64
	Process      string // of Redis; another one may have forgotten moves, and counted others
}

// MaxLease bounds a sold-out lease. Units that come back sell when it has lapsed, which
// shoppers shall see within 200 ms; and a sale that Redis has lost is not filled again
// before it has.
const MaxLease = 180 * time.Millisecond

// leaseTries is how often an order is tried to be adopted: after the first refusal no lease
// is given any more, and the one that is held lapses within MaxLease, or after a failover
// within twice that.
const leaseTries = 4

// pastLease does what a sold-out lease may hold up, and again when that can have lapsed.
func pastLease(ctx context.Context, do func() error) error {
	for try := 1; ; try++ {
		err := do()
		if !errors.Is(err, errLeased) || try == leaseTries {
			return err
		}
		timer := time.NewTimer(MaxLease)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return err
		}
	}
}

// The answers of soldout.
const (
	soldOutOpen  = 0
	soldOutGiven = 1
	soldOutMany  = 2
)

// SoldOut takes a sold-out lease of a sale, or makes it last longer, if it has no free
// units and no more than buyersMax buyers.
func (s *Store) SoldOut(ctx context.Context, saleID string, lease time.Duration, buyersMax int) (l Lease, err error) {
	err = s.runAndWait(ctx, soldOutScript, saleID, soldOutArgs(lease, buyersMax), nil, func(_ []rueidis.RedisResult, message rueidis.RedisMessage) (err error) {
		l, err = readLease(message)
		return err
	})
	if err != nil {
		return Lease{}, err
	}
	return l, nil
}

// SoldOutBuyers reads all buyers of a sale and then does as SoldOut, on one connection, so
// that the same process does both. The users are those of the lease's mark only if the
// caller had this mark before: then no record changed in between.
func (s *Store) SoldOutBuyers(ctx context.Context, saleID string, lease time.Duration, buyersMax int) (users []string, l Lease, err error) {
	read := func() rueidis.Completed {
		return s.client.B().Hkeys().Key(keysOf(saleID, wholeSale, keyBuyers)[0]).Build()
	}
	err = s.runAndWait(ctx, soldOutScript, saleID, soldOutArgs(lease, buyersMax), read, func(before []rueidis.RedisResult, message rueidis.RedisMessage) (err error) {
		if users, err = before[0].AsStrSlice(); err != nil {
			return classify("buyers", err)
		}
		l, err = readLease(message)
		return err
	})
	if err != nil {
		return nil, Lease{}, err
	}
	return users, l, nil
}

func soldOutArgs(lease time.Duration, buyersMax int) []string {
	if lease <= 0 || lease > MaxLease {
		panic("BUG: a sold-out lease of " + lease.String())
	}
	return []string{formatInt(lease.Milliseconds()), formatInt(int64(buyersMax))}
}

func readLease(message rueidis.RedisMessage) (Lease, error) {
	code, reply, err := readReady(soldOutScript, message)
	switch {
	case err != nil:
		return Lease{}, err
	case code == soldOutOpen:
		return Lease{}, nil
	case code == soldOutMany:
		return Lease{Many: true}, nil
	case code != soldOutGiven || len(reply) != 5:
		return Lease{}, malformed("soldout", message)
	}
	var n [4]int64
	for i := range n {
		if n[i], err = reply[i].ToInt64(); err != nil {
			return Lease{}, malformed("soldout", message)
		}
	}
	process, err := reply[4].ToString()
	if err != nil {
		return Lease{}, malformed("soldout", message)
	}
	// Redis's clock tells whole milliseconds: up to one of them had passed already.
	left := time.Duration(n[0]-1) * time.Millisecond
	return Lease{Left: left, Mark: BuyersMark{n[1], n[2], process}, Buyers: int(n[3])}, nil
}
