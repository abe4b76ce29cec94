package limits

import (
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/alibaba/sentinel-golang/core/base"
	"github.com/alibaba/sentinel-golang/core/hotspot"
)

// oneSale is what a limiter keeps of a sale, for each class. The ids come from the
// catalog of published sales, so there are no more of these than of sales.
type oneSale [classes]struct {
	mu     sync.Mutex
	size   Bucket
	bucket *bucket

	id   any // in the form in which Sentinel takes a parameter
	pace pace
}

// namedSale is a NamedSale in force.
type namedSale struct {
	size [classes]Bucket
	qps  [classes]float64
	flow [classes]*flowRule
}

func (l *Limiter) saleOf(id string) *oneSale {
	if s, ok := l.sales.Load(id); ok {
		return s.(*oneSale)
	}
	s := &oneSale{}
	for c := range s {
		s[c].id = id
	}
	stored, _ := l.sales.LoadOrStore(id, s)
	return stored.(*oneSale)
}

// AllowSale asks the limits of one sale: its bucket, its flow rule if the file names
// it, and the hotspot rule. id is of a published sale and is kept; see AllowAddress.
func (l *Limiter) AllowSale(c Class, id string, now time.Time) (retryAfter time.Duration, limit string, ok bool) {
	r := l.rules.Load()
	size, qps := r.sale[c], r.hotspot[c]
	var named *namedSale
	if len(r.named) > 0 {
		if named = r.named[id]; named != nil {
			size, qps = named.size[c], named.qps[c]
		}
	}
	s := l.saleOf(id)
	if retryAfter, ok = s.take(c, size, now); !ok {
		return l.refuse(limitSale, c, retryAfter)
	}
	if named != nil && !named.flow[c].allow(now) {
		return l.refuse(limitSaleFlow, c, trafficRetryAfter)
	}
	if p := &s[c].pace; !p.calm(now, qps) && !l.hotspot[c].allow(s[c].id, p.tell()) {
		return l.refuse(limitHotspot, c, trafficRetryAfter)
	}
	return 0, "", true
}

func (s *oneSale) take(c Class, size Bucket, now time.Time) (time.Duration, bool) {
	of := &s[c]
	of.mu.Lock()
	defer of.mu.Unlock()
	switch {
	case of.bucket == nil:
		of.bucket, of.size = newBucket(size), size
	case of.size != size:
		of.bucket, of.size = of.bucket.carryOver(size, now), size
	}
	return of.bucket.take(now)
}

// hotspotRule is Sentinel's rule of a class on the sale as a parameter.
type hotspotRule struct{ resource string }

// hotSales is how many sales a hotspot rule remembers, the latest asked about; the
// rule forgets others silently. Only sales near their threshold are asked about.
const hotSales = 20_000

// follow puts qps requests a second of any one sale in force, and of the named ones
// their own.
func (h *hotspotRule) follow(qps float64, c Class, named map[string]*namedSale) error {
	items := map[any]int64{}
	for id, n := range named {
		items[id] = int64(math.Ceil(min(n.qps[c], sentinelCeiling)))
	}
	if _, err := hotspot.LoadRulesOfResource(h.resource, []*hotspot.Rule{{
		Resource:          h.resource,
		MetricType:        hotspot.QPS,
		ControlBehavior:   hotspot.Reject,
		ParamIndex:        0,
		Threshold:         int64(math.Ceil(min(qps, sentinelCeiling))),
		DurationInSec:     1,
		ParamsMaxCapacity: hotSales,
		SpecificItems:     items,
	}}); err != nil {
		return fmt.Errorf("hotspot rule of %s: %w", h.resource, err)
	}
	return nil
}

// allow asks for one request of a sale, and first tells of those before that were let in
// without asking: the rule then decides as if it had seen all.
func (h *hotspotRule) allow(id any, before int64) bool {
	if before > 0 {
		h.ask(id, uint32(min(before, math.MaxUint32)))
	}
	return h.ask(id, 1)
}

func (h *hotspotRule) ask(id any, requests uint32) bool {
	r := hotspot.DefaultSlot.Check(&base.EntryContext{
		Resource: base.NewResourceWrapper(h.resource, base.ResTypeWeb, base.Inbound),
		Input:    &base.SentinelInput{BatchCount: requests, Args: []any{id}},
	})
	return r == nil || !r.IsBlocked()
}

func (h *hotspotRule) forget() error { return hotspot.ClearRulesOfResource(h.resource) }
