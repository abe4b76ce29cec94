// Package cli is flashgate's commands: which parts each is made of, and what it prints.
package cli

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"

	"flashgate/internal/config"
	"flashgate/internal/tracing"
)

// The config files that commands read when none is named.
const (
	embeddedConfig = "configs/embedded.yaml"
	localConfig    = "configs/local.yaml"
)

// flags are those of every command.
type flags struct {
	config          string
	checkConfig     bool
	listen          string
	operatorsListen string
}

// Run runs the command that args name and returns the process's exit code. SIGINT and
// SIGTERM end it in order; a second one ends it at once.
func Run(args []string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	go func() {
		<-ctx.Done()
		stop() // the next signal has its default effect
	}()
	stdout, stderr = &plain{to: stdout}, &plain{to: stderr}
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	switch {
	case err == nil:
		return 0
	case isSilent(err):
		return 1
	default:
		fmt.Fprintln(stderr, "flashgate: "+err.Error())
		return 1
	}
}

func newRoot() *cobra.Command {
	f := &flags{}
	root := &cobra.Command{
		Use:   "flashgate",
		Short: "A flash-sale gateway: sells exactly the stock there is",
		Long: `flashgate sells exactly the stock there is, to exactly the shoppers who were told yes.

Without a command it runs everything in one process on embedded engines, with its data
in ./data, and opens a demo sale. On Redis Cluster, RocketMQ and MySQL it runs as three
daemons: gateway, worker and reconciler.`,
		Example: `  flashgate                                  one process, a demo sale, a line that buys from it
  flashgate migrate                          create or update the ledger's tables and the topic
  flashgate gateway                          the HTTP edge; any number of them
  flashgate worker                           writes orders to MySQL; any number of them
  flashgate reconciler                       repairs; any number, one of them leads
  flashgate sale create --id s1 --title "Phone" --total 1000 --price-cents 199900 \
      --currency CNY --per-user-limit 1 --starts-at now --ends-at 2027-01-01T00:00:00Z
  flashgate sale open s1
  flashgate audit --sale s1                  exits 1 if an invariant is broken
  flashgate reconcile report                 what the hourly and the early reconciles did
  flashgate task list                        what is still to be given back
  flashgate dead list                        batches that wait for you
  flashgate limits show                      the limits in force in a running gateway
  flashgate ready                            exits 1 and says what a daemon lacks`,
		Version:       version(),
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: f.withLimits(embeddedConfig, func(cmd *cobra.Command, c *config.Config) error {
			return runEmbedded(cmd.Context(), c, cmd.OutOrStdout())
		}),
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.PersistentFlags().StringVar(&f.config, "config", "", "config file (default "+embeddedConfig+" without a command, "+localConfig+" otherwise)")
	root.PersistentFlags().BoolVar(&f.checkConfig, "check-config", false, "check the config and the limits it names, and do nothing else")
	f.listeners(root)

	type reading func(string, func(*cobra.Command, *config.Config) error) func(*cobra.Command, []string) error
	daemon := func(use, short string, with reading, run func(context.Context, *config.Config) error) *cobra.Command {
		c := &cobra.Command{Use: use, Short: short, Args: cobra.NoArgs, GroupID: "daemons"}
		c.RunE = with(localConfig, func(cmd *cobra.Command, c *config.Config) error { return run(cmd.Context(), c) })
		f.listeners(c)
		return c
	}
	root.AddGroup(&cobra.Group{ID: "daemons", Title: "Daemons, on the real engines:"}, &cobra.Group{ID: "jobs", Title: "Jobs:"})
	root.AddCommand(
		daemon("gateway", "Answer shoppers over HTTP", f.withLimits, runGateway),
		daemon("worker", "Write orders to the ledger in batches", f.with, runWorker),
		daemon("reconciler", "Release, settle and repair; one of them leads", f.with, runReconciler),
		migrateCommand(f), saleCommand(f), tokenCommand(f), auditCommand(f), reconcileCommand(f),
		taskCommand(f), deadCommand(f), limitsCommand(f), readyCommand(f),
	)
	return root
}

// listeners adds the flags by which a second daemon of one machine has other ports.
func (f *flags) listeners(c *cobra.Command) {
	c.Flags().StringVar(&f.listen, "listen", "", "host:port for shoppers, in place of the config's")
	c.Flags().StringVar(&f.operatorsListen, "operators-listen", "", "host:port for operators, in place of the config's")
}

// with reads the config, and runs a command with it that keeps no limits.
func (f *flags) with(standard string, run func(*cobra.Command, *config.Config) error) func(*cobra.Command, []string) error {
	return f.reading(config.LoadAlone, standard, run)
}

// withLimits reads the config and the limits file, and runs a command with them.
func (f *flags) withLimits(standard string, run func(*cobra.Command, *config.Config) error) func(*cobra.Command, []string) error {
	return f.reading(config.Load, standard, run)
}

func (f *flags) reading(load func(string) (*config.Config, error), standard string, run func(*cobra.Command, *config.Config) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, _ []string) error {
		path := f.config
		if path == "" {
			path = standard
		}
		if f.checkConfig {
			line, err := config.Check(path)
			if err == nil {
				fmt.Fprintln(cmd.OutOrStdout(), line)
			}
			return err
		}
		c, err := f.load(load, path)
		if err != nil {
			return err
		}
		return run(cmd, c)
	}
}

func (f *flags) load(load func(string) (*config.Config, error), path string) (*config.Config, error) {
	c, err := load(path)
	if err != nil {
		return nil, err
	}
	if f.listen != "" {
		c.Listen = f.listen
	}
	if f.operatorsListen != "" {
		c.OperatorsListen = f.operatorsListen
	}
	return c, nil
}

// logger logs to standard error as the config says.
func logger(c *config.Config) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.Log.Level)); err != nil {
		panic("BUG: the config let a log level through: " + c.Log.Level)
	}
	log := slog.New(tracing.LogIDs(logHandler(os.Stderr, c.Log.Format, level)))
	slog.SetDefault(log)
	return log
}

// logHandler writes one line a record; of one at a time, as plain wants it.
func logHandler(to io.Writer, format string, level slog.Level) slog.Handler {
	o := &slog.HandlerOptions{Level: level}
	if format == "json" {
		return slog.NewJSONHandler(&plain{to: to}, o)
	}
	return slog.NewTextHandler(&plain{to: to}, o)
}

// version is the module's, or the commit it was built from.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	if info.Main.Version != "" && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			return s.Value
		}
	}
	return "development"
}
