package gateway

import (
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"flashgate/internal/sale"
)

// metrics of the HTTP edge. Every series of the hot path is resolved once.
type metrics struct {
	done     [routeCount][]prometheus.Counter // by problem.slot; the last is a success
	seconds  [routeCount]prometheus.Observer
	inFlight atomic.Int64
	refused  prometheus.Counter
	panics   prometheus.Counter
}

// codeOK is the label of an answer that is no problem.
const codeOK = "OK"

func (g *Gateway) newMetrics(reg prometheus.Registerer) {
	m := &g.metrics
	requests := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "flashgate_http_requests_total",
		Help: "Shoppers' requests answered, by route and code (OK or a problem's code).",
	}, []string{"route", "code"})
	seconds := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "flashgate_http_request_duration_seconds",
		Help:    "Time from a request's last byte to its answer, by route.",
		Buckets: prometheus.ExponentialBuckets(0.00025, 2, 15),
	}, []string{"route"})
	m.refused = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "flashgate_http_connections_refused_total",
		Help: "Connections refused because the gateway has as many as it takes.",
	})
	m.panics = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "flashgate_http_panics_total",
		Help: "Handlers and flushers that panicked: each is a bug.",
	})
	codes := make([]sale.Code, len(problems)+1)
	for code, p := range problems {
		codes[p.slot] = code
	}
	codes[len(problems)] = codeOK
	for r := range routeCount {
		m.seconds[r] = seconds.WithLabelValues(routeNames[r])
		for _, code := range codes {
			m.done[r] = append(m.done[r], requests.WithLabelValues(routeNames[r], string(code)))
		}
	}
	if reg == nil {
		return
	}
	gauge := func(name, help string, value func() float64) {
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value))
	}
	reg.MustRegister(requests, seconds, m.refused, m.panics, g.cutoff.refusals)
	gauge("flashgate_http_requests_in_flight", "Requests in a handler.",
		func() float64 { return float64(m.inFlight.Load()) })
	gauge("flashgate_http_connections", "Open connections of shoppers.",
		func() float64 { return float64(g.listener.open()) })
	gauge("flashgate_purchase_queue_depth", "Purchase requests that wait for a flusher, those whose shopper has left included.",
		func() float64 { return float64(g.batcher.depth.Load()) })
	gauge("flashgate_cutoff_sales", "Sold-out sales of which the gateway holds a lease and knows the buyers.",
		func() float64 { return float64(g.cutoff.holding.Load()) })
	gauge("flashgate_cutoff_buyers", "Buyers it knows of these.",
		func() float64 { return float64(g.cutoff.buyers.Load()) })
	gauge("flashgate_catalog_age_seconds", "Age of the gateway's view of the sales; it grows while the ledger is away.",
		func() float64 { return g.catalog.age(time.Now()).Seconds() })
	gauge("flashgate_stock_view_age_seconds", "Age of the gateway's view of the stock; it grows while Redis is away.",
		func() float64 { return g.catalog.stockAge(time.Now()).Seconds() })
}

// observe counts an answered request. p is nil for a success.
func (m *metrics) observe(r route, p *problem, took time.Duration) {
	slot := len(problems)
	if p != nil {
		slot = p.slot
	}
	m.done[r][slot].Inc()
	m.seconds[r].Observe(took.Seconds())
}
