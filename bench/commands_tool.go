package main

import (
	"errors"
	"time"

	"github.com/spf13/cobra"

	"flashgate/bench/load"
	"flashgate/bench/system"
	"flashgate/bench/tool"
	"flashgate/bench/vegeta"
)

func k6Command() *cobra.Command {
	o, k := &system.Options{}, &tool.K6{}
	cmd := &cobra.Command{
		Use:   "k6 opening|storm|soak",
		Short: "A script of bench/k6, with thresholds, and an audit afterwards",
		Long: `Makes a sale, runs a script of bench/k6 against it, and audits: opening is the wave of
the opening second, storm is many shoppers for few units, soak a steady rate with one
order in ten looked at until it is in the ledger. A threshold that is missed fails the run, and
so does a purchase that k6 was told yes for and the ledger has not.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			k.Script = args[0]
			if err := k.Check(); err != nil {
				return err
			}
			return runScenario(o, cmd, k.Shoppers, k.Run)
		},
	}
	f := cmd.Flags()
	f.StringVar(&k.Binary, "k6", "k6", "the k6 binary; make bench-k6 builds one")
	f.StringVar(&k.Folder, "scripts", "bench/k6", "folder of the scripts")
	f.IntVar(&k.Shoppers, "shoppers", 5_000, "of storm")
	f.IntVar(&k.Units, "units", 0, "on sale; 0 = 1,000 in storm, a tenth of --rate in opening, one for everybody in soak")
	f.IntVar(&k.Rate, "rate", 0, "arrivals a second: at the peak of opening (0 = 500), all along in soak (0 = 200)")
	f.DurationVar(&k.Duration, "duration", 30*time.Second, "of soak")
	f.IntVar(&k.VUs, "vus", 256, "virtual users at most")
	loadFlags(o, cmd)
	systemFlags(o, cmd, system.StartAuto)
	return cmd
}

func vegetaCommand() *cobra.Command {
	o, v := &system.Options{}, &tool.Vegeta{}
	cmd := &cobra.Command{
		Use:   "vegeta",
		Short: "A vegeta attack at a steady rate, a plot, and an audit afterwards",
		Long: `Makes a sale, writes a target for each purchase, with a token and a key of its own, has
vegeta attack at --rate for --duration, plots the latencies, and audits. As many must be
told 202 as there are units, all others 409.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v.Workers = o.Connections
			if err := v.Check(); err != nil {
				return err
			}
			return runScenario(o, cmd, v.Shoppers(), v.Run)
		},
	}
	f := cmd.Flags()
	f.StringVar(&v.Binary, "vegeta", "vegeta", "the vegeta binary; make bench-vegeta builds one")
	f.IntVar(&v.Rate, "rate", 1_000, "purchases a second")
	f.DurationVar(&v.Duration, "duration", 10*time.Second, "of the attack")
	f.IntVar(&v.Units, "units", 2_000, "on sale")
	f.StringVar(&v.Plot, "plot", outFolder+"/vegeta.html", "the page with the plot")
	loadFlags(o, cmd)
	systemFlags(o, cmd, system.StartAuto)
	return cmd
}

func targetsCommand() *cobra.Command {
	o, saleID, n := &system.Options{}, "", 0
	cmd := &cobra.Command{
		Use:     "targets",
		Short:   "Print purchases as vegeta's targets, each with a token and a key of its own",
		Example: `  go run ./bench targets --sale demo --shoppers 1000 | vegeta attack -format=json -lazy -rate=100 -duration=10s | vegeta report`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if saleID == "" {
				return errors.New("--sale: want the id of a sale that is open")
			}
			if o.Start != system.StartNone {
				return errors.New("targets are of what is running: --start none")
			}
			return prepared(o, cmd, n, func(p *load.Progress) error {
				return system.With(cmd.Context(), o, p, "", func(sys *system.System) error {
					shoppers, err := sys.NewShoppers(cmd.Context(), n, system.Sale{ID: saleID})
					if err != nil {
						return err
					}
					return vegeta.WriteTargets(cmd.OutOrStdout(), shoppers, sys.Gateways)
				})
			})
		},
	}
	cmd.Flags().StringVar(&saleID, "sale", "", "where they buy")
	cmd.Flags().IntVar(&n, "shoppers", 10_000, "how many; each buys once")
	loadFlags(o, cmd)
	systemFlags(o, cmd, system.StartNone)
	return cmd
}
