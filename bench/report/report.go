package report

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"

	"flashgate/bench/load"
	"flashgate/bench/usage"
)

// ErrBroken ends a run whose checks failed; the report says which.
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
	Figures  []Figure        `json:"figures,omitempty"` // none, if the run is not good
	Curves   []Curve         `json:"curves,omitempty"`  // latencies
	Rates    []Series        `json:"rates,omitempty"`   // answers over time
	Usage    []usage.Usage   `json:"usage,omitempty"`   // of each process, while the load ran and drained
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

// Figure is a number that a good run shows.
type Figure struct {
	Name   string  `json:"name"`
	Value  float64 `json:"value"`
	Unit   string  `json:"unit"`
	Target *Target `json:"target,omitempty"` // what it is to reach; nil = nothing said
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
	r.Figures = append(r.Figures, Figure{Name: name, Value: value, Unit: unit})
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

// DropFigures takes the figures out of a report that is not good, and of those of its
// runs that are not.
func (r *Report) DropFigures() {
	r.Figures, r.Curves, r.Rates, r.Usage = nil, nil, nil, nil
	for _, run := range r.Runs {
		if !run.good() {
			run.DropFigures()
		}
	}
}

// Read reads a report that Write wrote.
func Read(file string) (*Report, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	r := &Report{}
	if err := json.Unmarshal(text, r); err != nil {
		return nil, fmt.Errorf("%s is no report: %w", file, err)
	}
	return r, nil
}

// Took adds what the processes took. The units are what a purchase costs each of them.
func (r *Report) Took(used []usage.Usage, purchases int) {
	r.Usage = used
	for _, u := range used {
		r.Figure("CPU "+u.Name, u.CPUSeconds*1e6/float64(max(1, purchases)), "µs a request")
	}
}

// good tells whether a report may show figures.
func (r *Report) good() bool { return len(r.Breaches) == 0 && r.Failure == "" }
