package scenario

import (
	"context"

	"flashgate/bench/load"
	"flashgate/bench/report"
	"flashgate/bench/system"
)

// CompareBatch runs accept twice with one build: with the batches of the config,
// and with one half message an order.
func CompareBatch(ctx context.Context, ac *Accept, o *system.Options, p *load.Progress) (*report.Report, error) {
	rep := report.New("compare-batch", "")
	for _, batchMax := range []string{"", "1"} {
		err := system.With(ctx, o, p, batchMax, func(sys *system.System) error {
			run, err := ac.Run(ctx, sys, o)
			if run == nil {
				return err
			}
			shown := batchMax
			if shown == "" {
				shown = "as configured"
			}
			run.Set("batch.max", shown)
			rep.Runs = append(rep.Runs, run)
			return run.Verdict(err)
		})
		if err != nil {
			return rep, err
		}
	}
	batched, single := rep.Runs[0].Value(FigureAccepted), rep.Runs[1].Value(FigureAccepted)
	rep.Figure("accepted, as configured", batched, "/s")
	rep.Figure("accepted, batch.max 1", single, "/s")
	rep.Figure("ratio", batched/single, "×")
	return rep, nil
}
