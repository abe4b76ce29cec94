package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"flashgate/internal/config"
)

// readyTimeoutSeconds is more than a daemon takes to ask its engines.
const readyTimeoutSeconds = 4

func readyCommand(f *flags) *cobra.Command {
	c := &cobra.Command{
		Use: "ready", Short: "Ask a running daemon whether it is ready; exit 1 and say what it lacks", GroupID: "jobs", Args: cobra.NoArgs,
		Long: `Asks the daemon whose operators' port the config names (operators_listen), or
--operators-listen, for /readyz: what a health check can run where there is no shell.`,
		RunE: f.with(localConfig, func(cmd *cobra.Command, c *config.Config) error {
			if err := askReady(cmd.Context(), c.OperatorsListen); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), "ready")
			return nil
		}),
	}
	c.Flags().StringVar(&f.operatorsListen, "operators-listen", "", "host:port of the daemon's operators' port, in place of the config's")
	return c
}

// askReady is nil when the daemon at address has all it needs.
func askReady(ctx context.Context, address string) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeoutSeconds*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/readyz", nil)
	if err != nil {
		return err
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		return fmt.Errorf("no daemon answers: %w", err)
	}
	defer answer.Body.Close()
	var said struct {
		Ready bool     `json:"ready"`
		Lacks []string `json:"lacks"`
	}
	if err := json.NewDecoder(answer.Body).Decode(&said); err != nil {
		return fmt.Errorf("%s is no operators' port: %s", address, answer.Status)
	}
	if !said.Ready {
		return fmt.Errorf("not ready: %s", strings.Join(said.Lacks, "; "))
	}
	return nil
}
