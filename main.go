// Command flashgate is a flash-sale gateway. See README.md.
package main

import (
	"os"
	"time"

	"flashgate/internal/cli"
	"flashgate/internal/timerslack"
)

// slack is how late timers may be: less than any wait for the engines or the network.
const slack = 500 * time.Microsecond

func main() {
	timerslack.Adopt(slack)
	os.Exit(cli.Run(os.Args[1:], os.Stdout, os.Stderr))
}
