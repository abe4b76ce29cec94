// Command bench is flashgate's load driver. It speaks to a running system from
// outside only, as shoppers and operators do, and it believes nothing: every answer
// is held to the API's promises, every order is looked up by its owner, and every
// run ends with flashgate audit. A run that broke a rule shows no figure.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"flashgate/internal/timerslack"
)

func main() {
	// As flashgate does, so that the bare server, which bench starts, has it too: else it
	// would not be the ceiling.
	if err := timerslack.Adopt(); err != nil {
		fmt.Fprintln(os.Stderr, "bench: goes on with the timer slack it has:", err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := newCommand().ExecuteContext(ctx)
	stop()
	switch {
	case err == nil:
	case errors.Is(err, context.Canceled):
		fmt.Fprintln(os.Stderr, "bench: interrupted, no figures:", err)
		os.Exit(1)
	default:
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}
