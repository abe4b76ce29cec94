package main

import (
	"context"
	"io"
	"os"

	"github.com/spf13/cobra"
)

// scenario runs one scenario against the system that the options name.
func (o *options) scenario(cmd *cobra.Command, shoppers int, run func(context.Context, *system, *options) (*report, error)) error {
	return o.measure(cmd, shoppers, func(p *progress) (rep *report, err error) {
		err = withSystem(cmd.Context(), o, p, "", func(sys *system) error {
			rep, err = run(cmd.Context(), sys, o)
			return rep.verdict(err)
		})
		return rep, err
	})
}

// measure checks the options, sees to a binary, and shows the report of run.
func (o *options) measure(cmd *cobra.Command, shoppers int, run func(*progress) (*report, error)) error {
	if err := o.check(shoppers); err != nil {
		return err
	}
	if err := o.checkSystem(); err != nil {
		return err
	}
	p := newProgress(os.Stderr)
	if o.flashgate == "" {
		p.step("building flashgate")
		dir, err := os.MkdirTemp("", "flashgate-bench-build-")
		if err != nil {
			return err
		}
		defer func() { _ = os.RemoveAll(dir) }()
		if o.flashgate, err = buildFlashgate(cmd.Context(), dir); err != nil {
			return err
		}
	}
	rep, err := run(p)
	return o.finish(cmd.OutOrStdout(), rep, err)
}

// finish shows the report of a run that ended with err, and writes it to --json. Of
// a run that failed or broke a rule it shows what was seen, without figures, and
// returns an error.
func (o *options) finish(w io.Writer, rep *report, err error) error {
	err = rep.verdict(err)
	if rep == nil {
		return err
	}
	if err != nil {
		rep.Failure = err.Error()
		rep.dropFigures()
	}
	if err := rep.print(w); err != nil {
		return err
	}
	if o.jsonFile != "" {
		if err := rep.write(o.jsonFile); err != nil {
			return err
		}
	}
	return err
}
