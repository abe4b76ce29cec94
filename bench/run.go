package main

import (
	"context"
	"io"
	"os"

	"github.com/spf13/cobra"

	"flashgate/bench/load"
	"flashgate/bench/report"
	"flashgate/bench/system"
)

// runScenario runs one scenario against the system that the options name.
func runScenario(o *system.Options, cmd *cobra.Command, shoppers int, run func(context.Context, *system.System, *system.Options) (*report.Report, error)) error {
	return measure(o, cmd, shoppers, func(p *load.Progress) (rep *report.Report, err error) {
		err = system.With(cmd.Context(), o, p, "", func(sys *system.System) error {
			rep, err = run(cmd.Context(), sys, o)
			return rep.Verdict(err)
		})
		return rep, err
	})
}

// measure shows the report of run.
func measure(o *system.Options, cmd *cobra.Command, shoppers int, run func(*load.Progress) (*report.Report, error)) error {
	return prepared(o, cmd, shoppers, func(p *load.Progress) error {
		rep, err := run(p)
		return finish(o, cmd.OutOrStdout(), rep, err)
	})
}

// prepared checks the options, sees to a binary, and then calls do.
func prepared(o *system.Options, cmd *cobra.Command, shoppers int, do func(*load.Progress) error) error {
	if err := o.Check(shoppers); err != nil {
		return err
	}
	if err := o.CheckSystem(); err != nil {
		return err
	}
	p := load.NewProgress(os.Stderr)
	if o.Flashgate == "" {
		p.Step("building flashgate")
		dir, err := os.MkdirTemp("", "flashgate-bench-build-")
		if err != nil {
			return err
		}
		defer func() { _ = os.RemoveAll(dir) }()
		if o.Flashgate, err = system.Build(cmd.Context(), dir); err != nil {
			return err
		}
	}
	return do(p)
}

// finish shows the report of a run that ended with err, and writes it to --json. Of
// a run that failed or broke a rule it shows what was seen, without figures, and
// returns an error.
func finish(o *system.Options, w io.Writer, rep *report.Report, err error) error {
	err = rep.Verdict(err)
	if rep == nil {
		return err
	}
	if err != nil {
		rep.Failure = err.Error()
		rep.DropFigures()
	}
	if err := rep.Print(w); err != nil {
		return err
	}
	if o.JSONFile != "" {
		if err := rep.Write(o.JSONFile); err != nil {
			return err
		}
	}
	return err
}
