// Command flashgate is a flash-sale gateway. See README.md.
package main

import (
	"fmt"
	"os"

	"flashgate/internal/cli"
	"flashgate/internal/timerslack"
)

func main() {
	if err := timerslack.Adopt(); err != nil {
		fmt.Fprintln(os.Stderr, "flashgate: goes on with the timer slack it has:", err)
	}
	os.Exit(cli.Run(os.Args[1:], os.Stdout, os.Stderr))
}
