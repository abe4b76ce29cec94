// Package tool loads flashgate with load generators that others made, k6 and vegeta, and
// ends each run with the same checks as the driver's own.
package tool

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"time"

	"flashgate/bench/report"
	"flashgate/bench/system"
)

const (
	stopSeconds   = 30 // from SIGTERM: k6 ends what is under way
	maxRunMinutes = 60
)

// RuleKept is the rule that the tool's own count is held to.
const RuleKept = "the ledger has sold what the tool was told 202 for [2]"

// run runs a tool's command to its end.
func run(ctx context.Context, env []string, stdin io.Reader, stdout io.Writer, name string, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, maxRunMinutes*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, stdout, os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = stopSeconds * time.Second
	if err := cmd.Run(); err != nil {
		if errors.Is(ctx.Err(), context.Canceled) {
			return context.Canceled
		}
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// verify audits the sale and holds the ledger against what the tool counted: it may have
// sold more, if answers were lost on their way, and never less.
func verify(ctx context.Context, sys *system.System, o *system.Options, rep *report.Report, sale system.Sale, accepted, lost int64) error {
	sold, after, bs, err := sys.AwaitAudit(ctx, o, sale)
	rep.Breaches = append(rep.Breaches, bs...)
	if err != nil {
		return err
	}
	rep.Audit = after.Audit
	rep.Set("audited", fmt.Sprintf("%d of %d orders across both stores", after.Compared, sold))
	if sold < accepted || sold > accepted+lost {
		rep.Breaches.Add(RuleKept, "%d accepted, %d without an answer, %d sold in the ledger", accepted, lost, sold)
	}
	return nil
}
