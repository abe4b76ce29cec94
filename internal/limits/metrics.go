package limits

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// limitKind is the first half of a limit's name.
type limitKind uint8

const (
	limitGateway limitKind = iota
	limitAddress
	limitUser
	limitSale
	limitFlow
	limitSaleFlow
	limitHotspot
	limitConcurrency
	limitSystem
	limitCluster
	limitKinds
)

// limitNames is what a refusal is called in logs and metrics.
var limitNames = func() (names [limitKinds][classes]string) {
	for k, kind := range [limitKinds]string{
		"gateway", "address", "user", "sale", "flow", "sale_flow", "hotspot", "concurrency", "system", "cluster",
	} {
		for c := range classes {
			names[k][c] = kind + "_" + c.String()
		}
	}
	return names
}()

type metrics struct {
	refusals       *prometheus.CounterVec
	refused        [limitKinds][classes]prometheus.Counter
	blockedAddress prometheus.Counter
	blockedUser    prometheus.Counter
	breakerRefused *prometheus.CounterVec
	breakerOpened  *prometheus.CounterVec
	reloads        prometheus.Counter
	reloadFailures prometheus.Counter
	reloaded       prometheus.Gauge
}

func newMetrics() *metrics {
	refused := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "flashgate_limits_refusals_total",
		Help: "Requests refused, by the limit that refused them.",
	}, []string{"limit"})
	m := &metrics{
		refusals:       refused,
		blockedAddress: refused.WithLabelValues(BlockedAddress),
		blockedUser:    refused.WithLabelValues(BlockedUser),
		breakerRefused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "flashgate_breaker_refusals_total",
			Help: "Calls refused because the engine's circuit breaker was open.",
		}, []string{"engine"}),
		breakerOpened: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "flashgate_breaker_opened_total",
			Help: "How often the engine's circuit breaker opened.",
		}, []string{"engine"}),
		reloads: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "flashgate_limits_reloads_total",
			Help: "Changes of the limits file that were put in force.",
		}),
		reloadFailures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "flashgate_limits_reload_failures_total",
			Help: "Changes of the limits file that were refused; the limits before stay in force.",
		}),
		reloaded: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "flashgate_limits_reload_timestamp_seconds",
			Help: "When the limits in force were read, in Unix seconds.",
		}),
	}
	for k := range limitKinds {
		for c := range classes {
			m.refused[k][c] = refused.WithLabelValues(limitNames[k][c])
		}
	}
	return m
}

// register shows l's metrics to an operator.
func (m *metrics) register(l *Limiter, to prometheus.Registerer) error {
	for _, collector := range []prometheus.Collector{
		m.refusals, m.breakerRefused, m.breakerOpened, m.reloads, m.reloadFailures, m.reloaded, observed{l},
	} {
		if err := to.Register(collector); err != nil {
			return fmt.Errorf("metrics of limits: %w", err)
		}
	}
	return nil
}

var (
	breakerStateDesc = prometheus.NewDesc("flashgate_breaker_state",
		"The engine's circuit breaker: 0 closed, 1 half-open, 2 open.", []string{"engine"}, nil)
	trackedDesc = prometheus.NewDesc("flashgate_limits_tracked_buckets",
		"Addresses and users whose token bucket is not full.", []string{"limit"}, nil)
	listedDesc = prometheus.NewDesc("flashgate_limits_access_rules",
		"Blocks and allowances that operators made and that are in force.", nil, nil)
	aloneDesc = prometheus.NewDesc("flashgate_limits_cluster_alone",
		"1 while the limit of all gateways is on and this one keeps its part by itself, because Redis does not answer.", []string{"limit"}, nil)
	sharedDesc = prometheus.NewDesc("flashgate_limits_shared_bucket_requests_total",
		"Requests held against a shared bucket because no room was left for one of their own.", []string{"limit"}, nil)
)

// observed reads what is counted elsewhere, when it is asked.
type observed struct{ *Limiter }

func (observed) Describe(to chan<- *prometheus.Desc) {
	to <- breakerStateDesc
	to <- trackedDesc
	to <- sharedDesc
	to <- listedDesc
	to <- aloneDesc
}

func (o observed) Collect(to chan<- prometheus.Metric) {
	for _, e := range Engines {
		to <- prometheus.MustNewConstMetric(breakerStateDesc, prometheus.GaugeValue, float64(o.circuits[e].state.Load()), string(e))
	}
	to <- prometheus.MustNewConstMetric(listedDesc, prometheus.GaugeValue, float64(o.accessRules()))
	for c := range classes {
		alone := 0.0
		if s := o.shares[c]; s.rules.Load() != nil && s.own.Load() != nil {
			alone = 1
		}
		to <- prometheus.MustNewConstMetric(aloneDesc, prometheus.GaugeValue, alone, limitNames[limitCluster][c])
		for _, t := range []struct {
			table *table
			name  string
		}{{o.address[c], limitNames[limitAddress][c]}, {o.user[c], limitNames[limitUser][c]}} {
			keys, shared := t.table.counts(o.now())
			to <- prometheus.MustNewConstMetric(trackedDesc, prometheus.GaugeValue, float64(keys), t.name)
			to <- prometheus.MustNewConstMetric(sharedDesc, prometheus.CounterValue, float64(shared), t.name)
		}
	}
}
