package main

import "context"

// compareBatch runs accept twice with one build: with the batches of the config,
// and with one half message an order.
func compareBatch(ctx context.Context, ac *accept, o *options, p *progress) (*report, error) {
	rep := newReport("compare-batch", "")
	for _, batchMax := range []string{"", "1"} {
		err := withSystem(ctx, o, p, batchMax, func(sys *system) error {
			run, err := ac.run(ctx, sys, o)
			if run == nil {
				return err
			}
			shown := batchMax
			if shown == "" {
				shown = "as configured"
			}
			run.set("batch.max", shown)
			rep.Runs = append(rep.Runs, run)
			return run.verdict(err)
		})
		if err != nil {
			return rep, err
		}
	}
	batched, single := rep.Runs[0].value(figureAccepted), rep.Runs[1].value(figureAccepted)
	rep.figure("accepted, as configured", batched, "/s")
	rep.figure("accepted, batch.max 1", single, "/s")
	rep.figure("ratio", batched/single, "×")
	return rep, nil
}
