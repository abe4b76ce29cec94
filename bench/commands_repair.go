package main

import (
	"errors"
	"time"

	"github.com/spf13/cobra"

	"flashgate/bench/scenario"
	"flashgate/bench/system"
)

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

func driftCommand() *cobra.Command {
	o, d := &system.Options{}, &scenario.Drift{}
	cmd := &cobra.Command{
		Use:   "drift",
		Short: "Differences of every kind, planted by hand in both stores while the sale sells, and reconciled",
		Long: `Sells a sale, then goes on selling it at --rate purchases a second. Meanwhile it plants
differences of every kind with SQL and with commands on the sale's Redis keys, of --orders
orders each, in both directions. One "flashgate reconcile --once" must find and repair all of
them, a second one must find nothing, and every shopper who asks must be sold a unit.

In the end the sale's total is cut to what is sold and --last units more, and a storm buys
these: exactly so many.`,
		Example: "  bench drift --orders 1,100,5000",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.Start == system.StartEmbedded {
				return errors.New("drift plants with SQL and Redis commands: --start daemons or none")
			}
			o.MySQL = true // it has the DSN anyway
			if err := d.Check(); err != nil {
				return err
			}
			return runScenario(o, cmd, d.Shoppers(), d.Run)
		},
	}
	f := cmd.Flags()
	f.IntSliceVar(&d.Sizes, "orders", []int{1, 100, 5000}, "orders of each kind, one round after the other")
	f.Float64Var(&d.Rate, "rate", 200, "purchases a second, all the while")
	f.DurationVar(&d.Longest, "longest", 10*time.Minute, "how long all rounds may take")
	f.DurationVar(&d.Watermark, "watermark", 5*time.Second, "of the reconciles: younger orders are not compared")
	f.IntVar(&d.Last, "last", 1000, "units that are left for the storm in the end")
	loadFlags(o, cmd)
	systemFlags(o, cmd, system.StartDaemons)
	return cmd
}

func rebuildCommand() *cobra.Command {
	o, rb := &system.Options{}, &scenario.Rebuild{}
	cmd := &cobra.Command{
		Use:   "rebuild",
		Short: "How long a sale that Redis has lost takes to sell again, and that nothing is lost",
		Long: `Sells --orders of a sale, then goes on at --rate purchases a second, empties the Redis
master that owns the sale (FLUSHALL, so for a cluster of tests), and goes on. Whoever was
answered 503 asks again with the same key, as a shopper would. Every order that was
promised, before or after, must be in the ledger and shown to its owner.`,
		Example: "  bench rebuild --flushall 127.0.0.1:7001 --orders 100000",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.Start == system.StartEmbedded {
				return errors.New("rebuild empties a Redis master: --start daemons or none")
			}
			if err := rb.Check(); err != nil {
				return err
			}
			rb.Probes = max(o.GatewayCount, len(o.Gateways))
			return runScenario(o, cmd, rb.Shoppers(), rb.Run)
		},
	}
	f := cmd.Flags()
	f.StringVar(&rb.Redis, "flushall", "", "a node of the Redis Cluster; its master that owns the sale is emptied, with all that it holds")
	f.IntVar(&rb.Orders, "orders", 100_000, "orders that the sale has when it is lost")
	f.Float64Var(&rb.Rate, "rate", 500, "purchases a second while it is lost")
	f.DurationVar(&rb.Window, "window", 5*time.Second, "how long to sell at --rate before it is lost, and after it sells again")
	f.DurationVar(&rb.Longest, "longest", 2*time.Minute, "how long it may take to sell again")
	loadFlags(o, cmd)
	systemFlags(o, cmd, system.StartDaemons)
	return cmd
}
