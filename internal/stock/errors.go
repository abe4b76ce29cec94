package stock

import (
	"errors"
	"fmt"
	"strings"

	"github.com/redis/rueidis"
)

// Errors. Any error that is none of these leaves the outcome unknown: the script
// may have run.
var (
	// ErrNotReady: the sale's stock key is absent, so nothing was changed.
	ErrNotReady = errors.New("stock: sale is not loaded in Redis")
	// ErrNotRun: the script certainly did not run (Redis could not be reached, or
	// refused before running it).
	ErrNotRun = errors.New("stock: Redis did not run the script")
	// ErrNotReplicated: the script ran, but too few replicas have it yet.
	ErrNotReplicated = errors.New("stock: replicas did not acknowledge in time")
	// ErrUnfit, beside ErrNotRun: an order that no record can hold, such as no purchase makes.
	ErrUnfit = errors.New("stock: no record holds such an order")
	// ErrBatchKnown: reserve met a batch id that Redis already knows, and changed nothing.
	ErrBatchKnown = errors.New("stock: batch id is known already")
)

// errLeased: a sold-out lease kept an order from being adopted, and nothing was changed.
var errLeased = fmt.Errorf("%w: a sold-out lease is held", ErrNotRun)

// errDial marks an error from opening a connection: nothing was sent on it.
var errDial = errors.New("dial")

// refusals open the errors with which Redis turns a script away before its first
// write. (Once a script has written, Redis lets it finish: the checks for memory,
// disk, replicas and read-only come at the first write only.)
var refusals = []string{
	"LOADING", "CLUSTERDOWN", "MOVED", "ASK", "TRYAGAIN", "READONLY", "MASTERDOWN", "NOSCRIPT",
	"OOM", "MISCONF", "NOREPLICAS", "BUSY", "NOAUTH", "NOPERM", "WRONGPASS",
}

// classify says of a failed call whether its script can have run.
func classify(name string, err error) error {
	if redisErr, ok := rueidis.IsRedisErr(err); ok {
		code, _, _ := strings.Cut(redisErr.Error(), " ")
		for _, refusal := range refusals {
			if code == refusal {
				return fmt.Errorf("%w: %s: %w", ErrNotRun, name, redisErr)
			}
		}
	}
	if errors.Is(err, errDial) || errors.Is(err, rueidis.ErrNoSlot) || errors.Is(err, rueidis.ErrNoAddr) {
		return fmt.Errorf("%w: %s: %w", ErrNotRun, name, err)
	}
	return fmt.Errorf("stock: %s, outcome unknown: %w", name, err)
}

// malformed is an answer that no script gives: the outcome is unknown.
func malformed(name string, reply any) error {
	return fmt.Errorf("stock: %s: malformed reply %v", name, reply)
}
