package limits

import (
	"fmt"
	"log/slog"
	"math"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	sentinel "github.com/alibaba/sentinel-golang/api"
	"github.com/alibaba/sentinel-golang/core/base"
	"github.com/alibaba/sentinel-golang/core/circuitbreaker"
	"github.com/alibaba/sentinel-golang/core/config"
	"github.com/alibaba/sentinel-golang/core/flow"
	"github.com/alibaba/sentinel-golang/core/stat"
	"github.com/alibaba/sentinel-golang/util"
)

// Sentinel is one for the process: its rules hang on resource names. Each Limiter has
// names of its own, and loads rules resource by resource, never the whole set.
var limiters atomic.Int64

// resources makes the suffix of a new Limiter's resource names: none for the first, so
// that what an operator sees is plain "purchase", "read", "redis".
func resources() string {
	if n := limiters.Add(1); n > 1 {
		return "#" + strconv.FormatInt(n, 10)
	}
	return ""
}

// startSentinel sets Sentinel up once: no files in HOME, no background collectors, no
// cached clock, no listener.
var startSentinel = sync.OnceValue(func() error {
	entity := config.NewDefaultConfig()
	s := &entity.Sentinel
	s.App.Name = "flashgate"
	s.Log.Logger = sentinelLog{}
	s.Log.Metric.FlushIntervalSec = 0
	// The last second in five steps: all that a flow rule reads, at every request.
	s.Stat = config.StatConfig{
		GlobalStatisticSampleCountTotal: 5, GlobalStatisticIntervalMsTotal: 1000,
		MetricStatisticSampleCount: 5, MetricStatisticIntervalMs: 1000,
	}
	if err := sentinel.InitWithConfig(entity); err != nil {
		return fmt.Errorf("starting Sentinel: %w", err)
	}
	util.SetClock(steadyClock{time.Now()})
	circuitbreaker.RegisterStateChangeListeners(breakerEvents{})
	return nil
})

// steadyClock is Sentinel's time: it starts at the wall clock's and never jumps. With
// the wall clock set back by an hour, a breaker would stay open for that hour.
type steadyClock struct{ start time.Time }

func (c steadyClock) Now() time.Time            { return c.start.Add(time.Since(c.start)) }
func (c steadyClock) CurrentTimeMillis() uint64 { return uint64(c.Now().UnixMilli()) }
func (c steadyClock) CurrentTimeNano() uint64   { return uint64(c.Now().UnixNano()) }
func (c steadyClock) Sleep(time.Duration)       { panic("BUG: a rule that sleeps: all of ours reject") }

// sentinelCeiling is the largest threshold given to Sentinel, in requests a second: far
// above what one process can take, and low enough that its sums of milliseconds and
// tokens stay within int64 for years. A larger limit never bites either.
const sentinelCeiling = 1e7

// warmUpFloor is the rate, in requests a second, below which a rule does not warm up:
// of so few, Sentinel's whole numbers leave a slope of nothing by nothing.
const warmUpFloor = 100

// flowRule is a flow rule of Sentinel: requests in any one second.
type flowRule struct {
	resource string
	node     *stat.ResourceNode
	question *base.EntryContext // read only, so one does for all requests
	pace     pace
	least    atomic.Uint64 // float64 bits: the lowest threshold that the rule may have
}

func newFlowRule(resource string) *flowRule {
	node := stat.GetOrCreateResourceNode(resource, base.ResTypeWeb)
	return &flowRule{resource: resource, node: node, question: &base.EntryContext{
		Resource: base.NewResourceWrapper(resource, base.ResTypeWeb, base.Inbound),
		StatNode: node,
		Input:    &base.SentinelInput{BatchCount: 1},
	}}
}

// warmUp is how a flow rule goes from a part of its rate to all of it; the zero value
// is not at all.
type warmUp struct {
	period time.Duration
	cold   int
}

// follow puts qps requests a second in force; it keeps the counts of the window. A
// rule that changes and warms up begins to do so anew.
func (f *flowRule) follow(qps float64, w warmUp) error {
	rule := &flow.Rule{
		Resource:               f.resource,
		TokenCalculateStrategy: flow.Direct,
		ControlBehavior:        flow.Reject, // Throttling would sleep on the request's goroutine
		Threshold:              min(qps, sentinelCeiling),
	}
	least := rule.Threshold
	if w.period > 0 && qps >= warmUpFloor {
		rule.TokenCalculateStrategy = flow.WarmUp
		rule.WarmUpPeriodSec, rule.WarmUpColdFactor = uint32(w.period/time.Second), uint32(w.cold)
		least /= float64(w.cold)
	}
	if _, err := flow.LoadRulesOfResource(f.resource, []*flow.Rule{rule}); err != nil {
		return fmt.Errorf("flow rule of %s: %w", f.resource, err)
	}
	f.least.Store(math.Float64bits(least))
	return nil
}

// allow asks the rule for one request, unless it is far below its threshold, and
// counts it. It asks the flow slot itself: sentinel.Entry around it costs a microsecond
// and six allocations a request, for statistics that nobody reads.
func (f *flowRule) allow(now time.Time) bool {
	if !f.pace.calm(now, math.Float64frombits(f.least.Load())) {
		if r := flow.DefaultSlot.Check(f.question); r != nil && r.IsBlocked() {
			return false
		}
	}
	f.node.AddCount(base.MetricEventPass, 1)
	return true
}

func (f *flowRule) forget() error { return flow.ClearRulesOfResource(f.resource) }

// sentinelLog passes Sentinel's warnings and errors on to slog; the rest is noise.
type sentinelLog struct{}

func (sentinelLog) Debug(string, ...any)    {}
func (sentinelLog) DebugEnabled() bool      { return false }
func (sentinelLog) Info(string, ...any)     {}
func (sentinelLog) InfoEnabled() bool       { return false }
func (sentinelLog) Warn(m string, a ...any) { slog.Warn("sentinel: "+m, a...) }
func (sentinelLog) WarnEnabled() bool       { return true }
func (sentinelLog) ErrorEnabled() bool      { return true }
func (sentinelLog) Error(err error, m string, a ...any) {
	slog.Error("sentinel: "+m, append(a, "error", err)...)
}
