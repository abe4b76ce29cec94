package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"flashgate/internal/config"
	"flashgate/internal/operator"
)

func saleCommand(f *flags) *cobra.Command {
	c := &cobra.Command{Use: "sale", Short: "Create, list, open, pause, restock and load sales", GroupID: "jobs",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return fmt.Errorf("sale %s: no such command; `flashgate sale --help` lists them", args[0])
			}
			return cmd.Help()
		}}
	change := func(use, short, long string, do func(context.Context, operator.Service, string) (operator.Change, error)) *cobra.Command {
		return &cobra.Command{
			Use: use + " SALE", Short: short, Long: long, Args: cobra.ExactArgs(1),
			RunE: func(cmd *cobra.Command, args []string) error {
				return f.with(localConfig, func(cmd *cobra.Command, c *config.Config) error {
					return withService(cmd.Context(), c, func(s operator.Service) error {
						done, err := do(cmd.Context(), s, args[0])
						return report(cmd, done, err)
					})
				})(cmd, args)
			},
		}
	}
	c.AddCommand(
		createCommand(f), listCommand(f),
		change("open", "Publish a sale, or end its pause",
			"Publishes a sale: its times then decide whether it is UPCOMING, OPEN or ENDED. Every\ngateway shows it within 1 s.",
			func(ctx context.Context, s operator.Service, id string) (operator.Change, error) {
				return s.OpenSale(ctx, id)
			}),
		change("pause", "Stop a sale until it is opened again",
			"Stops a sale from selling, within 1 s on every gateway. What was promised stays promised.",
			func(ctx context.Context, s operator.Service, id string) (operator.Change, error) {
				return s.PauseSale(ctx, id)
			}),
		change("load", "Fill Redis with a sale that it has not",
			"Fills Redis with a sale from the ledger. `sale open` does it too, and the reconciler for\nwhatever it finds missing.",
			func(ctx context.Context, s operator.Service, id string) (operator.Change, error) {
				return s.LoadSale(ctx, id)
			}),
		restockCommand(f),
	)
	return c
}

func createCommand(f *flags) *cobra.Command {
	var spec operator.SaleSpec
	var starts, ends string
	c := &cobra.Command{
		Use: "create", Short: "Store a sale as a draft, which shoppers do not see", Args: cobra.NoArgs,
		Example: `  flashgate sale create --id phone-11 --title "Phone" --total 1000 --price-cents 199900 \
      --currency CNY --per-user-limit 1 --starts-at 2026-11-11T02:00:00Z --ends-at 2026-11-11T04:00:00Z`,
		RunE: f.with(localConfig, func(cmd *cobra.Command, c *config.Config) (err error) {
			if starts != "now" {
				if spec.StartsAt, err = parseTime("starts-at", starts); err != nil {
					return err
				}
			}
			if spec.EndsAt, err = parseTime("ends-at", ends); err != nil {
				return err
			}
			return withService(cmd.Context(), c, func(s operator.Service) error {
				done, err := s.CreateSale(cmd.Context(), spec)
				return report(cmd, done, err)
			})
		}),
	}
	fl := c.Flags()
	fl.StringVar(&spec.ID, "id", "", "1–64 of A–Z a–z 0–9 _ -")
	fl.StringVar(&spec.Title, "title", "", "what is sold")
	fl.Int64Var(&spec.Total, "total", 0, "units on sale")
	fl.Int64Var(&spec.PriceCents, "price-cents", 0, "price of a unit, in cents")
	fl.StringVar(&spec.Currency, "currency", "CNY", "three capital letters")
	fl.IntVar(&spec.PerUserLimit, "per-user-limit", 1, "units one user may hold")
	fl.StringVar(&starts, "starts-at", "now", "now, or RFC 3339, such as 2026-11-11T02:00:00Z")
	fl.StringVar(&ends, "ends-at", "", "RFC 3339")
	for _, name := range []string{"id", "title", "total", "price-cents", "ends-at"} {
		if err := c.MarkFlagRequired(name); err != nil {
			panic("BUG: " + err.Error())
		}
	}
	return c
}

func parseTime(flag, value string) (time.Time, error) {
	t, err := time.Parse(time.RFC3339Nano, value)
	if err != nil {
		return t, fmt.Errorf("--%s %q: want RFC 3339, such as %s", flag, value, time.Now().UTC().Truncate(time.Second).Format(time.RFC3339))
	}
	return t.UTC().Truncate(time.Millisecond), nil
}

func restockCommand(f *flags) *cobra.Command {
	var r operator.Restock
	c := &cobra.Command{
		Use: "restock SALE", Short: "Change how many units a sale has", Args: cobra.ExactArgs(1),
		Long: `Changes a sale's total, by --add units (negative: a cut, which takes free units only) or
to --total units. --total can be given twice without harm; --add adds each time.`,
		Example: "  flashgate sale restock phone-11 --add 200\n  flashgate sale restock phone-11 --total 1200",
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.with(localConfig, func(cmd *cobra.Command, c *config.Config) error {
				return withService(cmd.Context(), c, func(s operator.Service) error {
					done, err := s.Restock(cmd.Context(), args[0], r)
					return report(cmd, done, err)
				})
			})(cmd, args)
		},
	}
	c.Flags().Int64Var(&r.Add, "add", 0, "units to add; negative: to take away")
	c.Flags().Int64Var(&r.Total, "total", 0, "units the sale shall have in all")
	return c
}

func listCommand(f *flags) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use: "list", Short: "List all sales, both stores side by side", Args: cobra.NoArgs,
		RunE: f.with(localConfig, func(cmd *cobra.Command, c *config.Config) error {
			return withService(cmd.Context(), c, func(s operator.Service) error {
				sales, err := s.Sales(cmd.Context())
				if err != nil {
					return err
				}
				if asJSON {
					return printJSON(cmd.OutOrStdout(), map[string]any{"sales": sales})
				}
				return printSales(cmd.OutOrStdout(), sales)
			})
		}),
	}
	c.Flags().BoolVar(&asJSON, "json", false, "for machines")
	return c
}

func printSales(out io.Writer, sales []operator.SaleView) error {
	if len(sales) == 0 {
		fmt.Fprintln(out, "no sales yet: `flashgate sale create --help` shows how to make one")
		return nil
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "SALE\tSTATUS\tSTARTS\tENDS\tTOTAL\tAVAILABLE\tLOCKED\tSOLD\tREDIS STOCK\tREDIS HELD")
	for i := range sales {
		s := &sales[i]
		redis := "away\taway"
		switch {
		case s.Redis != nil && s.Redis.Loaded:
			redis = fmt.Sprintf("%d\t%d", s.Redis.Stock, s.Redis.Held)
		case s.Redis != nil:
			redis = "not loaded\t-"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%d\t%d\t%d\t%s\n", s.ID, s.Status,
			s.StartsAt.Format(time.RFC3339), s.EndsAt.Format(time.RFC3339),
			s.Inventory.Total, s.Inventory.Available, s.Inventory.Locked, s.Inventory.Sold, redis)
	}
	return w.Flush()
}

// report prints what a change did; its warnings go to standard error.
func report(cmd *cobra.Command, c operator.Change, err error) error {
	if err != nil {
		return err
	}
	fmt.Fprintln(cmd.OutOrStdout(), c.Message)
	for _, warning := range c.Warnings {
		fmt.Fprintln(cmd.ErrOrStderr(), "warning: "+warning)
	}
	return nil
}

func printJSON(out io.Writer, v any) error {
	e := json.NewEncoder(out)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}
