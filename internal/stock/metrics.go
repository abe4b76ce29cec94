package stock

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics of one process's calls to Redis. Every series is made once.
type metrics struct {
	seconds  map[*script]prometheus.Observer
	failures map[*script]prometheus.Counter
}

func newMetrics(s *Store, reg prometheus.Registerer) (*metrics, error) {
	seconds := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "flashgate_redis_script_duration_seconds",
		Help:    "Time of one script call, queueing and the wait for replicas included, failures too.",
		Buckets: prometheus.ExponentialBuckets(0.00025, 2, 14), // 0.25 ms to 2 s
	}, []string{"script"})
	failures := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "flashgate_redis_script_failures_total",
		Help: "Script calls that failed: refused, timed out, not replicated. A sale that is not loaded is no failure.",
	}, []string{"script"})
	m := &metrics{seconds: map[*script]prometheus.Observer{}, failures: map[*script]prometheus.Counter{}}
	for name, sc := range scripts {
		m.seconds[sc], m.failures[sc] = seconds.WithLabelValues(name), failures.WithLabelValues(name)
	}
	if reg == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{
		seconds, failures,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "flashgate_redis_wait_connections_in_use",
			Help: "Calls that wait for replicas now, each on a connection to itself.",
		}, func() float64 { return float64(len(s.waiting)) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "flashgate_redis_wait_connections_max",
			Help: "How many may wait at one time (redis.wait_connections).",
		}, func() float64 { return float64(cap(s.waiting)) }),
	} {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// called counts one call of a script.
func (m *metrics) called(sc *script, began time.Time, err error) {
	m.seconds[sc].Observe(time.Since(began).Seconds())
	if err != nil {
		m.failures[sc].Inc()
	}
}
