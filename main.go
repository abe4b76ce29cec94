// Command flashgate is a flash-sale gateway. See README.md.
package main

import (
	"os"

	"flashgate/internal/cli"
)

func main() { os.Exit(cli.Run(os.Args[1:], os.Stdout, os.Stderr)) }
