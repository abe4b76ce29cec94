package report

import (
	"encoding/json"
	"errors"
	"flashgate/bench/load"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// errBroken ends a run whose checks failed; the report says which.
var ErrBroken = errors.New("the run broke a rule: see BROKEN in its report")

// Report is what a run has shown. A run that broke a rule shows no figure: speed
// counts only where the answers were right.
type Report struct {
	Scenario string          `json:"scenario"`
	Sale     string          `json:"sale,omitempty"`
	Began    time.Time       `json:"began"`
	Machine  machine         `json:"machine"`
	Settings []setting       `json:"settings"`
	Answers  []load.Count    `json:"answers,omitempty"`
	Faults   []string        `json:"faults,omitempty"`   // transport errors, the first few
	Breaches Breaches        `json:"breaches,omitempty"` // none = the run is good
	Failure  string          `json:"failure,omitempty"`  // what ended the run, or kept it from being good
	Audit    json.RawMessage `json:"audit,omitempty"`
	Figures  []figure        `json:"figures,omitempty"` // none, if the run is not good
	Runs     []*Report       `json:"runs,omitempty"`    // that the figures compare
}

type machine struct {
	CPUs int    `json:"cpus"`
	OS   string `json:"os"`
	Go   string `json:"go"`
}

type setting struct {
	Name  string `json:"name"`
	Value any    `json:"value"`
}

type figure struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
}

// New is an empty report of a run that begins now; saleID may be "".
func New(scenario, saleID string) *Report {
	return &Report{
		Scenario: scenario,
		Sale:     saleID,
		Began:    time.Now().UTC().Truncate(time.Millisecond),
		Machine:  machine{CPUs: runtime.NumCPU(), OS: runtime.GOOS + "/" + runtime.GOARCH, Go: runtime.Version()},
	}
}

// Set adds a setting, shown in the order they were set.
func (r *Report) Set(name string, value any) {
	r.Settings = append(r.Settings, setting{Name: name, Value: value})
}

// Answered adds what was answered.
func (r *Report) Answered(rec *load.Recording) {
	r.Answers = rec.Kinds.List()
	r.Faults = rec.Kinds.Faults
}

// Figure adds a figure.
func (r *Report) Figure(name string, value float64, unit string) {
	r.Figures = append(r.Figures, figure{Name: name, Value: value, Unit: unit})
}

// Value is a figure's value, or 0.
func (r *Report) Value(name string) float64 {
	for _, f := range r.Figures {
		if f.Name == name {
			return f.Value
		}
	}
	return 0
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
	for _, p := range percentiles {
		r.Figure(of+" "+p.name, float64(h.ValueAtPercentile(p.at))/1000, "ms")
	}
}

// Verdict is err, or errBroken if there is no err and the run broke a rule.
func (r *Report) Verdict(err error) error {
	if err == nil && len(r.Breaches) > 0 {
		return ErrBroken
	}
	return err
}

// Write writes the report as JSON.
func (r *Report) Write(file string) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(text, '\n'), 0o644)
}

// DropFigures takes the figures out of a report that is not good.
func (r *Report) DropFigures() {
	r.Figures = nil
	for _, run := range r.Runs {
		run.DropFigures()
	}
}

// Print writes the report as a table.
func (r *Report) Print(w io.Writer) error {
	for _, run := range r.Runs {
		if err := run.Print(w); err != nil {
			return err
		}
	}
	verdict := "good"
	if len(r.Breaches) > 0 || r.Failure != "" {
		verdict = "FAILED, so no figures"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "\n%s: %s\n", r.Scenario, verdict)
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	row := func(label, value string) { _, _ = fmt.Fprintf(t, "  %s\t%s\n", label, value) }
	number := func(label, value, unit string) { row(label, fmt.Sprintf("%8s  %s", value, unit)) }
	if r.Sale != "" {
		row("sale", r.Sale)
	}
	for _, s := range r.Settings {
		row(s.Name, fmt.Sprint(s.Value))
	}
	_, _ = fmt.Fprintln(t) // a new table: long settings are not to push the figures' units away
	for i, c := range r.Answers {
		label := ""
		if i == 0 {
			label = "got"
		}
		number(label, fmt.Sprint(c.Count), c.String())
	}
	for _, f := range r.Figures {
		number(f.Name, decimals(f.Value), f.Unit)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, c := range r.Answers {
		// What the documents don't promise of a healthy run is shown as it came.
		if c.Status >= 400 && c.Status != 409 {
			fmt.Fprintf(&b, "  first %s: %s\n", c.Kind, c.Sample)
		}
	}
	for _, f := range r.Faults {
		fmt.Fprintf(&b, "  fault: %s\n", f)
	}
	for _, br := range r.Breaches {
		fmt.Fprintf(&b, "  BROKEN: %s: %d\n", br.Rule, br.Count)
		for _, e := range br.Examples {
			fmt.Fprintf(&b, "    %s\n", e)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// decimals writes a figure with about three digits that mean something.
func decimals(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.2f", v)
	}
}
