package purchase

import (
	"sync"

	"flashgate/internal/sale"
)

// confirmedMax is how many batches a gateway remembers as confirmed: some seconds of a
// rush, in which most of those who ask twice do so.
const confirmedMax = 8192

// confirmed remembers the latest batches of which this process knows that they are
// confirmed on the replicas too: their promises stand, and need not be confirmed again
// for everyone who asks a second time. One of another epoch is not known.
type confirmed struct {
	mu     sync.Mutex
	epochs map[sale.ID]int64 // by batch
	order  []sale.ID         // the oldest at next, once there are as many as are kept
	next   int
}

func (c *confirmed) add(batch sale.ID, epoch int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.epochs == nil {
		c.epochs = make(map[sale.ID]int64, confirmedMax)
	}
	if _, again := c.epochs[batch]; !again {
		if len(c.order) < confirmedMax {
			c.order = append(c.order, batch)
		} else {
			delete(c.epochs, c.order[c.next])
			c.order[c.next] = batch
			c.next = (c.next + 1) % confirmedMax
		}
	}
	c.epochs[batch] = epoch
}

func (c *confirmed) has(batch sale.ID, epoch int64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	of, known := c.epochs[batch]
	return known && of == epoch
}
