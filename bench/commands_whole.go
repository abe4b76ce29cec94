package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/pprof/profile"
	"github.com/spf13/cobra"

	"flashgate/bench/load"
	"flashgate/bench/report"
	"flashgate/bench/scenario"
	"flashgate/bench/system"
)

// outFolder is where reports go.
const outFolder = "bench/out"

// output is where a report of the whole goes, next to the table on the terminal.
type output struct{ folder, name, echarts string }

func (out *output) flags(cmd *cobra.Command, name string) {
	out.name = name
	cmd.Flags().StringVar(&out.folder, "out", outFolder, "folder for "+name+".json and "+name+".html")
	cmd.Flags().StringVar(&out.echarts, "echarts", report.EChartsURL, "URL, or path of a copy, of the script that draws the page's charts")
}

// finish shows the medians, and writes both files. Of a run that failed, the runs before
// it are shown; the figures that all would have made are not.
func (out *output) finish(w io.Writer, rep *report.Report, err error) error {
	if rep == nil {
		return err
	}
	if err != nil {
		rep.Failure = err.Error()
		rep.DropFigures()
	}
	if failed := os.MkdirAll(out.folder, 0o755); failed != nil {
		return errors.Join(err, failed)
	}
	json, html := filepath.Join(out.folder, out.name+".json"), filepath.Join(out.folder, out.name+".html")
	err = errors.Join(err, rep.PrintSheet(w), rep.Write(json), rep.WriteHTML(html, out.echarts))
	_, _ = fmt.Fprintf(w, "\n%s\n%s\n", html, json)
	return err
}

func allCommand() *cobra.Command {
	o, su, out := &system.Options{}, &scenario.Suite{}, &output{}
	cmd := &cobra.Command{
		Use:   "all",
		Short: "Every scenario and every baseline in one run, and the ratios between them",
		Long: `Warms the engines up: a broker that was just started is still being compiled. Then
runs hello, accept, storm, duplicates, hello again, and accept with one half message an
order, --repeat times over; then hot, many and mixed; then the bare engines:
EVALSHA through rueidis at the same concurrency, bulk inserts at a worker's batch, and
half messages alone. Shows medians, and those of each repeat's ratios, and writes them,
with curves, answers over time, processors and memory by process, to
bench/out/report.html and .json.

At --size 1 and five repeats it takes some six minutes on two cores. The targets beside
the ratios are those of real engines.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := su.Check(); err != nil {
				return err
			}
			return prepared(o, cmd, su.Shoppers(), func(p *load.Progress) error {
				if o.Start == system.StartNone {
					return errors.New("all starts the processes itself: --start daemons, embedded or auto")
				}
				p.Step("on %s engines", map[bool]string{true: "embedded", false: "real"}[o.Start == system.StartEmbedded])
				rep, err := su.Run(cmd.Context(), o, p)
				return out.finish(cmd.OutOrStdout(), rep, err)
			})
		},
	}
	cmd.Flags().IntVar(&su.Repeat, "repeat", 5, "how often the runs that the ratios are made of are repeated")
	cmd.Flags().Float64Var(&su.Size, "size", 1, "factor of all counts of shoppers and requests")
	out.flags(cmd, "report")
	loadFlags(o, cmd)
	systemFlags(o, cmd, system.StartAuto)
	return cmd
}

func compareCommand() *cobra.Command {
	o, su, folder := &system.Options{}, &scenario.Suite{}, ""
	cmd := &cobra.Command{
		Use:   "compare A B",
		Short: "Two reports, or two builds, side by side: medians, and whether the runs overlap",
		Long: `Of two reports (.json) of earlier runs, shows the medians of what both have. Of two
flashgate binaries, runs accept and storm --repeat times by turns on each, which tells a
change from the machine's moods, and shows the same. The runs of both then lie in
bench/out/a.json and b.json.`,
		Example: `  go run ./bench compare bench/out/before.json bench/out/report.json
  go run ./bench compare /tmp/flashgate-before ./flashgate --repeat 5 --start daemons`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			names := [2]string{args[0], args[1]}
			var reps [2]*report.Report
			if strings.HasSuffix(names[0], ".json") && strings.HasSuffix(names[1], ".json") {
				for i, name := range names {
					var err error
					if reps[i], err = report.Read(name); err != nil {
						return err
					}
				}
				return report.Compare(cmd.OutOrStdout(), names[0], names[1], reps[0], reps[1])
			}
			for i, name := range names {
				path, err := filepath.Abs(name)
				if err != nil {
					return err
				}
				if _, err := os.Stat(path); err != nil {
					return err
				}
				names[i] = path
			}
			if err := su.Check(); err != nil {
				return err
			}
			o.Flashgate = names[0]
			return prepared(o, cmd, su.Shoppers(), func(p *load.Progress) error {
				reps, err := su.Builds(cmd.Context(), o, p, names)
				if err != nil {
					return err
				}
				if err := os.MkdirAll(folder, 0o755); err != nil {
					return err
				}
				err = errors.Join(reps[0].Write(filepath.Join(folder, "a.json")), reps[1].Write(filepath.Join(folder, "b.json")))
				return errors.Join(err, report.Compare(cmd.OutOrStdout(), names[0], names[1], reps[0], reps[1]))
			})
		},
	}
	cmd.Flags().IntVar(&su.Repeat, "repeat", 3, "of two builds: how often each is run")
	cmd.Flags().Float64Var(&su.Size, "size", 1, "of two builds: factor of all counts of shoppers and requests")
	cmd.Flags().StringVar(&folder, "out", outFolder, "of two builds: folder for a.json and b.json")
	loadFlags(o, cmd)
	systemFlags(o, cmd, system.StartAuto)
	return cmd
}

func scaleCommand() *cobra.Command {
	o, sc, out := &system.Options{}, &scenario.Scale{}, &output{}
	cmd := &cobra.Command{
		Use:   "scale",
		Short: "How it scales: one thing changed at a time",
		Long: `Changes one thing at a time and sells --orders at each point: gateways, workers, sales
(over the masters of Redis), connections, and units on sale; then sells to --buyers in
one sale, slice by slice: the processor time of a purchase must not grow with what was
sold before. An empty list leaves a thing out. No point begins after --limit.`,
		Example: `  go run ./bench scale --start daemons --gateway-counts 1,2,4 --worker-counts "" --sales "" --connection-counts "" --stock "" --buyers 0`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := sc.Check(); err != nil {
				return err
			}
			return prepared(o, cmd, sc.Shoppers(), func(p *load.Progress) error {
				if o.Start == system.StartNone {
					return errors.New("scale starts the processes itself: --start daemons, embedded or auto")
				}
				rep, err := sc.Run(cmd.Context(), o, p)
				return out.finish(cmd.OutOrStdout(), rep, err)
			})
		},
	}
	f := cmd.Flags()
	counts(f, &sc.Gateways, "gateway-counts", []int{1, 2, 4}, "gateways; real engines only")
	counts(f, &sc.Workers, "worker-counts", []int{1, 2, 4}, "workers; real engines only")
	counts(f, &sc.Sales, "sales", []int{1, 4, 16}, "sales that the shoppers are spread over")
	counts(f, &sc.Connections, "connection-counts", []int{256, 1024, 4096}, "connections")
	counts(f, &sc.Stock, "stock", []int{100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000}, "units on sale")
	f.IntVar(&sc.Orders, "orders", 20_000, "shoppers of each point")
	f.IntVar(&sc.Buyers, "buyers", 1_000_000, "of the one large sale; 0 = none")
	f.IntVar(&sc.Slices, "slices", 10, "of the one large sale")
	f.DurationVar(&sc.Limit, "limit", 10*time.Minute, "no point begins later than this")
	out.flags(cmd, "scale")
	loadFlags(o, cmd)
	systemFlags(o, cmd, system.StartAuto)
	return cmd
}

func profileCommand() *cobra.Command {
	o, pr, file := &system.Options{}, &scenario.Profile{}, ""
	cmd := &cobra.Command{
		Use:   "profile",
		Short: "Where the daemons' processor goes, for the compiler",
		Long: `Runs accept and storm, takes the processor profile of every daemon beside them, and
writes them all as one to --out, with which flashgate is built for production
(go build -pgo=...) and by this driver. Worth doing again when the way of a purchase
has changed.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return prepared(o, cmd, pr.Shoppers, func(p *load.Progress) (err error) {
				if o.Start == system.StartNone {
					return errors.New("profile starts the processes itself: --start daemons, embedded or auto")
				}
				taken, rep, err := pr.Run(cmd.Context(), o, p)
				if err != nil {
					return finish(o, cmd.OutOrStdout(), rep, err)
				}
				f, err := os.Create(file)
				if err != nil {
					return err
				}
				defer func() { err = errors.Join(err, f.Close()) }()
				if err := taken.Write(f); err != nil {
					return err
				}
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: %s of processor time\n", file, time.Duration(spent(taken)).Round(time.Second))
				return err
			})
		},
	}
	cmd.Flags().IntVar(&pr.Shoppers, "shoppers", 400_000, "of the storm; half as many all buy")
	cmd.Flags().DurationVar(&pr.Length, "length", 15*time.Second, "of each profile; a run that is over sooner is waited out")
	cmd.Flags().StringVar(&file, "out", system.ProfileFile, "the file to write")
	loadFlags(o, cmd)
	systemFlags(o, cmd, system.StartAuto)
	return cmd
}

// spent is the processor time in a profile, in nanoseconds.
func spent(p *profile.Profile) (nanos int64) {
	for _, s := range p.Sample {
		nanos += s.Value[len(s.Value)-1]
	}
	return nanos
}

func limitsCommand() *cobra.Command {
	o, li, out := &system.Options{}, &scenario.Limits{}, &output{}
	cmd := &cobra.Command{
		Use:   "limits",
		Short: "What holding requests against limits leaves of a storm's throughput",
		Long: `Runs storms by turns on the same processes, with every limit far out of reach and with
every limit on, near and not reached; the limits are turned while the processes run. The
near ones are 2.5 times the rate of the fastest storm so far: buckets of the gateway, the
address, the user and the sale, Sentinel's flow, hotspot and system rules, a limit of all
gateways together, a trusted proxy, and a thousand blocks of each kind. Then everyone
meets the panic profile at once. Shows medians, their ratio, what was shed, and how fast
those were answered who were let in.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return prepared(o, cmd, li.Shoppers, func(p *load.Progress) error {
				if err := li.Check(o); err != nil {
					return err
				}
				rep, err := li.Run(cmd.Context(), o, p)
				return out.finish(cmd.OutOrStdout(), rep, err)
			})
		},
	}
	cmd.Flags().IntVar(&li.Shoppers, "shoppers", 60_000, "of each storm, each with a token of their own")
	cmd.Flags().IntVar(&li.Repeat, "repeat", 5, "storms of each kind")
	cmd.Flags().StringVar(&li.Panic, "panic", "configs/limits.panic.yaml", "the limits of the rush in the end")
	out.flags(cmd, "limits")
	loadFlags(o, cmd)
	systemFlags(o, cmd, system.StartAuto)
	return cmd
}
