package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"flashgate/internal/config"
	"flashgate/internal/operator"
)

func deadCommand(f *flags) *cobra.Command {
	return parent("dead", "List, show and replay the batches that failed by their own fault",
		`A batch that cannot be written to the ledger by its own fault (a body that cannot be read,
a sale that is not there, an amount that is not quantity times price) is set aside as a dead
batch, so that it blocks nobody. What was promised with it stays held in Redis until you
replay it: mend the cause, or the body, and replay.`,
		deadListCommand(f), deadShowCommand(f), deadReplayCommand(f))
}

func deadListCommand(f *flags) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use: "list", Short: "List dead batches, those that wait for you first", Args: cobra.NoArgs,
		RunE: f.with(localConfig, func(cmd *cobra.Command, c *config.Config) error {
			return withService(cmd.Context(), c, func(s operator.Service) error {
				dead, err := s.DeadBatches(cmd.Context())
				switch {
				case err != nil:
					return err
				case asJSON:
					return printJSON(cmd.OutOrStdout(), map[string]any{"dead_batches": dead})
				}
				return printDead(cmd.OutOrStdout(), dead)
			})
		}),
	}
	c.Flags().BoolVar(&asJSON, "json", false, "for machines")
	return c
}

func printDead(out io.Writer, dead []operator.DeadBatchView) error {
	if len(dead) == 0 {
		fmt.Fprintln(out, "no dead batches")
		return nil
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ID\tSTATE\tSALE\tBATCH\tSINCE\tBYTES\tWHY")
	for i := range dead {
		d := &dead[i]
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\t%d\t%s\n", d.ID, d.State, quotedOrDash(d.SaleID), orDash(d.BatchID),
			d.CreatedAt.Format(time.RFC3339), len(d.Body), d.Error)
	}
	return w.Flush()
}

func deadShowCommand(f *flags) *cobra.Command {
	var asJSON, bodyAlone bool
	c := &cobra.Command{
		Use: "show ID", Short: "Show a dead batch and its body", Args: cobra.ExactArgs(1),
		Example: `  flashgate dead show 7
  flashgate dead show 7 --body > batch.json      # mend it, then:
  flashgate dead replay 7 --body batch.json`,
		RunE: f.withNumber("dead batch", func(cmd *cobra.Command, s operator.Service, id int64) error {
			d, err := s.DeadBatch(cmd.Context(), id)
			out := cmd.OutOrStdout()
			switch {
			case err != nil:
				return err
			case asJSON:
				return printJSON(out, d)
			case bodyAlone:
				fmt.Fprintln(out, readable(d.Body))
				return nil
			}
			fmt.Fprintf(out, "dead batch %d   %s\n  batch    %s\n  sale     %s\n  message  %s\n  since    %s\n  why      %s\n",
				d.ID, d.State, orDash(d.BatchID), quotedOrDash(d.SaleID), quotedOrDash(d.MessageID), d.CreatedAt.Format(time.RFC3339), d.Error)
			if d.Closed != nil {
				fmt.Fprintf(out, "  %-8s by %s at %s  %s\n", "closed", d.Closed.By, d.Closed.At.Format(time.RFC3339), d.Closed.Reason)
			}
			fmt.Fprintln(out, readable(d.Body))
			return nil
		}),
	}
	c.Flags().BoolVar(&asJSON, "json", false, "for machines")
	c.Flags().BoolVar(&bodyAlone, "body", false, "the body alone, to be mended")
	return c
}

// readable indents a body that is JSON, and quotes any other, which may hold any bytes.
func readable(body string) string {
	var indented bytes.Buffer
	if json.Indent(&indented, []byte(body), "", "  ") == nil {
		return indented.String()
	}
	return fmt.Sprintf("%q", body)
}

func deadReplayCommand(f *flags) *cobra.Command {
	var r operator.Replay
	var file string
	c := &cobra.Command{
		Use: "replay ID", Short: "Apply a dead batch once its cause is mended", Args: cobra.ExactArgs(1),
		Long: `Applies a dead batch by the worker's own transaction, with its guards, and settles it in
Redis. It can be said twice: a batch is applied once.

A batch that was never promised is VOIDED instead, and nothing of it is applied. With
--body the batch in the file (- is standard input) takes the place of the stored one. It
must be the same batch and hold the very orders that Redis has reserved with it.`,
		Example: "  flashgate dead replay 7\n  flashgate dead replay 7 --body batch.json",
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if file != "" {
				if r.Body, err = readBody(cmd, file); err != nil {
					return err
				}
			}
			return f.withNumber("dead batch", func(cmd *cobra.Command, s operator.Service, id int64) error {
				done, err := s.ReplayDeadBatch(cmd.Context(), id, r)
				return report(cmd, done, err)
			})(cmd, args)
		},
	}
	c.Flags().StringVar(&file, "body", "", "file with the mended batch; - is standard input")
	c.Flags().StringVar(&r.Reason, "reason", "", "what was mended, for the record")
	byFlag(c, &r.By)
	return c
}

func readBody(cmd *cobra.Command, file string) (json.RawMessage, error) {
	in := cmd.InOrStdin()
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, err
		}
		defer func() { _ = f.Close() }() // it was only read
		in = f
	}
	body, err := io.ReadAll(in)
	if err == nil && !json.Valid(body) {
		err = fmt.Errorf("%s is not JSON", file)
	}
	return body, err
}
