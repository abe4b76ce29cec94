package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"flashgate/internal/config"
	"flashgate/internal/engines"
	"flashgate/internal/limits"
	"flashgate/internal/operator"
	"flashgate/internal/sale"
)

func limitsCommand(f *flags) *cobra.Command {
	return parent("limits", "Check a limits file, show what is in force, block and allow",
		`Limits are in the file that the config names (configs/limits.yaml). Edit it, or copy a profile
over it, while gateways run: what is valid is in force within a second, what is not changes
nothing. Blocks and allowances may also be made here: they are kept in the ledger, reach
every gateway within a second and outlive restarts.`,
		limitsCheckCommand(),
		limitsShowCommand(f),
		accessCommand(f, "block", sale.AccessBlock, "Refuse a user or an address (403 BLOCKED)",
			`  flashgate limits block --user mallory --reason "resells"
  flashgate limits block --address 203.0.113.0/24 --for 1h`),
		accessCommand(f, "allow", sale.AccessAllow, "Never block a user or an address, nor hold it to the limits of one",
			"  flashgate limits allow --address 198.51.100.7 --reason monitoring"),
		accessCommand(f, "lift", sale.AccessLift, "Take back what was said of a user or an address",
			"  flashgate limits lift --user mallory"),
		accessListCommand(f),
	)
}

func limitsCheckCommand() *cobra.Command {
	return &cobra.Command{
		Use: "check FILE", Short: "Check a limits file; exits 1 and names line and key if it would be refused", Args: cobra.ExactArgs(1),
		Example: "  flashgate limits check configs/limits.panic.yaml",
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := limits.Load(args[0])
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: OK: %s\n", args[0], r.Summary())
			return nil
		},
	}
}

func limitsShowCommand(f *flags) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use: "show", Short: "Show the limits in force in a running gateway, and since when", Args: cobra.NoArgs,
		Long: `Asks the gateway whose operators' port the config names (operators_listen), or
--operators-listen, for the limits in force.`,
		Example: "  flashgate limits show\n  flashgate limits show --operators-listen 127.0.0.1:9096",
		RunE: f.with(localConfig, func(cmd *cobra.Command, c *config.Config) error {
			token, err := c.AdminToken()
			if err != nil {
				return err
			}
			v, err := (&operator.Client{Base: "http://" + c.OperatorsListen, Token: token}).Limits(cmd.Context())
			switch {
			case err != nil:
				return err
			case asJSON:
				return printJSON(cmd.OutOrStdout(), v)
			}
			printLimits(cmd.OutOrStdout(), &v)
			return nil
		}),
	}
	c.Flags().BoolVar(&asJSON, "json", false, "for machines")
	c.Flags().StringVar(&f.operatorsListen, "operators-listen", "", "host:port of the gateway's operators' port, in place of the config's")
	return c
}

// printLimits prints a limits file, with the rest in comments above it.
func printLimits(out io.Writer, v *limits.View) {
	fmt.Fprintf(out, "# in force since %s", v.Since.Format(time.RFC3339))
	if v.File != "" {
		fmt.Fprintf(out, ", from %s", v.File)
	}
	fmt.Fprintln(out)
	if v.Refused != nil {
		fmt.Fprintf(out, "# the file was refused at %s:\n", v.Refused.At.Format(time.RFC3339))
		for _, problem := range v.Refused.Problems {
			fmt.Fprintf(out, "#   %s\n", problem)
		}
	}
	breakers := make([]string, 0, len(v.Breakers))
	for _, e := range slices.Sorted(maps.Keys(v.Breakers)) {
		breakers = append(breakers, fmt.Sprintf("%s %s", e, v.Breakers[e]))
	}
	fmt.Fprintf(out, "# circuit breakers: %s\n", strings.Join(breakers, ", "))
	fmt.Fprintf(out, "# blocks and allowances by operators: %d (`flashgate limits list`)\n", v.Access)
	if len(v.Alone) > 0 {
		fmt.Fprintf(out, "# Redis does not answer; this gateway keeps its part by itself: %s\n", strings.Join(v.Alone, ", "))
	}
	fmt.Fprint(out, v.Limits)
}

// withAccess runs a command on the rules in the ledger; Redis and the bus may be away.
func withAccess(ctx context.Context, c *config.Config, do func(operator.Service) error) error {
	if c.Engines == config.Embedded {
		return withService(ctx, c, do)
	}
	l, err := engines.Ledger(engines.Needs{Config: c, Log: quiet(c)})
	if err != nil {
		return err
	}
	if err = l.Ping(ctx); err != nil {
		err = fmt.Errorf("the ledger is not there: %w", err)
	} else {
		err = do(&operator.Admin{Ledger: l})
	}
	return errors.Join(err, l.Close())
}

func accessCommand(f *flags, use string, access sale.Access, short, example string) *cobra.Command {
	change := operator.AccessChange{Access: access}
	var lasts time.Duration
	c := &cobra.Command{
		Use: use, Short: short, Args: cobra.NoArgs, Example: example,
		RunE: f.with(localConfig, func(cmd *cobra.Command, c *config.Config) error {
			if lasts < 0 {
				return fmt.Errorf("--for %s: want a positive duration, such as 1h", lasts)
			}
			if lasts > 0 {
				change.Until = time.Now().Add(lasts).UTC().Truncate(time.Millisecond)
			}
			return withAccess(cmd.Context(), c, func(s operator.Service) error {
				done, err := s.SetAccess(cmd.Context(), change)
				return report(cmd, done, err)
			})
		}),
	}
	c.Flags().StringVar(&change.User, "user", "", "the sub of the user's token")
	c.Flags().StringVar(&change.Address, "address", "", "an address, or a network such as 203.0.113.0/24 or 2001:db8::/32")
	c.MarkFlagsOneRequired("user", "address")
	c.MarkFlagsMutuallyExclusive("user", "address")
	c.Flags().StringVar(&change.Reason, "reason", "", "why, for the record")
	if access != sale.AccessLift {
		c.Flags().DurationVar(&lasts, "for", 0, "how long; without it, until it is lifted")
	}
	byFlag(c, &change.By)
	return c
}

func accessListCommand(f *flags) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use: "list", Short: "List the blocks and allowances made by operators", Args: cobra.NoArgs,
		Long: "Lists the blocks and allowances made by operators. Those of the limits file are in `flashgate limits show`.",
		RunE: f.with(localConfig, func(cmd *cobra.Command, c *config.Config) error {
			return withAccess(cmd.Context(), c, func(s operator.Service) error {
				access, err := s.Access(cmd.Context())
				switch {
				case err != nil:
					return err
				case asJSON:
					return printJSON(cmd.OutOrStdout(), map[string]any{"access": access})
				}
				return printAccess(cmd.OutOrStdout(), access)
			})
		}),
	}
	c.Flags().BoolVar(&asJSON, "json", false, "for machines")
	return c
}

func printAccess(out io.Writer, access []operator.AccessView) error {
	if len(access) == 0 {
		fmt.Fprintln(out, "nobody is blocked or allowed by operators")
		return nil
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ACCESS\tUSER\tADDRESS\tSINCE\tUNTIL\tBY\tWHY")
	for i := range access {
		a := &access[i]
		until := "-"
		if !a.Until.IsZero() {
			until = a.Until.Format(time.RFC3339)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", a.Access, quotedOrDash(a.User), orDash(a.Address),
			a.CreatedAt.Format(time.RFC3339), until, orDash(a.By), orDash(a.Reason))
	}
	return w.Flush()
}
