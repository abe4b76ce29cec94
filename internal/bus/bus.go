// Package bus carries batches of won orders from the gateways to the workers, as
// transactional messages: a half message is stored durably first, and reaches a
// worker only once its local transaction (the confirm) is known to have happened.
// One implementation is RocketMQ, one keeps its messages in SQLite.
package bus

import (
	"context"

	"flashgate/internal/sale"
)

// Decision ends a half message.
type Decision uint8

// The decisions. Unknown leaves the half message: the bus checks back later.
const (
	Unknown Decision = iota
	Commit
	Rollback
)

func (d Decision) String() string { return [...]string{"unknown", "commit", "rollback"}[d] }

// Checker answers a check-back: what became of the local transaction of b.
type Checker func(ctx context.Context, b *sale.Batch) Decision

// Delivery is one committed message as a worker gets it.
type Delivery struct {
	MessageID string
	Batch     *sale.Batch // nil when Err is set
	Err       error       // why the body could not be read: poison
	Body      []byte      // as it came
	Trace     string      // the traceparent that its sender gave it; "" = it is not followed
}

// Handler takes deliveries in hand. nil acknowledges all of them; an error, or a
// panic, has all of them delivered again later. Handlers may run side by side.
type Handler func(ctx context.Context, deliveries []Delivery) error

// Bus is one process's connection.
type Bus interface {
	// Send stores b as a half message that carries the trace of ctx. Once the bus has it,
	// Send calls local, on this goroutine, and ends the message with what local returns; a
	// lost end is found by a check-back. If Send returns an error, local was not called,
	// and the half message may or may not be stored.
	Send(ctx context.Context, b *sale.Batch, local func() Decision) error
	// Consume hands committed messages to handle until ctx ends, then waits for the
	// handlers under way and returns nil. It may be called once. Messages that the bus gave up
	// checking are decided by check, as a check-back would, and not dropped.
	Consume(ctx context.Context, handle Handler, check Checker) error
	// Ping says whether the bus can be reached.
	Ping(ctx context.Context) error
	// Close stops sending and answering check-backs. Idempotent.
	Close() error
}

// Lister lists what a bus has not delivered yet, for a rebuild of Redis. Both buses do.
type Lister interface {
	// Undelivered calls each with the batches of a sale that are undecided or committed
	// and not acknowledged: at least those that the bus holds from before the call until
	// after it. One that moves meanwhile may come twice, one that was acknowledged or
	// rolled back a moment ago may come still.
	Undelivered(ctx context.Context, saleID string, each func([]sale.Batch) error) error
}
