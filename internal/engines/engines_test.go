package engines

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"flashgate/internal/bus"
	"flashgate/internal/config"
	"flashgate/internal/gather"
)

// What paces workers is the operator's; if it were lost on the way, only figures would show.
func TestTheBusIsPacedByTheConfig(t *testing.T) {
	o := busOptions(Needs{Config: &config.Config{
		RocketMQ: config.RocketMQ{CheckTimeout: time.Second, PullInterval: 2 * time.Second},
		Worker:   config.Worker{Linger: 3 * time.Second, Lull: 4 * time.Second, DrainTimeout: 5 * time.Second, MaxMessages: 6, Handlers: 7},
	}}, nil)
	require.Equal(t, bus.Options{
		CheckTimeout: time.Second, PullInterval: 2 * time.Second,
		Linger: gather.Linger{Most: 3 * time.Second, Lull: 4 * time.Second}, DrainTimeout: 5 * time.Second, BatchMessages: 6, Handlers: 7,
	}, o)
}
