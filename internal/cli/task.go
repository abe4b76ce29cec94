package cli

import (
	"fmt"
	"io"
	"os/user"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"flashgate/internal/config"
	"flashgate/internal/ledger"
	"flashgate/internal/operator"
)

// parent is a command that only has others under it.
func parent(use, short, long string, below ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, Long: long, GroupID: "jobs",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return fmt.Errorf("%s %s: no such command; `flashgate %s --help` lists them", use, args[0], use)
			}
			return cmd.Help()
		}}
	c.AddCommand(below...)
	return c
}

// withNumber runs a command whose one argument is the number of a row.
func (f *flags) withNumber(what string, do func(cmd *cobra.Command, s operator.Service, id int64) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		return f.with(localConfig, func(cmd *cobra.Command, c *config.Config) error {
			id, err := number(what, args[0])
			if err != nil {
				return err
			}
			return withService(cmd.Context(), c, func(s operator.Service) error { return do(cmd, s, id) })
		})(cmd, args)
	}
}

// byFlag adds the flag that says who decides.
func byFlag(c *cobra.Command, by *string) {
	c.Flags().StringVar(by, "by", login(), "who decides this, for the record")
}

// login is the user that runs the command, as far as the system knows.
func login() string {
	u, err := user.Current()
	if err != nil {
		return ""
	}
	return u.Username
}

func taskCommand(f *flags) *cobra.Command {
	return parent("task", "List, retry and abandon what must still be given back in Redis",
		`A task gives the units of a cancelled order back in Redis. The reconciler runs it, and
tries again with growing pauses; time in which Redis is away counts for nothing. Out of
tries (reconciler.task_tries) it is STUCK and waits for you: mend the cause and retry it,
or abandon it.`,
		taskListCommand(f),
		&cobra.Command{
			Use: "retry ID", Short: "Make a task due now, with all its tries", Args: cobra.ExactArgs(1),
			Long:    "Makes a task due now, with its tries counted afresh; one that was abandoned too.",
			Example: "  flashgate task retry 17",
			RunE: f.withNumber("task", func(cmd *cobra.Command, s operator.Service, id int64) error {
				done, err := s.RetryTask(cmd.Context(), id)
				return report(cmd, done, err)
			}),
		},
		taskAbandonCommand(f),
	)
}

func taskListCommand(f *flags) *cobra.Command {
	var state string
	var asJSON bool
	c := &cobra.Command{
		Use: "list", Short: "List the tasks that are STUCK, then those that are OPEN", Args: cobra.NoArgs,
		Example: "  flashgate task list\n  flashgate task list --state ABANDONED",
		RunE: f.with(localConfig, func(cmd *cobra.Command, c *config.Config) error {
			of := ledger.TaskState(strings.ToUpper(state))
			switch of {
			case "", ledger.TaskOpen, ledger.TaskStuck, ledger.TaskAbandoned, ledger.TaskDone:
			default:
				return fmt.Errorf("--state %q: want OPEN, STUCK, ABANDONED or DONE", state)
			}
			return withService(cmd.Context(), c, func(s operator.Service) error {
				tasks, err := s.Tasks(cmd.Context(), of)
				switch {
				case err != nil:
					return err
				case asJSON:
					return printJSON(cmd.OutOrStdout(), map[string]any{"tasks": tasks})
				}
				return printTasks(cmd.OutOrStdout(), tasks)
			})
		}),
	}
	c.Flags().StringVar(&state, "state", "", "OPEN, STUCK, ABANDONED or DONE; without it, what is not finished")
	c.Flags().BoolVar(&asJSON, "json", false, "for machines")
	return c
}

func printTasks(out io.Writer, tasks []operator.TaskView) error {
	if len(tasks) == 0 {
		fmt.Fprintln(out, "no tasks: nothing is waiting to be given back")
		return nil
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ID\tSTATE\tSALE\tORDER\tUSER\tUNITS\tSINCE\tTRIES\tNEXT TRY\tWHY")
	for i := range tasks {
		t := &tasks[i]
		next, why := "-", orDash(t.LastError)
		if t.State == ledger.TaskOpen {
			next = t.NextTry.Format(time.RFC3339)
		}
		if t.Abandoned != nil {
			why = "abandoned by " + t.Abandoned.By + ": " + t.Abandoned.Reason
		}
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\t%d\t%s\t%d\t%s\t%s\n", t.ID, t.State, t.SaleID, t.OrderID, quotedOrDash(t.UserID),
			t.Quantity, t.CreatedAt.Format(time.RFC3339), t.Tries, next, why)
	}
	return w.Flush()
}

func taskAbandonCommand(f *flags) *cobra.Command {
	var d operator.Decision
	c := &cobra.Command{
		Use: "abandon ID", Short: "Give a task up, with a reason", Args: cobra.ExactArgs(1),
		Long: `Gives a task up for good. Its order stays cancelled, and the units that Redis holds for it
stay held: nobody can buy them. ` + "`flashgate audit`" + ` lists that as accepted, with who and why,
and a reconcile leaves it alone. ` + "`flashgate task retry`" + ` takes it back.`,
		Example: `  flashgate task abandon 17 --reason "the unit broke in the warehouse"`,
		RunE: f.withNumber("task", func(cmd *cobra.Command, s operator.Service, id int64) error {
			done, err := s.AbandonTask(cmd.Context(), id, d)
			return report(cmd, done, err)
		}),
	}
	c.Flags().StringVar(&d.Reason, "reason", "", "why, for whoever reads the audit")
	byFlag(c, &d.By)
	if err := c.MarkFlagRequired("reason"); err != nil {
		panic("BUG: " + err.Error())
	}
	return c
}
