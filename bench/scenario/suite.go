package scenario

import (
	"context"
	"fmt"
	"time"

	"flashgate/bench/bare"
	"flashgate/bench/load"
	"flashgate/bench/report"
	"flashgate/bench/system"
)

// Suite is everything in one run on one machine: scenarios, baselines, and the ratios
// between them, which are what can be compared elsewhere.
type Suite struct {
	Repeat int     // of what the ratios are made of, interleaved: machines drift
	Size   float64 // of all counts; 1 = with five repeats some six minutes on two cores
}

const (
	maxRepeat = 20
	minSize   = 0.001
	maxSize   = 50
)

// Check refuses what makes no sense.
func (su *Suite) Check() error {
	if su.Repeat < 1 || su.Repeat > maxRepeat || su.Size < minSize || su.Size > maxSize {
		return fmt.Errorf("want 1–%d repeats and a size of %g–%d", maxRepeat, minSize, maxSize)
	}
	return nil
}

// Shoppers is the most that a run of the suite has.
func (su *Suite) Shoppers() int { return su.sized(stormShoppers) }

// The counts at size 1: each run takes some seconds on two cores.
const (
	helloRequests     = 300_000
	stormShoppers     = 100_000 // for 1,000 units
	stormPercent      = 1       // units of a hundred shoppers
	stormSends        = 2
	acceptShoppers    = 60_000
	engineWarmup      = 25_000 // half messages: a JVM compiles well what it has run some ten thousand times
	acceptWarmup      = 4_000
	singleWarmup      = 1_000
	singleShoppers    = 10_000
	duplicateShoppers = 12_000
	duplicateSends    = 5
	spreadShoppers    = 20_000
	manySales         = 200
	mixedPeak         = 8_000
	bareRedisCalls    = 200_000
	bareRows          = 200_000
	bareHalves        = 10_000
)

func (su *Suite) sized(n int) int { return max(1, int(float64(n)*su.Size)) }

// NewStorm is a storm of so many shoppers for 1 % as many units.
func NewStorm(shoppers int) *Sends {
	return &Sends{Name: "storm", Shoppers: shoppers, Total: max(1, shoppers*stormPercent/hundred), Sends: stormSends}
}

// NewDuplicates is so many shoppers who all buy, five times each.
func NewDuplicates(shoppers int) *Sends {
	return &Sends{Name: "duplicates", Shoppers: shoppers, Total: shoppers, Sends: duplicateSends}
}

// NewWave is the wave of a sale with so many arrivals in its opening second.
func NewWave(peak float64) Wave {
	return Wave{Peak: peak, Quiet: peak / 20, Lead: 3 * time.Second, Half: 1500 * time.Millisecond, Tail: 6 * time.Second}
}

// runner is a scenario on a system.
type runner interface {
	Run(ctx context.Context, sys *system.System, o *system.Options) (*report.Report, error)
}

// Run is the whole. What is in the report up to an error stands.
func (su *Suite) Run(ctx context.Context, o *system.Options, p *load.Progress) (*report.Report, error) {
	began := time.Now()
	rep := report.New("all", "")
	rep.Set("engines", map[bool]string{true: "embedded", false: "real"}[o.Start == system.StartEmbedded])
	rep.Set("connections", o.Connections)
	if o.Start == system.StartDaemons {
		rep.Set("daemons", fmt.Sprintf("%d gateways, %d workers, 1 reconciler", o.GatewayCount, o.WorkerCount))
	}
	rep.Set("repeats", su.Repeat)

	p.Step("warming up the engines")
	for _, warm := range []struct {
		batchMax string
		shoppers int
	}{{"1", engineWarmup}, {"", acceptShoppers}} { // messages small and large: what is compiled for one is not for the other
		err := su.on(ctx, o, p, warm.batchMax, report.New("warm-up", ""), &Accept{Name: "warm-up", Shoppers: su.sized(warm.shoppers), Sales: 1})
		if err != nil {
			return rep, err
		}
	}
	warmup := su.sized(acceptWarmup)
	for n := range su.Repeat {
		p.Step("repeat %d of %d, after %s", n+1, su.Repeat, time.Since(began).Round(time.Second))
		hello := &Hello{Requests: su.sized(helloRequests)}
		run, err := hello.Run(ctx, o, p)
		if err := keep(rep, run, err); err != nil {
			return rep, err
		}
		err = su.on(ctx, o, p, "", rep,
			&Accept{Name: "accept", Shoppers: su.sized(acceptShoppers), Sales: 1, Warmup: warmup},
			NewStorm(su.sized(stormShoppers)),
			NewDuplicates(su.sized(duplicateShoppers)))
		if err != nil {
			return rep, err
		}
		// Again, since machines have moods of seconds: the ceiling of a repeat is what it was
		// before and after.
		run, err = hello.Run(ctx, o, p)
		if err := keep(rep, run, err); err != nil {
			return rep, err
		}
		err = su.on(ctx, o, p, "1", rep,
			&Accept{Name: singleName, Shoppers: su.sized(singleShoppers), Sales: 1, Warmup: su.sized(singleWarmup)})
		if err != nil {
			return rep, err
		}
	}
	p.Step("one sale and many, and the wave of a real one")
	spread := su.sized(spreadShoppers)
	err := su.on(ctx, o, p, "", rep,
		&Accept{Name: "hot", Shoppers: spread, Sales: 1, Warmup: warmup},
		&Accept{Name: "many", Shoppers: spread, Sales: min(manySales, spread)},
		&Mixed{Wave: NewWave(max(50, mixedPeak*su.Size)), PageReads: 90, Units: 20})
	if err != nil {
		return rep, err
	}
	if err := su.bare(ctx, o, p, rep); err != nil {
		return rep, err
	}
	ratios(rep, su.Repeat, o.Start != system.StartEmbedded)
	rep.Set("took", time.Since(began).Round(time.Second).String())
	return rep, nil
}

// on runs scenarios one after the other on one system.
func (su *Suite) on(ctx context.Context, o *system.Options, p *load.Progress, batchMax string, rep *report.Report, runs ...runner) error {
	return system.With(ctx, o, p, batchMax, func(sys *system.System) error {
		for _, r := range runs {
			run, err := r.Run(ctx, sys, o)
			if batchMax != "" && run != nil {
				run.Set("batch.max", batchMax)
			}
			if err := keep(rep, run, err); err != nil {
				return err
			}
		}
		return nil
	})
}

// keep puts a run into the report, and returns why it is not good.
func keep(rep, run *report.Report, err error) error {
	if run == nil {
		return err
	}
	rep.Runs = append(rep.Runs, run)
	if err = run.Verdict(err); err != nil {
		run.Failure = err.Error()
		return fmt.Errorf("%s: %w", run.Scenario, err)
	}
	return nil
}

// bare measures the engines by themselves.
func (su *Suite) bare(ctx context.Context, o *system.Options, p *load.Progress, rep *report.Report) error {
	return system.WithEngines(ctx, o, p, func(sys *system.System) error {
		options := bare.Options{Connections: o.Connections, Calls: su.sized(bareRedisCalls), Progress: p}
		run, err := bare.Redis(ctx, options, sys.Redis())
		if err := keep(rep, run, err); err != nil {
			return err
		}
		dsn := ""
		if sys.Redis() != nil {
			dsn = sys.Secret(system.EnvMySQLDSN)
		}
		options.Calls = su.sized(bareRows)
		run, err = bare.SQL(ctx, options, dsn, sys.Dir)
		if err := keep(rep, run, err); err != nil {
			return err
		}
		options.Calls = su.sized(bareHalves)
		run, err = bare.Bus(ctx, options, sys.NameServers(), sys.Dir)
		return keep(rep, run, err)
	})
}

// singleName is the run with one half message an order.
const singleName = "accept, batch.max 1"

// ratios adds what the figures of each repeat are to each other. The targets are of real
// engines.
func ratios(rep *report.Report, repeats int, targets bool) {
	sheet := rep.Sheet()
	add := func(name, over, under, unit string, target *report.Target) {
		if !targets {
			target = nil
		}
		top, known := report.Of(sheet, over)
		bottom := report.Measured{Values: []float64{1}}
		if known && under != "" {
			bottom, known = report.Of(sheet, under)
		}
		if !known {
			return
		}
		of := bottom.Repeats(repeats)
		for n, value := range top.Repeats(repeats) {
			if value != 0 && of[n] != 0 {
				rep.Figures = append(rep.Figures, report.Figure{Name: name, Value: value / of[n], Unit: unit, Target: target})
			}
		}
	}
	add("storm ÷ hello", "storm · answers", "hello · answers", "×", report.AtLeast(0.75, 0.95))
	add("storm P99 ÷ hello P99", "storm · answer P99", "hello · answer P99", "×", report.AtMost(2, 1.2))
	add("accepted ÷ one half message an order", "accept · accepted", singleName+" · accepted", "×", report.AtLeast(8, 15))
	add("accepted ÷ hello", "accept · accepted", "hello · answers", "×", report.AtLeast(0.25, 0.45))
	add("persisted ÷ bare bulk insert", "accept · persisted", "bare bulk insert · rows", "×", report.AtLeast(0.12, 0.35))
	add("drain ÷ burst", "accept · drain", "accept · burst", "×", report.AtMost(1, 0.2))
	add("Redis memory", "accept · "+FigureMemory, "", "B a settled order", report.AtMost(200, 150))
	add("duplicates ÷ accept", "duplicates · answers", "accept · accepted", "×", report.AtLeast(1, 1.5))
	add("accepted ÷ bare EVALSHA", "accept · accepted", "bare EVALSHA · sold", "×", nil)
	add("accepted ÷ bare half messages", "accept · accepted", "bare half messages · half messages", "×", nil)
	add("many ÷ hot", "many · accepted", "hot · accepted", "×", nil)
}

// Builds runs storm and accept on two builds of flashgate by turns, and returns a report
// of each: medians of interleaved repeats tell a change from the machine's moods.
func (su *Suite) Builds(ctx context.Context, o *system.Options, p *load.Progress, flashgates [2]string) (reps [2]*report.Report, err error) {
	for i, flashgate := range flashgates {
		reps[i] = report.New("build", "")
		reps[i].Set("flashgate", flashgate)
	}
	for n := range su.Repeat {
		for turn := range flashgates {
			i := (turn + n) % len(flashgates) // neither is always the first
			p.Step("repeat %d of %d: %s", n+1, su.Repeat, flashgates[i])
			one := *o
			one.Flashgate = flashgates[i]
			err := su.on(ctx, &one, p, "", reps[i],
				&Accept{Name: "accept", Shoppers: su.sized(acceptShoppers), Sales: 1, Warmup: su.sized(acceptWarmup)},
				NewStorm(su.sized(stormShoppers)))
			if err != nil {
				return reps, fmt.Errorf("%s: %w", flashgates[i], err)
			}
		}
	}
	return reps, nil
}
