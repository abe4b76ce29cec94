package main

import (
	"errors"
	"flashgate/bench/load"
	"flashgate/bench/report"
	"flashgate/bench/scenario"
	"flashgate/bench/system"
	"os"
	"time"

	"github.com/spf13/cobra"
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
  --start none       uses what is running: give --gateway URL, once a gateway. Its
                     limits must be far above one machine's load (see --limits)

Tokens are signed here if FLASHGATE_JWT_SECRET is set, else made by
"flashgate token --users". With real engines, load their secrets first:
  make up && set -a && . .run/env && set +a`,
		Example: `  go run ./bench hello
  go run ./bench storm --start embedded
  go run ./bench storm --start daemons --config configs/local.yaml --mysql
  go run ./bench accept --gateway http://127.0.0.1:8080 --shoppers 50000
  go run ./bench compare-batch --json compare.json`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(stormCommand(), acceptCommand(), helloCommand(), compareCommand(), reconcileCommand(), lagCommand())
	return root
}

func stormCommand() *cobra.Command {
	o, st := &system.Options{}, &scenario.Storm{}
	cmd := &cobra.Command{
		Use:   "storm",
		Short: "Many shoppers at once for few units, each sending twice with one key",
		Long: `Many shoppers at once for few units, each sending twice with one Idempotency-Key.
Of every other shopper both sends go out together, through different gateways if
there are several; the rest send again when the sale is sold out.

It must come out that there are exactly as many orders as units, that both sends of
a winner get the same order and one of them is marked as replayed, and that everyone
else is told 409 SOLD_OUT twice.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runScenario(o, cmd, st.Shoppers, st.Run)
		},
	}
	cmd.Flags().IntVar(&st.Shoppers, "shoppers", 20_000, "shoppers, each with a token of their own")
	cmd.Flags().IntVar(&st.Total, "total", 1_000, "units on sale")
	loadFlags(o, cmd)
	systemFlags(o, cmd, system.StartNone)
	return cmd
}

func acceptCommand() *cobra.Command {
	o, ac := &system.Options{}, &scenario.Accept{}
	cmd := &cobra.Command{
		Use:   "accept",
		Short: "Everyone buys, and all orders reach the ledger",
		Long: `Every shopper buys one unit of a sale that has one for each, until all have sent or
--duration is over. The figures: orders accepted a second (to the last 202), latency,
the time until the ledger has them all, and orders persisted a second over both.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runScenario(o, cmd, ac.Shoppers, ac.Run)
		},
	}
	acceptFlags(ac, cmd)
	loadFlags(o, cmd)
	systemFlags(o, cmd, system.StartNone)
	return cmd
}

func helloCommand() *cobra.Command {
	o, h := &system.Options{}, &scenario.Hello{}
	cmd := &cobra.Command{
		Use:   "hello",
		Short: "The ceiling: a bare fasthttp server on this machine, same driver",
		Long: `Sends the requests of a purchase to a bare fasthttp server in this process. No
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
	loadFlags(o, cmd)
	return cmd
}

func compareCommand() *cobra.Command {
	o, ac := &system.Options{}, &scenario.Accept{}
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

func reconcileCommand() *cobra.Command {
	o, rl := &system.Options{}, &scenario.ReconcileLoad{}
	cmd := &cobra.Command{
		Use:   "reconcile",
		Short: "What a reconcile of a large sale costs, and its effect on the shoppers of that sale",
		Long: `Sells --orders of a sale, then goes on selling at --rate purchases a second, by turns
for --window without a reconcile and for as long as one "flashgate reconcile --once" of
that sale takes. No reconcile may find anything.

The figures: time, memory and processor time of a reconcile, the orders it compared,
and the latency of purchases without and with one, each from when it was due.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runScenario(o, cmd, rl.Shoppers(), rl.Run)
		},
	}
	f := cmd.Flags()
	f.IntVar(&rl.Orders, "orders", 100_000, "orders that the sale has when the first reconcile begins")
	f.Float64Var(&rl.Rate, "rate", 500, "purchases a second while it is measured")
	f.IntVar(&rl.Rounds, "rounds", 3, "reconciles, each beside a window without one")
	f.DurationVar(&rl.Window, "window", 15*time.Second, "how long to measure without a reconcile, each time")
	f.DurationVar(&rl.Longest, "longest", 2*time.Minute, "how long a reconcile may take")
	f.DurationVar(&rl.Watermark, "watermark", 5*time.Second, "of the reconciles: younger orders are not compared")
	loadFlags(o, cmd)
	systemFlags(o, cmd, system.StartDaemons)
	return cmd
}

func lagCommand() *cobra.Command {
	o, l := &system.Options{}, &scenario.Lag{}
	cmd := &cobra.Command{
		Use:   "lag",
		Short: "Reconciles one after the other, while the workers fall behind and catch up",
		Long: `Sells at --rate purchases a second for --duration. The workers stand still for the
first --lag of it, then catch up. All the while one "flashgate reconcile --once" follows
the other. Orders that a worker has not persisted yet are no difference: a reconcile may
persist them itself, but must find nothing.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.Start != system.StartDaemons {
				return errors.New("lag stops and continues workers: --start daemons")
			}
			return runScenario(o, cmd, l.Shoppers(), l.Run)
		},
	}
	f := cmd.Flags()
	f.Float64Var(&l.Rate, "rate", 500, "purchases a second")
	f.DurationVar(&l.Duration, "duration", 2*time.Minute, "how long to sell")
	f.DurationVar(&l.Lag, "lag", time.Minute, "how long the workers stand still")
	f.DurationVar(&l.Watermark, "watermark", 5*time.Second, "of the reconciles: younger orders are not compared")
	f.IntVar(&l.Runs, "runs", 10, "reconciles that there must be at least; more follow the end of the sale if need be")
	loadFlags(o, cmd)
	systemFlags(o, cmd, system.StartDaemons)
	return cmd
}

func acceptFlags(ac *scenario.Accept, cmd *cobra.Command) {
	cmd.Flags().IntVar(&ac.Shoppers, "shoppers", 20_000, "shoppers, each with a token of their own, and units on sale")
	cmd.Flags().DurationVar(&ac.Duration, "duration", 0, "end after this long if not all have sent; 0 = when all have")
	cmd.Flags().IntVar(&ac.Warmup, "warmup", 1_000, "purchases in a sale of their own before the clock starts; 0 = none")
}

func loadFlags(o *system.Options, cmd *cobra.Command) {
	f := cmd.Flags()
	f.IntVar(&o.Connections, "connections", 256, "connections in all; each sends when its last request was answered")
	f.DurationVar(&o.Timeout, "timeout", 10*time.Second, "for one answer; later is no answer")
	f.StringVar(&o.JSONFile, "json", "", "write the report to this file too")
}

func systemFlags(o *system.Options, cmd *cobra.Command, start string) {
	f := cmd.Flags()
	f.StringVar(&o.Start, "start", start, "none (use --gateway), daemons or embedded")
	f.StringSliceVar(&o.Gateways, "gateway", []string{"http://127.0.0.1:8080"}, "URL of a running gateway; may be repeated, requests go round")
	f.StringVar(&o.Flashgate, "flashgate", "", "the flashgate binary (default: built from this module)")
	f.StringVar(&o.Config, "config", "", "config file (default: configs/embedded.yaml for --start embedded, else configs/local.yaml)")
	f.IntVar(&o.GatewayCount, "gateways", 2, "gateways that --start daemons starts")
	f.IntVar(&o.WorkerCount, "workers", 2, "workers that --start daemons starts")
	f.StringVar(&o.Limits, "limits", system.LimitsRaised, "limits of what --start starts: raised (one machine plays all shoppers) or as-is")
	f.BoolVar(&o.MySQL, "mysql", false, "count the rows in MySQL too, with the DSN in "+system.MySQLVariable)
	f.DurationVar(&o.Drain, "drain", 2*time.Minute, "how long the orders may take to the ledger after the burst")
}
