package report

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// Print writes the report as a table.
func (r *Report) Print(w io.Writer) error {
	for _, run := range r.Runs {
		if err := run.Print(w); err != nil {
			return err
		}
	}
	verdict := "good"
	if !r.good() {
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
		number(f.Name, decimals(f.Value), strings.TrimSpace(f.Unit+"  "+f.Target.Verdict(f.Value)))
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
