package bare

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/google/uuid"

	"flashgate/bench/report"
	"flashgate/bench/usage"
	"flashgate/internal/bus"
	"flashgate/internal/sale"
)

const (
	// busTopic and busGroup are the driver's own: nothing it sends is ever a worker's, or
	// asked of a gateway.
	busTopic     = "flashgate-bench"
	busGroup     = "flashgate-bench"
	busQueues    = 1
	busProducers = 4 // connections, as a gateway has

	busReadySeconds = 60
	busPollMillis   = 50
	busCallSeconds  = 10
)

// Bus sends half messages of one order each, and ends each with a rollback, so that
// none is delivered. No name servers = the embedded bus, in dir.
func Bus(ctx context.Context, o Options, nameServers []string, dir string) (*report.Report, error) {
	rep := report.New("bare half messages", "")
	options := bus.Options{
		Check: func(context.Context, *sale.Batch) bus.Decision { return bus.Rollback },
		Topic: busTopic, ProducerGroup: busGroup, Producers: busProducers,
		Logger: slog.New(slog.DiscardHandler),
	}
	var engines []usage.Process
	var b bus.Bus
	var err error
	if len(nameServers) == 0 {
		options.File = filepath.Join(dir, "bare-bus.db")
		b, err = bus.OpenEmbedded(options)
		rep.Set("engine", "embedded, SQLite")
	} else {
		if _, err := bus.EnsureTopics(ctx, nameServers, busTopic, busQueues); err != nil {
			return nil, err
		}
		options.NameServers = nameServers
		engines = usage.Engines()
		b, err = bus.OpenRocketMQ(options)
		rep.Set("engine", "RocketMQ")
	}
	if err != nil {
		return nil, err
	}
	ids := sale.NewIDs(0, time.Now)
	batch := func() *sale.Batch {
		key := uuid.NewString()
		id := ids.Next(0)
		return &sale.Batch{ID: id, SaleID: "bench", Epoch: 1, Orders: []sale.Order{{
			ID: id, SaleID: "bench", UserID: key, RequestKey: key, Quantity: 1, AmountCents: 9900,
		}}}
	}
	send := func(ctx context.Context, _ int) error {
		ctx, cancel := context.WithTimeout(ctx, busCallSeconds*time.Second)
		defer cancel()
		return b.Send(ctx, batch(), func() bus.Decision { return bus.Rollback })
	}
	if err := awaitBus(ctx, send); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	err = measure(ctx, rep, o.Progress, o.Connections, o.Calls, 1, "half messages", engines, send)
	return rep, errors.Join(err, b.Close())
}

// awaitBus waits until every connection has sent something.
func awaitBus(ctx context.Context, send func(context.Context, int) error) error {
	ctx, cancel := context.WithTimeout(ctx, busReadySeconds*time.Second)
	defer cancel()
	for sent := 0; sent < 2*busProducers; {
		err := send(ctx, 0)
		if err == nil {
			sent++
			continue
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("half messages: %w", err)
		case <-time.After(busPollMillis * time.Millisecond):
		}
	}
	return nil
}
