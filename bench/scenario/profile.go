package scenario

import (
	"context"
	"time"

	"github.com/google/pprof/profile"

	"flashgate/bench/load"
	"flashgate/bench/report"
	"flashgate/bench/system"
)

// Profile is what gateways, workers and a reconciler do with the processor in a storm and
// while everyone buys, for the compiler.
type Profile struct {
	Shoppers int // of the storm, and half as many who buy
	Length   time.Duration
}

// Run runs both, and returns the profile of both and their reports.
func (pr *Profile) Run(ctx context.Context, o *system.Options, p *load.Progress) (*profile.Profile, *report.Report, error) {
	rep := report.New("profile", "")
	var profiles []*profile.Profile
	err := system.With(ctx, o, p, "", func(sys *system.System) error {
		for _, r := range []runner{
			&Accept{Name: "accept", Shoppers: max(1, pr.Shoppers/2), Sales: 1},
			NewStorm(pr.Shoppers),
		} {
			taken, run, err := pr.during(ctx, sys, o, r)
			if err := keep(rep, run, err); err != nil {
				return err
			}
			profiles = append(profiles, taken)
		}
		return nil
	})
	if err != nil {
		return nil, rep, err
	}
	merged, err := profile.Merge(profiles)
	return merged, rep, err
}

// during runs r, and takes a profile beside it.
func (pr *Profile) during(ctx context.Context, sys *system.System, o *system.Options, r runner) (taken *profile.Profile, run *report.Report, err error) {
	type result struct {
		profile *profile.Profile
		err     error
	}
	took := make(chan result, 1)
	go func() {
		p, err := sys.Profile(ctx, pr.Length)
		took <- result{p, err}
	}()
	run, err = r.Run(ctx, sys, o)
	done := <-took
	if err == nil {
		err = done.err
	}
	return done.profile, run, err
}
