package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"flashgate/bench/system"
)

func loadFlags(o *system.Options, cmd *cobra.Command) {
	f := cmd.Flags()
	f.IntVar(&o.Connections, "connections", 256, "connections in all; each sends when its last request was answered")
	f.DurationVar(&o.Timeout, "timeout", 10*time.Second, "for one answer; later is no answer")
	f.StringVar(&o.JSONFile, "json", "", "write the report to this file too")
}

func systemFlags(o *system.Options, cmd *cobra.Command, start string) {
	f := cmd.Flags()
	f.StringVar(&o.Start, "start", start, "none (use --gateway), daemons, embedded, or auto: daemons if the engines of --config answer, or else embedded")
	f.StringSliceVar(&o.Gateways, "gateway", []string{"http://127.0.0.1:8080"}, "URL of a running gateway; may be repeated, requests go round")
	f.StringVar(&o.Flashgate, "flashgate", "", "the flashgate binary (default: built from this module)")
	f.StringVar(&o.Config, "config", "", "config file (default: configs/embedded.yaml for --start embedded, else configs/local.yaml)")
	f.IntVar(&o.GatewayCount, "gateways", 2, "gateways that --start daemons starts")
	f.IntVar(&o.WorkerCount, "workers", 2, "workers that --start daemons starts")
	f.StringVar(&o.Limits, "limits", system.LimitsRaised, "limits of what --start starts: raised (one machine plays all shoppers) or as-is")
	f.BoolVar(&o.Own, "own", start == system.StartAuto, "on the real engines, use a database and a topic of the run's own, and leave nothing behind")
	f.BoolVar(&o.MySQL, "mysql", false, "count the rows in MySQL too, with the DSN in "+system.EnvMySQLDSN)
	f.DurationVar(&o.Drain, "drain", 2*time.Minute, "how long the orders may take to the ledger after the burst")
}

// countList is a flag of numbers with commas between; "" is none, which pflag's own
// refuses.
type countList []int

func counts(f *pflag.FlagSet, to *[]int, name string, value []int, usage string) {
	*to = value
	f.Var((*countList)(to), name, usage)
}

func (l *countList) Type() string { return "ints" }

func (l *countList) String() string {
	return strings.Trim(strings.ReplaceAll(fmt.Sprint([]int(*l)), " ", ","), "[]")
}

func (l *countList) Set(text string) error {
	*l = nil
	if text == "" {
		return nil
	}
	for part := range strings.SplitSeq(text, ",") {
		n, err := strconv.Atoi(strings.TrimSpace(part))
		if err != nil {
			return err
		}
		*l = append(*l, n)
	}
	return nil
}
