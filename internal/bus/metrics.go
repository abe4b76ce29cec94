package bus

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// metrics are the counts of one bus. Labels are made once: the hot path only adds.
type metrics struct {
	halves     [3]prometheus.Counter // by Decision of the local transaction
	halfFailed prometheus.Counter    // Send returned an error
	halfWait   prometheus.Histogram

	checkBacks   [3]prometheus.Counter // by answer
	undecodable  prometheus.Counter    // half messages whose body could not be read
	acknowledged prometheus.Counter
	redelivered  prometheus.Counter
	poison       prometheus.Counter
	stranded     [3]prometheus.Counter // by what the check said
	lag          prometheus.Gauge
}

func newMetrics(r prometheus.Registerer) *metrics {
	if r == nil {
		r = prometheus.NewRegistry()
	}
	factory := promauto.With(r)
	halves := factory.NewCounterVec(prometheus.CounterOpts{
		Name: "flashgate_bus_half_messages_total",
		Help: "Half messages by outcome: the local transaction's decision, or failed (not known to be stored).",
	}, []string{"outcome"})
	checkBacks := factory.NewCounterVec(prometheus.CounterOpts{
		Name: "flashgate_bus_check_backs_total",
		Help: "Check-backs by answer; undecodable ones are answered unknown and counted apart.",
	}, []string{"answer"})
	deliveries := factory.NewCounterVec(prometheus.CounterOpts{
		Name: "flashgate_bus_deliveries_total",
		Help: "Messages by what the handler did: acknowledged, redelivered (again later) or poison (given as unreadable).",
	}, []string{"outcome"})
	stranded := factory.NewCounterVec(prometheus.CounterOpts{
		Name: "flashgate_bus_stranded_messages_total",
		Help: "Half messages the broker gave up checking, by what our own check said. Alert on any.",
	}, []string{"answer"})
	m := &metrics{
		halfFailed: halves.WithLabelValues("failed"),
		halfWait: factory.NewHistogram(prometheus.HistogramOpts{
			Name:    "flashgate_bus_half_send_seconds",
			Help:    "Time from Send until the bus had the half message, failures included.",
			Buckets: []float64{.0005, .001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5},
		}),
		lag: factory.NewGauge(prometheus.GaugeOpts{
			Name: "flashgate_bus_consumer_lag_messages",
			Help: "Committed messages that the workers have not acknowledged, all workers together; NaN while the bus does not tell. Set by workers.",
		}),
		undecodable:  checkBacks.WithLabelValues("undecodable"),
		acknowledged: deliveries.WithLabelValues("acknowledged"),
		redelivered:  deliveries.WithLabelValues("redelivered"),
		poison:       deliveries.WithLabelValues("poison"),
	}
	for _, d := range []Decision{Unknown, Commit, Rollback} {
		m.halves[d] = halves.WithLabelValues(d.String())
		m.checkBacks[d] = checkBacks.WithLabelValues(d.String())
		m.stranded[d] = stranded.WithLabelValues(d.String())
	}
	return m
}

// halfSent counts a half message that is stored, or failed.
func (m *metrics) halfSent(since time.Time, err error) {
	m.halfWait.Observe(time.Since(since).Seconds())
	if err != nil {
		m.halfFailed.Inc()
	}
}
