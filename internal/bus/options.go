package bus

import (
	"crypto/rand"
	"encoding/hex"
	"log/slog"
	"os"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"flashgate/internal/gather"
)

// DefaultTopic carries the batches.
const DefaultTopic = "flashgate-orders"

// Defaults of Options.
const (
	defaultProducerGroup = "flashgate-gateway"
	defaultConsumerGroup = "flashgate-worker"

	// One producer is one TCP connection: 2 gave 3.5 k half messages/s, 8 gave 6.7 k.
	defaultProducers = 4
	// A handler's call is one transaction of the ledger; 256 batches are some 10,000 orders.
	defaultBatchMessages = 256
	// One is in the ledger while the next inserts; more only wait for the lock of a hot sale.
	defaultHandlers = 2

	// A check-back asks Redis once; the broker asks again after an unknown answer.
	defaultCheckTimeoutMillis = 2_000
	// What a handler has in hand at a stop gets this long before its context ends.
	defaultDrainTimeoutMillis = 10_000
	// The embedded bus asks about a half message after this, as a broker would.
	defaultCheckAfterMillis = 6_000
	// How often the embedded bus looks for such half messages.
	defaultCheckIntervalMillis = 2_000
)

// Options configure a bus. The zero value of a field takes the default named.
type Options struct {
	// Check answers check-backs. nil: this process sends nothing, and is asked nothing.
	Check        Checker
	CheckTimeout time.Duration // for one answer of Check; 2 s

	BatchMessages int           // most deliveries in one call of a handler, 1–1,024; 256
	Handlers      int           // calls of the handler side by side; 2
	DrainTimeout  time.Duration // from the end of Consume's ctx to that of its handlers' context; 10 s

	Registerer prometheus.Registerer // nil: metrics are not exported
	Logger     *slog.Logger          // nil: slog.Default()

	// RocketMQ only.
	Linger        gather.Linger // of a call of the handler, for more deliveries; without its Gap
	NameServers   []string      // host:port each; names are resolved again every 2 min
	Topic         string        // DefaultTopic
	ProducerGroup string        // who is asked back; the same in every gateway; flashgate-gateway
	ConsumerGroup string        // who shares the messages; the same in every worker; flashgate-worker
	Producers     int           // connections that send; 4
	PullInterval  time.Duration // from what a queue brought until it is asked for more, and the Linger's gap; 0

	// Embedded only.
	File          string        // the SQLite file; made if absent
	CheckAfter    time.Duration // age at which an undecided half message is checked back; 6 s
	CheckInterval time.Duration // between looks for those; 2 s
}

func (o Options) withDefaults() Options {
	setDefault(&o.CheckTimeout, defaultCheckTimeoutMillis*time.Millisecond)
	setDefault(&o.BatchMessages, defaultBatchMessages)
	setDefault(&o.Handlers, defaultHandlers)
	setDefault(&o.DrainTimeout, defaultDrainTimeoutMillis*time.Millisecond)
	setDefault(&o.Logger, slog.Default())
	setDefault(&o.Topic, DefaultTopic)
	setDefault(&o.ProducerGroup, defaultProducerGroup)
	setDefault(&o.ConsumerGroup, defaultConsumerGroup)
	setDefault(&o.Producers, defaultProducers)
	setDefault(&o.CheckAfter, defaultCheckAfterMillis*time.Millisecond)
	setDefault(&o.CheckInterval, defaultCheckIntervalMillis*time.Millisecond)
	return o
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// uniqueName names one client of one process among all that speak to a broker.
func uniqueName(role string) string {
	random := make([]byte, 6)
	if _, err := rand.Read(random); err != nil {
		panic("BUG: crypto/rand never fails: " + err.Error())
	}
	return role + "-" + strconv.Itoa(os.Getpid()) + "-" + hex.EncodeToString(random)
}
