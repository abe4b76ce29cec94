package report

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
)

// Measured is a figure of several runs of one scenario.
type Measured struct {
	Name   string // scenario · figure, or the figure alone
	Unit   string
	Values []float64
	Target *Target
}

// Median is the middle value; of an even number, the mean of the middle two.
func (m *Measured) Median() float64 {
	sorted := slices.Sorted(slices.Values(m.Values))
	n := len(sorted)
	if n%2 == 1 {
		return sorted[n/2]
	}
	return (sorted[n/2-1] + sorted[n/2]) / 2
}

// Sheet is every figure of a report and of its runs, in order, with the values of the
// runs of one scenario put together.
func (r *Report) Sheet() []Measured {
	var sheet []Measured
	at := map[string]int{}
	add := func(name string, f *Figure) {
		i, known := at[name]
		if !known {
			i = len(sheet)
			at[name] = i
			sheet = append(sheet, Measured{Name: name, Unit: f.Unit, Target: f.Target})
		}
		sheet[i].Values = append(sheet[i].Values, f.Value)
	}
	for _, runs := range byScenario(r.Runs) {
		for _, run := range runs {
			for i := range run.Figures {
				add(run.Scenario+" · "+run.Figures[i].Name, &run.Figures[i])
			}
		}
	}
	for i := range r.Figures {
		add(r.Figures[i].Name, &r.Figures[i])
	}
	return sheet
}

// Of is the figure of a name, which Sheet gave; ok is false if there is none.
func Of(sheet []Measured, name string) (m Measured, ok bool) {
	i := slices.IndexFunc(sheet, func(m Measured) bool { return m.Name == name })
	if i < 0 {
		return Measured{}, false
	}
	return sheet[i], true
}

// PrintSheet writes the medians of a report's figures, with the least and the most
// where there were several runs. A report that is not good is printed as such.
func (r *Report) PrintSheet(w io.Writer) error {
	for _, run := range r.Runs {
		if !run.good() {
			if err := run.Print(w); err != nil {
				return err
			}
		}
	}
	verdict := "good"
	if !r.good() {
		verdict = "FAILED, so no figures: " + r.Failure
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintf(t, "\n%s: %s\n", r.Scenario, verdict)
	for _, s := range r.Settings {
		_, _ = fmt.Fprintf(t, "  %s: %v\n", s.Name, s.Value)
	}
	scenario := ""
	for _, m := range r.Sheet() {
		of, name, cut := strings.Cut(m.Name, " · ")
		if !cut {
			of, name = "of all", m.Name
		}
		if of != scenario {
			_, _ = fmt.Fprintf(t, "\n%s\n", of)
			scenario = of
		}
		_, _ = fmt.Fprintf(t, "  %s\t%8s\t%s\t%s\t%s\n", name, decimals(m.Median()), m.Unit, m.spread(), m.Target.Verdict(m.Median()))
	}
	return t.Flush()
}

// Repeats is the mean of each of n repeats, whose values come in their order; the median
// for each, if the scenario was not part of the repeats.
func (m *Measured) Repeats(n int) []float64 {
	means := make([]float64, n)
	each := len(m.Values) / n
	for i := range means {
		if each*n != len(m.Values) {
			means[i] = m.Median()
			continue
		}
		for _, v := range m.Values[i*each : (i+1)*each] {
			means[i] += v / float64(each)
		}
	}
	return means
}

// spread shows how far the runs lie apart; of one run, nothing.
func (m *Measured) spread() string {
	if len(m.Values) < 2 {
		return ""
	}
	return fmt.Sprintf("(%s–%s in %d runs)", decimals(slices.Min(m.Values)), decimals(slices.Max(m.Values)), len(m.Values))
}

// Compare writes the medians of two reports side by side. Where the runs of both
// overlap, the difference may be chance, and it says so.
func Compare(w io.Writer, nameA, nameB string, a, b *Report) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintf(t, "A = %s, %s\nB = %s, %s\n\nmedian of\tA\tB\tB ÷ A\t\t\n",
		nameA, a.Began.Format("2006-01-02 15:04"), nameB, b.Began.Format("2006-01-02 15:04"))
	sheetA, sheetB := a.Sheet(), b.Sheet()
	both := 0
	for _, m := range sheetA {
		n, ok := Of(sheetB, m.Name)
		if !ok {
			continue
		}
		both++
		ratio := "–"
		if m.Median() != 0 {
			ratio = fmt.Sprintf("%.3f", n.Median()/m.Median())
		}
		_, _ = fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", m.Name, decimals(m.Median()), decimals(n.Median()), ratio, m.Unit, apart(&m, &n))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if both == 0 {
		return fmt.Errorf("%s and %s have no figure in common", nameA, nameB)
	}
	return nil
}

// apart says whether the runs of A and B are told apart by a figure.
func apart(a, b *Measured) string {
	switch {
	case len(a.Values) < 2 || len(b.Values) < 2:
		return ""
	case slices.Max(a.Values) < slices.Min(b.Values) || slices.Max(b.Values) < slices.Min(a.Values):
		return "every run"
	default:
		return "the runs overlap"
	}
}
