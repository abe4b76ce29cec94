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
	"time"

	"flashgate/internal/timerslack"
)

// slack of timers is as flashgate's own, and the bare server's, which bench starts, is too:
// else it would not be the ceiling.
const slack = 500 * time.Microsecond

func main() {
	timerslack.Adopt(slack)
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
