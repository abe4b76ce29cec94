package report

import (
	"maps"
	"slices"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"flashgate/bench/load"
)

// Curve is a distribution of latencies.
type Curve struct {
	Name   string  `json:"name"`
	Points []Point `json:"points"`
}

// Point says that Percentile per cent of the answers took no longer than Millis.
type Point struct {
	Percentile float64 `json:"percentile"`
	Millis     float64 `json:"millis"`
}

// curvePercentiles halve what is left again and again: the tail is where a sale hurts.
var curvePercentiles = []float64{0, 25, 50, 75, 87.5, 93.75, 96.875, 98.4375, 99, 99.5, 99.75, 99.9, 99.95, 99.99, 100}

// Series is a number over time.
type Series struct {
	Name        string    `json:"name"`
	StepSeconds float64   `json:"step_seconds"`
	Values      []float64 `json:"values"` // a second, in each step
}

const (
	rateSteps     = 60 // in which a run is shown, about
	rateLeastStep = 50 * time.Millisecond
)

// Throughput adds the answers a second of each kind over the time of a load.
func (r *Report) Throughput(rec *load.Recording) {
	step := max(rateLeastStep, (rec.Took / rateSteps).Round(rateLeastStep))
	steps := int(rec.Took/step) + 1
	byKind := map[uint8][]float64{}
	for i := range rec.Answers {
		a := &rec.Answers[i]
		if a.Status == 0 {
			continue
		}
		values := byKind[a.Kind]
		if values == nil {
			values = make([]float64, steps)
			byKind[a.Kind] = values
		}
		values[min(int(time.Duration(a.DoneNanos)/step), steps-1)] += 1 / step.Seconds()
	}
	for _, k := range slices.Sorted(maps.Keys(byKind)) {
		r.Rates = append(r.Rates, Series{Name: rec.Kinds.At(k).String(), StepSeconds: step.Seconds(), Values: byKind[k]})
	}
}

// percentiles are those whose latency is shown; 100 is the slowest answer.
var percentiles = []struct {
	name string
	at   float64
}{{"P50", 50}, {"P90", 90}, {"P99", 99}, {"P99.9", 99.9}, {"max", 100}}

const (
	histogramMaxMicros = 600_000_000 // longer than any time-out of an answer
	histogramDigits    = 3
)

// Latency adds the percentiles of the chosen answers, in milliseconds.
func (r *Report) Latency(of string, answers []load.Answer, chosen func(*load.Answer) bool) {
	h := hdrhistogram.New(1, histogramMaxMicros, histogramDigits)
	for i := range answers {
		if a := &answers[i]; a.Status != 0 && chosen(a) {
			if h.RecordValue(min(a.TookNanos/1000, histogramMaxMicros)) != nil {
				panic("BUG: a latency outside of the histogram")
			}
		}
	}
	if h.TotalCount() == 0 {
		return
	}
	curve := Curve{Name: of}
	for _, at := range curvePercentiles {
		curve.Points = append(curve.Points, Point{Percentile: at, Millis: float64(h.ValueAtPercentile(at)) / 1000})
	}
	r.Curves = append(r.Curves, curve)
	for _, p := range percentiles {
		r.Figure(of+" "+p.name, float64(h.ValueAtPercentile(p.at))/1000, "ms")
	}
}
