package cli

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"flashgate/internal/config"
	"flashgate/internal/ledger"
	"flashgate/internal/operator"
	"flashgate/internal/sale"
	"flashgate/reconciler"
)

func reconcileCommand(f *flags) *cobra.Command {
	var q reconciler.Query
	var once, asJSON bool
	c := &cobra.Command{
		Use: "reconcile", Short: "Compare Redis with the ledger, order by order, and repair", GroupID: "jobs", Args: cobra.NoArgs,
		Long: `Compares Redis with the ledger, order by order, and repairs what differs, whether or not a
reconciler is running. Repairs above the fuse (reconciler.fuse_percent, fuse_units) are left
to you. Exits 0 when all that was found is repaired. Each run leaves a report, which
` + "`flashgate reconcile report`" + ` shows.`,
		Example: `  flashgate reconcile --once --sale phone-11 --dry-run    what would be done
  flashgate reconcile --once --sale phone-11
  flashgate reconcile report --sale phone-11              its runs, the newest first
  flashgate reconcile report 42                           one run, item by item`,
		RunE: f.with(localConfig, func(cmd *cobra.Command, c *config.Config) error {
			if !once {
				return errors.New("reconcile: want --once; the daemon `flashgate reconciler` runs it on schedule")
			}
			return withService(cmd.Context(), c, func(s operator.Service) error {
				r, err := s.Reconcile(cmd.Context(), q)
				if err != nil {
					return err
				}
				if asJSON {
					err = printJSON(cmd.OutOrStdout(), r)
				} else {
					err = printReconcile(cmd.OutOrStdout(), &r)
				}
				if err == nil && r.Left > 0 {
					err = errSaid
				}
				return err
			})
		}),
	}
	c.AddCommand(reportCommand(f))
	c.Flags().BoolVar(&once, "once", false, "run now and once")
	c.Flags().StringVar(&q.SaleID, "sale", "", "one sale; without it, all")
	c.Flags().BoolVar(&q.DryRun, "dry-run", false, "find, say what would be done, and repair nothing")
	c.Flags().BoolVar(&asJSON, "json", false, "for machines")
	return c
}

func printReconcile(out io.Writer, r *reconciler.Report) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for i := range r.Sales {
		for j := range r.Sales[i].Items {
			item := &r.Sales[i].Items[j]
			what := strings.ToLower(string(item.Outcome))
			if item.Why != "" {
				what += ": " + item.Why
			}
			fmt.Fprintf(w, "%s\t%s\torder %s\tbatch %s\tuser %s\t%d units\t%s\t%s\t%s\n", r.Sales[i].SaleID, item.Kind,
				idOrDash(item.OrderID), idOrDash(item.BatchID), quotedOrDash(item.UserID), item.Units, item.Detail, item.Plan, what)
		}
		if more := r.Sales[i].Unlisted; more > 0 {
			fmt.Fprintf(w, "%s\t… and %d more\n", r.Sales[i].SaleID, more)
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for i := range r.Sales {
		if note := r.Sales[i].Note; note != "" {
			fmt.Fprintf(out, "%s: %s\n", r.Sales[i].SaleID, note)
		}
	}
	fmt.Fprintf(out, "reconcile: %d sales in %s: %d found, %d repaired, %d left; %d batches helped\n",
		len(r.Sales), r.Took, r.Found, r.Repaired, r.Left, r.Helped)
	return nil
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func reportCommand(f *flags) *cobra.Command {
	var saleID string
	var limit int
	var asJSON bool
	c := &cobra.Command{
		Use: "report [ID]", Short: "Show what reconciles found, repaired and left", Args: cobra.MaximumNArgs(1),
		Long: `Without an ID it lists the newest reports, one a run and sale; with one it shows that run
item by item.

TRIGGER is why it ran: schedule, once (an operator), or early and the cause. FOUND is
REPAIRED + LEFT; what is LEFT waits for you, and its item says why. HELPED are promised
batches that were applied ahead of a lagging worker: no difference.`,
		Example: `  flashgate reconcile report                    the newest of all sales
  flashgate reconcile report --sale phone-11 --limit 100
  flashgate reconcile report 42 --json`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.with(localConfig, func(cmd *cobra.Command, c *config.Config) error {
				return withService(cmd.Context(), c, func(s operator.Service) error {
					out := cmd.OutOrStdout()
					if len(args) == 0 {
						reports, err := s.Reports(cmd.Context(), saleID, limit)
						switch {
						case err != nil:
							return err
						case asJSON:
							return printJSON(out, map[string]any{"reports": reports})
						}
						return printReports(out, reports)
					}
					id, err := number("report", args[0])
					if err != nil {
						return err
					}
					r, err := s.Report(cmd.Context(), id)
					switch {
					case err != nil:
						return err
					case asJSON:
						return printJSON(out, r)
					}
					return printReport(out, &r)
				})
			})(cmd, args)
		},
	}
	c.Flags().StringVar(&saleID, "sale", "", "one sale; without it, all")
	c.Flags().IntVar(&limit, "limit", 20, "reports listed, at most 1000")
	c.Flags().BoolVar(&asJSON, "json", false, "for machines")
	return c
}

// number reads the id of a report, a task or a dead batch.
func number(what, text string) (int64, error) {
	id, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s %q: want its number, as the list shows it", what, text)
	}
	return id, nil
}

func printReports(out io.Writer, reports []ledger.ReconcileReport) error {
	if len(reports) == 0 {
		fmt.Fprintln(out, "no reports: nothing has been reconciled yet")
		return nil
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ID\tSTARTED\tTOOK\tSALE\tTRIGGER\tORDERS\tRECORDS\tFOUND\tREPAIRED\tLEFT\tHELPED\tNOTE")
	for i := range reports {
		r := &reports[i]
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\t%d\t%d\t%d\t%d\t%d\t%d\t%s\n", r.ID, r.StartedAt.Format(time.RFC3339),
			r.Took().Round(time.Millisecond), r.SaleID, triggerOf(r), r.LedgerOrders, r.RedisRecords,
			r.Found, r.Repaired, r.Left, r.Helped, orDash(r.Note))
	}
	return w.Flush()
}

func triggerOf(r *ledger.ReconcileReport) string {
	if r.DryRun {
		return r.Trigger + " (dry run)"
	}
	return r.Trigger
}

func printReport(out io.Writer, r *ledger.ReconcileReport) error {
	fmt.Fprintf(out, "report %d   sale %s   %s   by %s\n", r.ID, r.SaleID, triggerOf(r), orDash(r.Holder))
	fmt.Fprintf(out, "began %s, took %s\n", r.StartedAt.Format(time.RFC3339), r.Took().Round(time.Millisecond))
	fmt.Fprintf(out, "compared %d orders of the ledger with %d records of Redis; %d records younger than the watermark, %d batches open\n",
		r.LedgerOrders, r.RedisRecords, r.Younger, r.OpenBatches)
	if r.Note != "" {
		fmt.Fprintln(out, "note: "+r.Note)
	}
	fmt.Fprintf(out, "%d found, %d repaired, %d left, %d helped\n", r.Found, r.Repaired, r.Left, r.Helped)
	if len(r.Kinds) > 0 {
		fmt.Fprintln(out)
		w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
		fmt.Fprintln(w, "KIND\tFOUND\tREPAIRED\tLEFT\tHELPED\tUNITS")
		for _, k := range r.Kinds {
			fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d\t%d\n", k.Kind, k.Found, k.Repaired, k.Left, k.Helped, k.Units)
		}
		if err := w.Flush(); err != nil {
			return err
		}
	}
	if len(r.Items) == 0 {
		return nil
	}
	fmt.Fprintln(out)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "OUTCOME\tKIND\tORDER\tBATCH\tUSER\tUNITS\tWHAT DIFFERS\tWHAT MENDS IT\tWHY IT WAS LEFT")
	for i := range r.Items {
		it := &r.Items[i]
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%d\t%s\t%s\t%s\n", it.Outcome, it.Kind, idOrDash(it.OrderID), idOrDash(it.BatchID),
			quotedOrDash(it.UserID), it.Units, it.Detail, it.Plan, orDash(it.Why))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if r.Unlisted > 0 {
		fmt.Fprintf(out, "… and %d more\n", r.Unlisted)
	}
	return nil
}

func idOrDash(id sale.ID) string {
	if id == 0 {
		return "-"
	}
	return id.String()
}

// quotedOrDash shows a user's id, which may hold any bytes, on a terminal.
func quotedOrDash(s string) string {
	if s == "" {
		return "-"
	}
	if q := strconv.Quote(s); q[1:len(q)-1] != s {
		return q
	}
	return s
}
