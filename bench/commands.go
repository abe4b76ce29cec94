package main

import (
	"errors"
	"os"

	"github.com/spf13/cobra"

	"flashgate/bench/load"
	"flashgate/bench/report"
	"flashgate/bench/scenario"
	"flashgate/bench/system"
)

func newCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "bench",
		Short: "Load flashgate, and check every answer",
		Long: `Load flashgate from outside, and check every answer.

Each scenario makes a sale of its own and shoppers of its own, sends a bounded
number of purchases through a bounded number of connections, waits until the last
order is in the ledger, looks up every order as its owner, and runs
"flashgate audit". If an answer, an order or the audit breaks a rule, it says which
and shows no figure.

What it runs against:
  --start embedded   starts one process with embedded engines, data in a temp folder
  --start daemons    starts gateways, workers and a reconciler on the engines of
                     --config (make up), and migrates the ledger first
  --start auto       daemons, if the engines of --config answer, or else embedded
  --start none       uses what is running: give --gateway URL, once a gateway. Its
                     limits must be far above one machine's load (see --limits)

Secrets are taken from the environment, or else from the env file that the config
names, as flashgate itself does.`,
		Example: `  go run ./bench all --start auto
  go run ./bench storm --start embedded
  go run ./bench storm --start daemons --config configs/local.yaml --mysql
  go run ./bench accept --gateway http://127.0.0.1:8080 --shoppers 50000
  go run ./bench compare bench/out/before.json bench/out/report.json`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddGroup(
		&cobra.Group{ID: "whole", Title: "The whole:"},
		&cobra.Group{ID: "scenario", Title: "Scenarios:"},
		&cobra.Group{ID: "repair", Title: "Beside repairs:"},
		&cobra.Group{ID: "tool", Title: "By other tools:"},
	)
	group := func(id string, commands ...*cobra.Command) {
		for _, c := range commands {
			c.GroupID = id
		}
		root.AddCommand(commands...)
	}
	group("whole", allCommand(), compareCommand(), scaleCommand(), limitsCommand(), profileCommand())
	group("scenario", helloCommand(), stormCommand(), acceptCommand(), duplicatesCommand(), mixedCommand(),
		hotCommand(), manyCommand(), compareBatchCommand())
	group("repair", reconcileCommand(), lagCommand(), driftCommand(), rebuildCommand())
	group("tool", k6Command(), vegetaCommand(), targetsCommand())
	root.AddCommand(helloServerCommand())
	return root
}

func stormCommand() *cobra.Command {
	o, st := &system.Options{}, &scenario.Sends{Name: "storm"}
	cmd := &cobra.Command{
		Use:   "storm",
		Short: "Many shoppers at once for few units, each sending twice with one key",
		Long: `Many shoppers at once for few units, each sending --sends times with one
Idempotency-Key. Of every other shopper all sends go out together, through different
gateways if there are several; the rest send again when the sale is sold out.

It must come out that there are exactly as many orders as units, that all sends of a
winner get the same order and all but one are marked as replayed, and that everyone
else is told 409 SOLD_OUT each time.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if st.Total == 0 {
				st.Total = scenario.NewStorm(st.Shoppers).Total
			}
			if st.Shoppers <= st.Total {
				return errors.New("a storm needs more shoppers than units")
			}
			if err := st.Check(); err != nil {
				return err
			}
			return runScenario(o, cmd, st.Shoppers*st.Sends, st.Run)
		},
	}
	f := cmd.Flags()
	f.IntVar(&st.Shoppers, "shoppers", 20_000, "shoppers, each with a token of their own")
	f.IntVar(&st.Total, "total", 0, "units on sale; 0 = 1 % of the shoppers")
	f.IntVar(&st.Sends, "sends", 2, "of each shopper")
	rateFlag(&st.Rate, cmd)
	loadFlags(o, cmd)
	systemFlags(o, cmd, system.StartNone)
	return cmd
}

func duplicatesCommand() *cobra.Command {
	o, d := &system.Options{}, &scenario.Sends{Name: "duplicates"}
	cmd := &cobra.Command{
		Use:   "duplicates",
		Short: "Every shopper sends five times with one key, over two gateways, and gets one order",
		Long: `Every shopper sends --sends times with one Idempotency-Key, by turns through all
gateways, half of them all at once. There is a unit for each. It must come out that
each gets one order, the same each time, and that all answers but one are marked as
replayed.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			d.Total = d.Shoppers
			if err := d.Check(); err != nil {
				return err
			}
			return runScenario(o, cmd, d.Shoppers*d.Sends, d.Run)
		},
	}
	cmd.Flags().IntVar(&d.Shoppers, "shoppers", 10_000, "shoppers, each with a token of their own, and units on sale")
	cmd.Flags().IntVar(&d.Sends, "sends", 5, "of each shopper")
	rateFlag(&d.Rate, cmd)
	loadFlags(o, cmd)
	systemFlags(o, cmd, system.StartNone)
	return cmd
}

// acceptLike is a command of a run in which everyone buys.
func acceptLike(use, short, long string, sales int) *cobra.Command {
	o, ac := &system.Options{}, &scenario.Accept{Name: use}
	cmd := &cobra.Command{
		Use: use, Short: short, Long: long, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := ac.Check(); err != nil {
				return err
			}
			return runScenario(o, cmd, ac.Shoppers, ac.Run)
		},
	}
	acceptFlags(ac, cmd)
	cmd.Flags().IntVar(&ac.Sales, "sales", sales, "sales that the shoppers are spread over")
	loadFlags(o, cmd)
	systemFlags(o, cmd, system.StartNone)
	return cmd
}

func acceptCommand() *cobra.Command {
	return acceptLike("accept", "Everyone buys, and all orders reach the ledger",
		`Every shopper buys one unit of a sale that has one for each, until all have sent or
--duration is over. The figures: orders accepted a second (to the last 202), latency,
the time until the ledger has them all, and orders persisted a second over both.`, 1)
}

func hotCommand() *cobra.Command {
	return acceptLike("hot", "accept, of one sale: all of it on one master of Redis",
		`accept, with one sale: the counterpart of many.`, 1)
}

func manyCommand() *cobra.Command {
	return acceptLike("many", "accept, spread over 200 sales",
		`accept, with the shoppers spread over --sales sales, and so over all masters of Redis,
in batches that are the smaller.`, 200)
}

func mixedCommand() *cobra.Command {
	o, m := &system.Options{}, &scenario.Mixed{Wave: scenario.NewWave(0)}
	cmd := &cobra.Command{
		Use:   "mixed",
		Short: "The arrival wave of a real sale: quiet, spike at the opening second, decay; 90 % page reads",
		Long: `Shoppers arrive in a wave (an open loop): few while the sale is awaited, --peak in
the second that it opens, then half as many every --half. Most look at the page; the
others buy, and are told 409 NOT_STARTED if they are too early, whereupon they come
back. Latency counts from when a request was due.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !cmd.Flags().Changed("quiet") {
				m.Quiet = scenario.NewWave(m.Peak).Quiet
			}
			if err := m.Check(); err != nil {
				return err
			}
			return runScenario(o, cmd, m.Requests(), m.Run)
		},
	}
	f := cmd.Flags()
	f.Float64Var(&m.Peak, "peak", 5_000, "arrivals in the opening second")
	f.Float64Var(&m.Quiet, "quiet", 0, "arrivals a second before, and the least after (default: a twentieth of --peak)")
	f.DurationVar(&m.Lead, "lead", m.Lead, "from the start of the load to the opening")
	f.DurationVar(&m.Half, "half", m.Half, "in which the arrivals halve, after the opening second")
	f.DurationVar(&m.Tail, "tail", m.Tail, "from the end of the opening second to the end")
	f.IntVar(&m.PageReads, "page-reads", 90, "of a hundred arrivals")
	f.IntVar(&m.Units, "units", 20, "on sale, of a hundred who buy")
	loadFlags(o, cmd)
	systemFlags(o, cmd, system.StartNone)
	return cmd
}

func helloCommand() *cobra.Command {
	o, h := &system.Options{}, &scenario.Hello{}
	cmd := &cobra.Command{
		Use:   "hello",
		Short: "The ceiling: a bare fasthttp server on this machine, same driver",
		Long: `Sends the requests of a purchase to a bare fasthttp server in a process of its own. No
figure of a gateway can exceed this one on the same machine with this driver.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.Check(h.Requests); err != nil {
				return err
			}
			rep, err := h.Run(cmd.Context(), o, load.NewProgress(os.Stderr))
			return finish(o, cmd.OutOrStdout(), rep, err)
		},
	}
	cmd.Flags().IntVar(&h.Requests, "requests", 500_000, "requests to send")
	rateFlag(&h.Rate, cmd)
	loadFlags(o, cmd)
	return cmd
}

func helloServerCommand() *cobra.Command {
	return &cobra.Command{
		Use: scenario.HelloServerCommand + " ADDRESS", Short: "Serve hello", Args: cobra.ExactArgs(1), Hidden: true,
		RunE: func(cmd *cobra.Command, args []string) error { return scenario.ServeHello(cmd.Context(), args[0]) },
	}
}

func compareBatchCommand() *cobra.Command {
	o, ac := &system.Options{}, &scenario.Accept{Name: "accept", Sales: 1}
	cmd := &cobra.Command{
		Use:   "compare-batch",
		Short: "accept with the config's batches, and with one half message an order",
		Long: `Runs accept twice with one build: with the config as given, and with a copy of it
whose batch.max is 1, so that every order is a half message of its own. Both runs
start their own processes, and both are audited. Prints both figures and the ratio.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.Start == system.StartNone {
				return errors.New("compare-batch starts the processes itself: --start daemons or embedded")
			}
			return measure(o, cmd, ac.Shoppers, func(p *load.Progress) (*report.Report, error) {
				return scenario.CompareBatch(cmd.Context(), ac, o, p)
			})
		},
	}
	acceptFlags(ac, cmd)
	loadFlags(o, cmd)
	systemFlags(o, cmd, system.StartDaemons)
	return cmd
}

func acceptFlags(ac *scenario.Accept, cmd *cobra.Command) {
	f := cmd.Flags()
	f.IntVar(&ac.Shoppers, "shoppers", 20_000, "shoppers, each with a token of their own, and units on sale")
	f.DurationVar(&ac.Duration, "duration", 0, "end after this long if not all have sent; 0 = when all have")
	f.IntVar(&ac.Warmup, "warmup", 1_000, "purchases in a sale of their own before the clock starts; 0 = none")
	rateFlag(&ac.Rate, cmd)
}

func rateFlag(rate *float64, cmd *cobra.Command) {
	cmd.Flags().Float64Var(rate, "rate", 0, "requests a second, whoever waits (open loop); 0 = each connection sends when its last request was answered (closed loop)")
}
