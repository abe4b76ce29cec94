package limits

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/alibaba/sentinel-golang/core/base"
	"github.com/alibaba/sentinel-golang/core/stat"
	"github.com/alibaba/sentinel-golang/core/system"
	"github.com/alibaba/sentinel-golang/core/system_metric"
	"github.com/shirou/gopsutil/v3/load"
)

// Sentinel's system rules are one set for the process: the Limiter that was last
// swapped holds it. A process that serves has one Limiter.
var (
	systemMutex  sync.Mutex
	systemHolder *Limiter
)

// systemQuestion is what the system rules are asked: read only, so one does for all.
var systemQuestion = &base.EntryContext{
	Resource: base.NewResourceWrapper("flashgate", base.ResTypeWeb, base.Inbound),
	Input:    &base.SentinelInput{BatchCount: 1},
}

// followSystem puts the machine's rules in force.
func (l *Limiter) followSystem(s System) error {
	systemMutex.Lock()
	defer systemMutex.Unlock()
	// CPU usage is left out: Sentinel compares per cents with a threshold of at most 1.
	if _, err := system.LoadRules([]*system.Rule{
		{MetricType: system.Load, TriggerCount: s.Load1, Strategy: system.BBR},
		{MetricType: system.InboundQPS, TriggerCount: min(s.InboundQPS, sentinelCeiling), Strategy: system.NoAdaptive},
	}); err != nil {
		return fmt.Errorf("system rules: %w", err)
	}
	systemHolder = l
	return nil
}

func (l *Limiter) forgetSystem() error {
	systemMutex.Lock()
	defer systemMutex.Unlock()
	if systemHolder != l {
		return nil
	}
	systemHolder = nil
	return system.ClearRules()
}

// loadWatched is the part of system.load1 from which on the machine's work is watched: a
// load average moves slowly, so all is known when it is reached.
const loadWatched = 0.5

// systemAllows asks the machine's rules for one request, unless all is far below them.
// watched: the request must be ended in the statistics too.
func (l *Limiter) systemAllows(s *System, now time.Time) (watched, ok bool) {
	node, load := stat.InboundNode(), system_metric.CurrentLoad()
	if l.pace.calm(now, min(s.InboundQPS, sentinelCeiling)) {
		if load <= s.Load1*loadWatched {
			return false, true
		}
	} else if n := l.pace.tell(); n > 0 {
		node.AddCount(base.MetricEventPass, n)
	}
	if r := system.DefaultAdaptiveSlot.Check(systemQuestion); r != nil && r.IsBlocked() {
		return false, false
	}
	node.AddCount(base.MetricEventPass, 1)
	if load > s.Load1*loadWatched {
		node.IncreaseConcurrency()
		return true, true
	}
	return false, true
}

// unwatch ends a request that was watched.
func unwatch(took time.Duration) {
	node := stat.InboundNode()
	node.DecreaseConcurrency()
	node.AddCount(base.MetricEventComplete, 1)
	node.AddCount(base.MetricEventRt, took.Milliseconds())
}

// readLoad tells Sentinel the load average. Sentinel's own collector cannot be stopped.
func readLoad() error {
	average, err := load.Avg()
	if err != nil {
		return err
	}
	if average == nil {
		return errors.New("no load average on this system")
	}
	system_metric.SetSystemLoad(average.Load1)
	return nil
}
