package tool

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"flashgate/bench/load"
	"flashgate/bench/report"
	"flashgate/bench/system"
	"flashgate/bench/vegeta"
)

// Vegeta is one attack at a steady rate: an open loop, in which every request is another
// shopper's purchase.
type Vegeta struct {
	Binary   string
	Rate     int // purchases a second
	Duration time.Duration
	Units    int
	Workers  int    // connections at most
	Plot     string // the page with the plot
}

// Check refuses what makes no sense.
func (v *Vegeta) Check() error {
	if v.Rate < 1 || v.Duration < time.Second || v.Units < 1 || v.Workers < 1 {
		return errors.New("--rate, --units and --connections: want 1 or more; --duration: 1s or more")
	}
	if _, err := exec.LookPath(v.Binary); err != nil {
		return fmt.Errorf("%w: `make bench-vegeta` builds one", err)
	}
	return nil
}

// Shoppers is how many buy.
func (v *Vegeta) Shoppers() int { return int(float64(v.Rate) * v.Duration.Seconds()) }

// results is what is read of `vegeta report -type=json`; times are in ns.
type results struct {
	Latencies struct {
		P50 int64 `json:"50th"`
		P90 int64 `json:"90th"`
		P99 int64 `json:"99th"`
		Max int64 `json:"max"`
	} `json:"latencies"`
	Requests    int64            `json:"requests"`
	Rate        float64          `json:"rate"`
	Throughput  float64          `json:"throughput"`
	StatusCodes map[string]int64 `json:"status_codes"`
	Errors      []string         `json:"errors"`
}

// Run is the run.
func (v *Vegeta) Run(ctx context.Context, sys *system.System, o *system.Options) (*report.Report, error) {
	rep := report.New("vegeta", system.NewSaleID("vegeta"))
	sale := system.Sale{ID: rep.Sale, Total: v.Units}
	rep.Set("shoppers", v.Shoppers())
	rep.Set("units", v.Units)
	rep.Set("open loop", fmt.Sprintf("%d/s for %s", v.Rate, v.Duration))
	rep.Set("gateways", len(sys.Gateways))
	shoppers, err := sys.Prepare(ctx, v.Shoppers(), sale)
	if err != nil {
		return nil, err
	}
	targets, answers := filepath.Join(sys.Dir, "targets.json"), filepath.Join(sys.Dir, "answers.bin")
	if err := writeTargets(targets, shoppers, sys.Gateways); err != nil {
		return nil, err
	}
	sys.Progress.Step("vegeta: %d purchases a second for %s", v.Rate, v.Duration)
	workers := strconv.Itoa(v.Workers)
	err = run(ctx, nil, nil, os.Stdout, v.Binary, "attack", "-name", sale.ID, "-format=json", "-targets="+targets, "-lazy",
		"-rate="+strconv.Itoa(v.Rate), "-duration="+v.Duration.String(), "-timeout="+sys.Timeout.String(),
		"-workers="+workers, "-max-workers="+workers, "-connections="+workers, "-output="+answers)
	if err != nil {
		return nil, err
	}
	var text bytes.Buffer
	if err := run(ctx, nil, nil, &text, v.Binary, "report", "-type=json", answers); err != nil {
		return nil, err
	}
	var r results
	if err := json.Unmarshal(text.Bytes(), &r); err != nil {
		return nil, fmt.Errorf("vegeta's report: %w", err)
	}
	if err := v.plot(ctx, answers); err != nil {
		return nil, err
	}
	rep.Set("plot", v.Plot)
	v.check(rep, &r)
	if err := verify(ctx, sys, o, rep, sale, r.StatusCodes["202"], r.StatusCodes["0"]); err != nil {
		return rep, err
	}
	for _, f := range []struct {
		name  string
		nanos int64
	}{{"P50", r.Latencies.P50}, {"P90", r.Latencies.P90}, {"P99", r.Latencies.P99}, {"max", r.Latencies.Max}} {
		rep.Figure("answer "+f.name, float64(f.nanos)/1e6, "ms")
	}
	rep.Figure("requests", float64(r.Requests), "")
	rep.Figure("rate", r.Rate, "/s")
	rep.Figure("accepted", float64(r.StatusCodes["202"]), "")
	rep.Figure("sold out", float64(r.StatusCodes["409"]), "")
	return rep, nil
}

// check holds vegeta's counts to the rules: everyone was answered, and as many bought as
// could.
func (v *Vegeta) check(rep *report.Report, r *results) {
	for _, text := range r.Errors { // each kind once; a refusal is one to vegeta
		if !strings.HasPrefix(text, "409") {
			rep.Faults = append(rep.Faults, text)
		}
	}
	sold, refused := r.StatusCodes["202"], r.StatusCodes["409"]
	if want := min(int64(v.Units), r.Requests); sold != want {
		rep.Breaches.Add("as many are told 202 as there are units", "%d of %d", sold, want)
	}
	// An attack ends by its duration, and may leave its last shopper out.
	if sold+refused != r.Requests {
		rep.Breaches.Add("everyone is told 202 or 409", "%d requests: %v", r.Requests, r.StatusCodes)
	}
}

func writeTargets(file string, shoppers []load.Shopper, gateways []string) error {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600) // it holds tokens
	if err != nil {
		return err
	}
	return errors.Join(vegeta.WriteTargets(f, shoppers, gateways), f.Close())
}

func (v *Vegeta) plot(ctx context.Context, answers string) error {
	if err := os.MkdirAll(filepath.Dir(v.Plot), 0o755); err != nil {
		return err
	}
	f, err := os.Create(v.Plot)
	if err != nil {
		return err
	}
	return errors.Join(run(ctx, nil, nil, f, v.Binary, "plot", "-title", "flashgate", answers), f.Close())
}
