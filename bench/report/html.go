package report

import (
	_ "embed"
	"fmt"
	"html/template"
	"math"
	"os"
	"slices"

	"github.com/go-echarts/go-echarts/v2/charts"
	"github.com/go-echarts/go-echarts/v2/opts"

	"flashgate/bench/usage"
)

//go:embed page.html
var pageText string

var pageTemplate = template.Must(template.New("page").Parse(pageText))

// EChartsURL is where a page gets the script that draws its charts; its tables need none.
const EChartsURL = "https://go-echarts.github.io/go-echarts-assets/assets/echarts.min.js"

// The size of a chart.
const (
	chartWidth  = "1080px"
	chartHeight = "380px"
)

// page is what page.html shows.
type page struct {
	Title    string
	Began    string
	Machine  machine
	Settings []setting
	ECharts  string
	Ratios   []row
	Sections []section
}

// section is one scenario.
type section struct {
	Name   string
	Rows   []row
	Charts []chart
}

type row struct{ Name, Value, Unit, Spread, Verdict string }

type chart struct{ Element, Script template.HTML }

// WriteHTML writes the report as a page with tables and charts; echarts is the URL of the
// script that draws them, or the path of a copy.
func (r *Report) WriteHTML(file, echarts string) error {
	p := page{
		Title: "flashgate: " + r.Scenario, Began: r.Began.Format("2006-01-02 15:04 UTC"),
		Machine: r.Machine, Settings: r.Settings, ECharts: echarts,
	}
	for _, m := range (&Report{Figures: r.Figures}).Sheet() {
		p.Ratios = append(p.Ratios, row{m.Name, decimals(m.Median()), m.Unit, m.spread(), m.Target.Verdict(m.Median())})
	}
	runs := r.Runs
	if len(runs) == 0 {
		runs = []*Report{r}
		p.Ratios = nil
	}
	all := section{Name: "All scenarios, one against the other", Charts: []chart{latencies("Latency", firstCurves(runs))}}
	p.Sections = append(p.Sections, all)
	for _, group := range byScenario(runs) {
		p.Sections = append(p.Sections, newSection(group))
	}
	out, err := os.Create(file)
	if err != nil {
		return err
	}
	if err := pageTemplate.Execute(out, p); err != nil {
		_ = out.Close() // the first error is the one to tell
		return err
	}
	return out.Close()
}

// byScenario groups runs by scenario, in order of the first of each.
func byScenario(runs []*Report) [][]*Report {
	var groups [][]*Report
	for _, run := range runs {
		i := slices.IndexFunc(groups, func(g []*Report) bool { return g[0].Scenario == run.Scenario })
		if i < 0 {
			groups = append(groups, []*Report{run})
		} else {
			groups[i] = append(groups[i], run)
		}
	}
	return groups
}

// firstCurves is the first curve of each scenario, under its name.
func firstCurves(runs []*Report) []Curve {
	var curves []Curve
	for _, group := range byScenario(runs) {
		if c := group[0].Curves; len(c) > 0 {
			curves = append(curves, Curve{Name: group[0].Scenario + ", " + c[0].Name, Points: c[0].Points})
		}
	}
	return curves
}

// newSection shows the medians of the runs of one scenario, and the charts of the last,
// which had everything warm.
func newSection(runs []*Report) section {
	last := runs[len(runs)-1]
	s := section{Name: last.Scenario}
	for _, m := range (&Report{Figures: nil, Runs: runs}).Sheet() {
		s.Rows = append(s.Rows, row{m.Name[len(last.Scenario)+len(" · "):], decimals(m.Median()), m.Unit, m.spread(), ""})
	}
	if len(last.Curves) > 0 {
		s.Charts = append(s.Charts, latencies(last.Scenario+": latency", last.Curves))
	}
	if len(last.Rates) > 0 {
		s.Charts = append(s.Charts, rates(last.Scenario+": answers a second", last.Rates))
	}
	if len(last.Usage) > 0 {
		resident := slices.DeleteFunc(slices.Clone(last.Usage), func(u usage.Usage) bool { return u.PeakBytes == 0 }) // what is stolen is not
		s.Charts = append(s.Charts,
			processes(last.Scenario+": processors by process", "cores", true, last.Usage, func(s usage.Sample) float64 { return s.Cores }),
			processes(last.Scenario+": memory by process", "MiB", false, resident, func(s usage.Sample) float64 { return float64(s.Bytes) / (1 << 20) }))
	}
	return s
}

// colors are as many as a run has processes, and a report has scenarios.
var colors = opts.Colors{
	"#5470c6", "#91cc75", "#fac858", "#ee6666", "#73c0de", "#3ba272", "#fc8452", "#9a60b4", "#ea7ccc",
	"#8d6e63", "#455a64", "#00897b", "#c0ca33", "#d81b60",
}

// line is an empty chart.
func line(title, x, y, axis string) *charts.Line {
	c := charts.NewLine()
	c.SetGlobalOptions(
		charts.WithInitializationOpts(opts.Initialization{Width: chartWidth, Height: chartHeight}),
		charts.WithTitleOpts(opts.Title{Title: title}),
		charts.WithTooltipOpts(opts.Tooltip{Show: opts.Bool(true), Trigger: "axis"}),
		charts.WithLegendOpts(opts.Legend{Show: opts.Bool(true), Bottom: "0"}),
		charts.WithXAxisOpts(opts.XAxis{Name: x, Type: "value", NameLocation: "middle", NameGap: 26}),
		charts.WithYAxisOpts(opts.YAxis{Name: y, Type: axis}),
		charts.WithGridOpts(opts.Grid{Top: "60", Bottom: "100", Left: "70", Right: "40"}),
		charts.WithColorsOpts(colors),
	)
	return c
}

func rendered(c *charts.Line) chart {
	snippet := c.RenderSnippet()
	//nolint:gosec // go-echarts made both out of numbers and of names that it quoted
	return chart{Element: template.HTML(snippet.Element), Script: template.HTML(snippet.Script)}
}

// latencies draws curves with a tail that is as wide as the rest: at 1, 2, 3 are 90, 99
// and 99.9 per cent.
func latencies(title string, curves []Curve) chart {
	c := line(title, "nines: 1 = P90, 2 = P99", "ms", "log")
	for _, curve := range curves {
		var data []opts.LineData
		for _, p := range curve.Points {
			const lastNine = 4 // where the slowest answer is drawn
			x := float64(lastNine)
			if p.Percentile < 100 {
				x = min(lastNine, math.Abs(math.Log10(1-p.Percentile/100)))
			}
			data = append(data, point(x, max(p.Millis, 0.001))) // a log axis has no zero
		}
		c.AddSeries(curve.Name, data, charts.WithLineChartOpts(opts.LineChart{ShowSymbol: opts.Bool(false)}))
	}
	return rendered(c)
}

func rates(title string, series []Series) chart {
	c := line(title, "s", "a second", "value")
	for _, s := range series {
		var data []opts.LineData
		for i, v := range s.Values {
			data = append(data, point(float64(i)*s.StepSeconds, v))
		}
		c.AddSeries(s.Name, data, charts.WithLineChartOpts(opts.LineChart{ShowSymbol: opts.Bool(false)}))
	}
	return rendered(c)
}

// processes draws one line a process; stacked, what they take together shows too.
func processes(title, unit string, stacked bool, used []usage.Usage, of func(usage.Sample) float64) chart {
	c := line(title, "s", unit, "value")
	// Of two axes with values, ECharts would stack along the first.
	c.XAxisList[0].Type = "category"
	var seconds []string
	for _, s := range used[0].Samples { // all were looked at in the same moments
		seconds = append(seconds, fmt.Sprintf("%.1f", s.Seconds))
	}
	c.SetXAxis(seconds)
	for _, u := range used {
		var data []opts.LineData
		for _, s := range u.Samples {
			data = append(data, opts.LineData{Value: rounded(of(s))})
		}
		o := opts.LineChart{ShowSymbol: opts.Bool(false)}
		series := []charts.SeriesOpts{}
		if stacked {
			o.Stack = "all"
			series = append(series, charts.WithAreaStyleOpts(opts.AreaStyle{Opacity: opts.Float(0.5)}))
		}
		c.AddSeries(u.Name, data, append(series, charts.WithLineChartOpts(o))...)
	}
	return rendered(c)
}

func point(x, y float64) opts.LineData {
	return opts.LineData{Value: []float64{rounded(x), rounded(y)}}
}

// rounded keeps a page from being mostly digits.
func rounded(v float64) float64 {
	const thousandths = 1000
	return math.Round(v*thousandths) / thousandths
}
