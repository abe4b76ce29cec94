package limits

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	sentinel "github.com/alibaba/sentinel-golang/api"
	"github.com/alibaba/sentinel-golang/core/base"
	"github.com/alibaba/sentinel-golang/core/circuitbreaker"
	"github.com/prometheus/client_golang/prometheus"
)

// Engine names what a circuit breaker protects.
type Engine string

// The engines.
const (
	Redis    Engine = "redis"
	RocketMQ Engine = "rocketmq"
	MySQL    Engine = "mysql"
)

// Engines is all of them.
var Engines = []Engine{Redis, RocketMQ, MySQL}

// ErrOpen is what Do's error wraps when the breaker is open: the call was not made.
var ErrOpen = errors.New("circuit breaker open")

// errPanicked is what a call that panicked counts as.
var errPanicked = errors.New("panicked")

// State of a breaker; its number is the value of flashgate_breaker_state.
type State int32

// The states.
const (
	Closed   State = iota // calls go through
	HalfOpen              // one call is trying the engine out
	Open                  // calls are refused
)

func (s State) String() string { return [...]string{"closed", "half-open", "open"}[s] }

// Breaker guards calls to one engine, seen by one caller.
type Breaker struct {
	circuit *circuit
	failed  func(error) bool
}

// circuit is an engine's breaker, which all callers share: for Sentinel three, by what
// they go by, and a call needs all of them.
type circuit struct {
	resource string
	options  []sentinel.EntryOption
	open     error // wraps ErrOpen
	refused  prometheus.Counter
	opened   prometheus.Counter

	following sync.Mutex // held while rules are loaded
	rule      BreakerRule

	mu         sync.Mutex   // held while a state changes
	generation int64        // of the rules: what older ones still report is not this state
	states     [3]State     // by strategy
	state      atomic.Int32 // the worst of them
}

// breakerChain asks the breaker and tells it how the call ended.
var breakerChain = sync.OnceValue(func() *base.SlotChain {
	c := base.NewSlotChain()
	c.AddRuleCheckSlot(circuitbreaker.DefaultSlot)
	c.AddStatSlot(circuitbreaker.DefaultMetricStatSlot)
	return c
})

func newCircuit(e Engine, suffix string, refused, opened prometheus.Counter) *circuit {
	c := &circuit{
		resource: string(e) + suffix,
		options:  []sentinel.EntryOption{sentinel.WithSlotChain(breakerChain())},
		open:     fmt.Errorf("%s: %w", e, ErrOpen),
		refused:  refused,
		opened:   opened,
	}
	circuits.Store(c.resource, c)
	return c
}

// follow puts a rule in force. One that changes starts closed; the calls of its window
// still count.
func (c *circuit) follow(r BreakerRule) error {
	c.following.Lock()
	defer c.following.Unlock()
	if r == c.rule {
		return nil
	}
	c.mu.Lock()
	c.generation++
	c.states = [3]State{}
	c.state.Store(int32(Closed))
	rule := circuitbreaker.Rule{
		Id:                           strconv.FormatInt(c.generation, 10),
		Resource:                     c.resource,
		RetryTimeoutMs:               uint32(r.RetryAfter / time.Millisecond),
		MinRequestAmount:             uint64(r.MinRequests),
		StatIntervalMs:               uint32(r.Window / time.Millisecond),
		StatSlidingWindowBucketCount: breakerBuckets,
	}
	c.mu.Unlock()
	slow, ratio, count := rule, rule, rule
	slow.Strategy, slow.MaxAllowedRtMs, slow.Threshold = circuitbreaker.SlowRequestRatio,
		uint64(r.SlowCall/time.Millisecond), float64(r.SlowPercent)/100
	ratio.Strategy, ratio.Threshold = circuitbreaker.ErrorRatio, float64(r.ErrorPercent)/100
	count.Strategy, count.Threshold = circuitbreaker.ErrorCount, float64(r.ErrorCount)
	if _, err := circuitbreaker.LoadRulesOfResource(c.resource, []*circuitbreaker.Rule{&ratio, &count, &slow}); err != nil {
		return fmt.Errorf("breaker of %s: %w", c.resource, err)
	}
	c.rule = r
	return nil
}

func (c *circuit) forget() error {
	circuits.Delete(c.resource)
	return circuitbreaker.ClearRulesOfResource(c.resource)
}

// Do calls fn, unless the breaker is open: then it returns at once an error that wraps
// ErrOpen. Otherwise it returns fn's error; a panic of fn counts as a failure.
func (b *Breaker) Do(ctx context.Context, fn func(context.Context) error) error {
	entry, blocked := sentinel.Entry(b.circuit.resource, b.circuit.options...)
	if blocked != nil {
		b.circuit.refused.Inc()
		return b.circuit.open
	}
	failure := errPanicked
	defer func() {
		if failure != nil {
			entry.SetError(failure)
		}
		entry.Exit()
	}()
	err := fn(ctx)
	failure = nil
	if err != nil && b.failed(err) {
		failure = err
	}
	return err
}

// State is where the breaker stands. An open one turns half-open with the first call
// after its time, not by the clock alone.
func (b *Breaker) State() State { return State(b.circuit.state.Load()) }

// Open reports whether calls are refused, until one tries the engine out.
func (b *Breaker) Open() bool { return b.State() == Open }

// circuits finds a circuit by its resource for Sentinel's events.
var circuits sync.Map

// breakerEvents follows the states, which Sentinel does not let one ask for.
type breakerEvents struct{}

func (breakerEvents) OnTransformToClosed(_ circuitbreaker.State, r circuitbreaker.Rule) {
	became(&r, Closed)
}

func (breakerEvents) OnTransformToHalfOpen(_ circuitbreaker.State, r circuitbreaker.Rule) {
	became(&r, HalfOpen)
}

func (breakerEvents) OnTransformToOpen(_ circuitbreaker.State, r circuitbreaker.Rule, _ any) {
	became(&r, Open)
}

func became(r *circuitbreaker.Rule, s State) {
	found, ok := circuits.Load(r.Resource)
	if !ok {
		return
	}
	c := found.(*circuit)
	c.mu.Lock()
	defer c.mu.Unlock()
	if r.Id != strconv.FormatInt(c.generation, 10) {
		return
	}
	before := State(c.state.Load())
	c.states[r.Strategy] = s
	worst := max(c.states[0], c.states[1], c.states[2])
	c.state.Store(int32(worst))
	if worst == Open && before != Open {
		c.opened.Inc()
	}
}
