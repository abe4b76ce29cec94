// Command bench is flashgate's load driver. It speaks to a running system from
// outside only, as shoppers and operators do, and it believes nothing: every answer
// is held to the API's promises, every order is looked up by its owner, and every
// run ends with flashgate audit. A run that broke a rule shows no figure.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := newCommand().ExecuteContext(ctx)
	stop()
	switch {
	case err == nil:
	case errors.Is(err, context.Canceled):
		fmt.Fprintln(os.Stderr, "bench: interrupted, no figures:", err)
		os.Exit(1)
	default:
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// Limits of the options: a load that would be more than the machine can hold is
// refused and not tried.
const (
	maxShoppers    = 5_000_000 // some 700 bytes each, with token, key and answers
	maxConnections = 16_384
	maxDuration    = time.Hour
)

// options are what all scenarios share.
type options struct {
	start                     string   // startNone, startDaemons or startEmbedded
	gateways                  []string // URLs of those that run already
	gatewayCount, workerCount int      // of those to start
	flashgate                 string   // the binary
	config                    string   // its config file; "" = configFile decides
	limits                    string   // limitsRaised or limitsAsIs
	mysql                     bool
	connections               int
	timeout, drain            time.Duration
	jsonFile                  string
}

const (
	limitsRaised = "raised"
	limitsAsIs   = "as-is"
)

func (o *options) configFile() string {
	switch {
	case o.config != "":
		return o.config
	case o.start == startEmbedded:
		return "configs/embedded.yaml"
	default:
		return "configs/local.yaml"
	}
}

// roles names the processes to start; a name is a command and, where there are
// several, a number.
func (o *options) roles() []string {
	if o.start == startEmbedded {
		return []string{"flashgate"}
	}
	var roles []string
	for n := range o.gatewayCount {
		roles = append(roles, fmt.Sprintf("gateway-%d", n+1))
	}
	for n := range o.workerCount {
		roles = append(roles, fmt.Sprintf("worker-%d", n+1))
	}
	return append(roles, "reconciler")
}

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
	root.AddCommand(stormCommand(), acceptCommand(), helloCommand(), compareCommand(), reconcileCommand(), lagCommand(), rebuildCommand())
	return root
}

func stormCommand() *cobra.Command {
	o, st := &options{}, &storm{}
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
			return o.scenario(cmd, st.shoppers, st.run)
		},
	}
	cmd.Flags().IntVar(&st.shoppers, "shoppers", 20_000, "shoppers, each with a token of their own")
	cmd.Flags().IntVar(&st.total, "total", 1_000, "units on sale")
	o.loadFlags(cmd)
	o.systemFlags(cmd, startNone)
	return cmd
}

func acceptCommand() *cobra.Command {
	o, ac := &options{}, &accept{}
	cmd := &cobra.Command{
		Use:   "accept",
		Short: "Everyone buys, and all orders reach the ledger",
		Long: `Every shopper buys one unit of a sale that has one for each, until all have sent or
--duration is over. The figures: orders accepted a second (to the last 202), latency,
the time until the ledger has them all, and orders persisted a second over both.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.scenario(cmd, ac.shoppers, ac.run)
		},
	}
	ac.flags(cmd)
	o.loadFlags(cmd)
	o.systemFlags(cmd, startNone)
	return cmd
}

func helloCommand() *cobra.Command {
	o, h := &options{}, &hello{}
	cmd := &cobra.Command{
		Use:   "hello",
		Short: "The ceiling: a bare fasthttp server on this machine, same driver",
		Long: `Sends the requests of a purchase to a bare fasthttp server in this process. No
figure of a gateway can exceed this one on the same machine with this driver.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.check(h.requests); err != nil {
				return err
			}
			rep, err := h.run(cmd.Context(), o, newProgress(os.Stderr))
			return o.finish(cmd.OutOrStdout(), rep, err)
		},
	}
	cmd.Flags().IntVar(&h.requests, "requests", 500_000, "requests to send")
	o.loadFlags(cmd)
	return cmd
}

func compareCommand() *cobra.Command {
	o, ac := &options{}, &accept{}
	cmd := &cobra.Command{
		Use:   "compare-batch",
		Short: "accept with the config's batches, and with one half message an order",
		Long: `Runs accept twice with one build: with the config as given, and with a copy of it
whose batch.max is 1, so that every order is a half message of its own. Both runs
start their own processes, and both are audited. Prints both figures and the ratio.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.start == startNone {
				return errors.New("compare-batch starts the processes itself: --start daemons or embedded")
			}
			return o.measure(cmd, ac.shoppers, func(p *progress) (*report, error) {
				return compareBatch(cmd.Context(), ac, o, p)
			})
		},
	}
	ac.flags(cmd)
	o.loadFlags(cmd)
	o.systemFlags(cmd, startDaemons)
	return cmd
}

func reconcileCommand() *cobra.Command {
	o, rl := &options{}, &reconcileLoad{}
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
			return o.scenario(cmd, rl.shoppers(), rl.run)
		},
	}
	f := cmd.Flags()
	f.IntVar(&rl.orders, "orders", 100_000, "orders that the sale has when the first reconcile begins")
	f.Float64Var(&rl.rate, "rate", 500, "purchases a second while it is measured")
	f.IntVar(&rl.rounds, "rounds", 3, "reconciles, each beside a window without one")
	f.DurationVar(&rl.window, "window", 15*time.Second, "how long to measure without a reconcile, each time")
	f.DurationVar(&rl.longest, "longest", 2*time.Minute, "how long a reconcile may take")
	f.DurationVar(&rl.watermark, "watermark", 5*time.Second, "of the reconciles: younger orders are not compared")
	o.loadFlags(cmd)
	o.systemFlags(cmd, startDaemons)
	return cmd
}

func lagCommand() *cobra.Command {
	o, l := &options{}, &lag{}
	cmd := &cobra.Command{
		Use:   "lag",
		Short: "Reconciles one after the other, while the workers fall behind and catch up",
		Long: `Sells at --rate purchases a second for --duration. The workers stand still for the
first --lag of it, then catch up. All the while one "flashgate reconcile --once" follows
the other. Orders that a worker has not persisted yet are no difference: a reconcile may
persist them itself, but must find nothing.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.start != startDaemons {
				return errors.New("lag stops and continues workers: --start daemons")
			}
			return o.scenario(cmd, l.shoppers(), l.run)
		},
	}
	f := cmd.Flags()
	f.Float64Var(&l.rate, "rate", 500, "purchases a second")
	f.DurationVar(&l.duration, "duration", 2*time.Minute, "how long to sell")
	f.DurationVar(&l.lag, "lag", time.Minute, "how long the workers stand still")
	f.DurationVar(&l.watermark, "watermark", 5*time.Second, "of the reconciles: younger orders are not compared")
	f.IntVar(&l.runs, "runs", 10, "reconciles that there must be at least; more follow the end of the sale if need be")
	o.loadFlags(cmd)
	o.systemFlags(cmd, startDaemons)
	return cmd
}

func rebuildCommand() *cobra.Command {
	o, rb := &options{}, &rebuild{}
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
			if o.start == startEmbedded {
				return errors.New("rebuild empties a Redis master: --start daemons or none")
			}
			if err := rb.check(); err != nil {
				return err
			}
			rb.probes = max(o.gatewayCount, len(o.gateways))
			return o.scenario(cmd, rb.shoppers(), rb.run)
		},
	}
	f := cmd.Flags()
	f.StringVar(&rb.redis, "flushall", "", "a node of the Redis Cluster; its master that owns the sale is emptied, with all that it holds")
	f.IntVar(&rb.orders, "orders", 100_000, "orders that the sale has when it is lost")
	f.Float64Var(&rb.rate, "rate", 500, "purchases a second while it is lost")
	f.DurationVar(&rb.window, "window", 5*time.Second, "how long to sell at --rate before it is lost, and after it sells again")
	f.DurationVar(&rb.longest, "longest", 2*time.Minute, "how long it may take to sell again")
	o.loadFlags(cmd)
	o.systemFlags(cmd, startDaemons)
	return cmd
}

func (ac *accept) flags(cmd *cobra.Command) {
	cmd.Flags().IntVar(&ac.shoppers, "shoppers", 20_000, "shoppers, each with a token of their own, and units on sale")
	cmd.Flags().DurationVar(&ac.duration, "duration", 0, "end after this long if not all have sent; 0 = when all have")
	cmd.Flags().IntVar(&ac.warmup, "warmup", 1_000, "purchases in a sale of their own before the clock starts; 0 = none")
}

func (o *options) loadFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.IntVar(&o.connections, "connections", 256, "connections in all; each sends when its last request was answered")
	f.DurationVar(&o.timeout, "timeout", 10*time.Second, "for one answer; later is no answer")
	f.StringVar(&o.jsonFile, "json", "", "write the report to this file too")
}

func (o *options) systemFlags(cmd *cobra.Command, start string) {
	f := cmd.Flags()
	f.StringVar(&o.start, "start", start, "none (use --gateway), daemons or embedded")
	f.StringSliceVar(&o.gateways, "gateway", []string{"http://127.0.0.1:8080"}, "URL of a running gateway; may be repeated, requests go round")
	f.StringVar(&o.flashgate, "flashgate", "", "the flashgate binary (default: built from this module)")
	f.StringVar(&o.config, "config", "", "config file (default: configs/embedded.yaml for --start embedded, else configs/local.yaml)")
	f.IntVar(&o.gatewayCount, "gateways", 2, "gateways that --start daemons starts")
	f.IntVar(&o.workerCount, "workers", 2, "workers that --start daemons starts")
	f.StringVar(&o.limits, "limits", limitsRaised, "limits of what --start starts: raised (one machine plays all shoppers) or as-is")
	f.BoolVar(&o.mysql, "mysql", false, "count the rows in MySQL too, with the DSN in "+mysqlVariable)
	f.DurationVar(&o.drain, "drain", 2*time.Minute, "how long the orders may take to the ledger after the burst")
}

// check refuses options that make no sense, before anything is started.
func (o *options) check(requests int) error {
	switch {
	case requests < 1 || requests > maxShoppers:
		return fmt.Errorf("want 1–%d shoppers or requests, got %d", maxShoppers, requests)
	case o.connections < 1 || o.connections > maxConnections:
		return fmt.Errorf("--connections: want 1–%d, got %d", maxConnections, o.connections)
	case o.timeout <= 0:
		return fmt.Errorf("--timeout: want more than 0, got %s", o.timeout)
	}
	return nil
}

func (o *options) checkSystem() error {
	switch {
	case o.start != startNone && o.start != startDaemons && o.start != startEmbedded:
		return fmt.Errorf("--start: want none, daemons or embedded, got %q", o.start)
	case o.limits != limitsRaised && o.limits != limitsAsIs:
		return fmt.Errorf("--limits: want raised or as-is, got %q", o.limits)
	case o.start == startDaemons && (o.gatewayCount < 1 || o.workerCount < 1):
		return errors.New("--gateways and --workers: want 1 or more")
	case o.mysql && o.start == startEmbedded:
		return errors.New("--mysql: an embedded system has its ledger in SQLite")
	case o.mysql && os.Getenv(mysqlVariable) == "":
		return errors.New("--mysql: " + mysqlVariable + " is not set; after make up: set -a && . .run/env && set +a")
	case o.drain <= 0:
		return fmt.Errorf("--drain: want more than 0, got %s", o.drain)
	}
	return nil
}
