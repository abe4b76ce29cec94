package cli

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"flashgate/internal/audit"
	"flashgate/internal/bus"
	"flashgate/internal/config"
	"flashgate/internal/engines"
	"flashgate/internal/operator"
	"flashgate/internal/token"
)

// errSaid ends a command with exit code 1 whose output has said why.
var errSaid = errors.New("said already")

func isSilent(err error) bool { return errors.Is(err, errSaid) }

func migrateCommand(f *flags) *cobra.Command {
	return &cobra.Command{
		Use: "migrate", Short: "Create or update the ledger's tables and the topic", GroupID: "jobs", Args: cobra.NoArgs,
		Long: `Brings the ledger's tables to this version and creates the topic on every broker. It can
run again, and beside another one, without harm.`,
		RunE: f.with(localConfig, func(cmd *cobra.Command, c *config.Config) error {
			out := cmd.OutOrStdout()
			if c.Engines == config.Embedded {
				// Opening the folder migrates it.
				return withService(cmd.Context(), c, func(operator.Service) error {
					fmt.Fprintln(out, "ledger: up to date")
					return nil
				})
			}
			l, err := engines.Ledger(engines.Needs{Config: c, Log: logger(c)})
			if err != nil {
				return err
			}
			applied, err := l.Migrate(cmd.Context())
			for _, name := range applied {
				fmt.Fprintln(out, "ledger: applied "+name)
			}
			if err = errors.Join(err, l.Close()); err != nil {
				return err
			}
			if len(applied) == 0 {
				fmt.Fprintln(out, "ledger: up to date")
			}
			changed, err := bus.EnsureTopics(cmd.Context(), c.RocketMQ.NameServers, c.RocketMQ.Topic, c.RocketMQ.Queues)
			switch {
			case err != nil:
				return err
			case changed:
				fmt.Fprintf(out, "topic %s: created with %d queues\n", c.RocketMQ.Topic, c.RocketMQ.Queues)
			default:
				fmt.Fprintf(out, "topic %s: up to date\n", c.RocketMQ.Topic)
			}
			return nil
		}),
	}
}

func tokenCommand(f *flags) *cobra.Command {
	var user, users string
	var ttl time.Duration
	c := &cobra.Command{
		Use: "token", Short: "Issue shoppers' tokens, for tests and demos", GroupID: "jobs", Args: cobra.NoArgs,
		Long: `Issues HS256 tokens with the secret that the config refers to. --user prints one token
alone; --users reads user ids from a file (- is standard input), one a line, and prints
"user token" a line.`,
		Example: "  TOKEN=$(flashgate token --user alice)\n  seq -f user-%g 1 20000 | flashgate token --users - > tokens.txt",
		RunE: f.with(localConfig, func(cmd *cobra.Command, c *config.Config) error {
			if (user == "") == (users == "") {
				return errors.New("token: give either --user or --users")
			}
			if ttl <= 0 {
				return fmt.Errorf("--ttl %s: want more than nothing, such as 1h", ttl)
			}
			if c.Engines == config.Embedded {
				if _, err := config.EnsureEnvFile(c.DataDir); err != nil {
					return err
				}
			}
			issuer, err := newIssuer(c)
			if err != nil {
				return err
			}
			if user != "" {
				t, err := issuer.Issue(user, ttl)
				if err == nil {
					fmt.Fprintln(cmd.OutOrStdout(), t)
				}
				return err
			}
			return issueAll(cmd, issuer, users, ttl)
		}),
	}
	c.Flags().StringVar(&user, "user", "", "the token's sub: 1–64 bytes")
	c.Flags().StringVar(&users, "users", "", "file with a user id a line")
	c.Flags().DurationVar(&ttl, "ttl", time.Hour, "how long the tokens are good")
	return c
}

func newIssuer(c *config.Config) (*token.Issuer, error) {
	secret, err := c.JWTSecret()
	if err != nil {
		return nil, err
	}
	return token.NewIssuer(secret, c.JWT.Issuer, c.JWT.Audience)
}

func issueAll(cmd *cobra.Command, issuer *token.Issuer, path string, ttl time.Duration) (err error) {
	in := cmd.InOrStdin()
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }() // it was only read
		in = f
	}
	out := bufio.NewWriter(cmd.OutOrStdout())
	lines := bufio.NewScanner(in)
	for n := 1; lines.Scan(); n++ {
		user := strings.TrimSuffix(lines.Text(), "\r")
		if user == "" {
			continue
		}
		t, err := issuer.Issue(user, ttl)
		if err != nil {
			return fmt.Errorf("%s:%d: %w", path, n, err)
		}
		if _, err := fmt.Fprintln(out, user, t); err != nil {
			return err
		}
	}
	return errors.Join(lines.Err(), out.Flush())
}

func auditCommand(f *flags) *cobra.Command {
	var saleID string
	var asJSON bool
	c := &cobra.Command{
		Use: "audit", Short: "Check the invariants on what is stored; exit 1 on a breach", GroupID: "jobs", Args: cobra.NoArgs,
		Long: `Checks the invariants of ARCHITECTURE.md on what Redis and the ledger hold, order by order,
and exits 1 on a breach, naming invariant and ids. It changes nothing. Orders younger than
the watermark (reconciler.watermark) are in flight and are not compared across the stores.
What an operator has decided to leave (flashgate task abandon) is listed as ACCEPTED, with
who and why, and is no breach.`,
		RunE: f.with(localConfig, func(cmd *cobra.Command, c *config.Config) error {
			return withService(cmd.Context(), c, func(s operator.Service) error {
				r, err := s.Audit(cmd.Context(), saleID)
				if err != nil {
					return err
				}
				if asJSON {
					err = printJSON(cmd.OutOrStdout(), r)
				} else {
					err = printAudit(cmd.OutOrStdout(), &r)
				}
				if err == nil && !r.OK {
					err = errSaid
				}
				return err
			})
		}),
	}
	c.Flags().StringVar(&saleID, "sale", "", "one sale; without it, all")
	c.Flags().BoolVar(&asJSON, "json", false, "for machines")
	return c
}

func printAudit(out io.Writer, r *audit.Report) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "SALE\tTOTAL\tAVAILABLE\tLOCKED\tSOLD\tREDIS STOCK\tREDIS HELD\tCOMPARED\tYOUNGER\tOPEN BATCHES")
	for i := range r.Sales {
		s := &r.Sales[i]
		redis := fmt.Sprintf("%d\t%d", s.Stock, s.Held)
		if !s.Loaded {
			redis = "not loaded\t-"
		}
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d\t%s\t%d\t%d\t%d\n", s.SaleID, s.Total, s.Available, s.Locked, s.Sold,
			redis, max(s.LedgerOrders, s.RedisRecords), s.Younger, s.OpenBatches)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for i := range r.Breaches {
		fmt.Fprintln(out, "BREACH  "+r.Breaches[i].String())
	}
	for i := range r.Accepted {
		fmt.Fprintln(out, "ACCEPTED  "+r.Accepted[i].String())
	}
	if more := r.Breached - len(r.Breaches); more > 0 {
		fmt.Fprintf(out, "… and %d more\n", more)
	}
	verdict := "no invariant is broken"
	if !r.OK {
		verdict = fmt.Sprintf("%d breaches", r.Breached)
	}
	fmt.Fprintf(out, "audit: %s (%d sales, %s, watermark %s)\n", verdict, len(r.Sales), r.Took, r.Watermark)
	return nil
}
