package tool

import (
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

	"flashgate/bench/report"
	"flashgate/bench/system"
)

// K6 is one run of one of the scripts in bench/k6.
type K6 struct {
	Binary   string
	Script   string // opening, storm or soak
	Folder   string // where the scripts are
	Shoppers int
	Units    int           // 0 = what suits the script
	Rate     int           // arrivals a second: at the peak of opening, all along in soak; 0 = what suits the script
	Duration time.Duration // of soak
	VUs      int           // virtual users at most, each with a connection
}

// The scripts.
const (
	Opening = "opening"
	Storm   = "storm"
	Soak    = "soak"
)

// openingAfter is when the sale of an opening begins: k6 needs some seconds to start.
const openingAfter = 12 * time.Second

// Check refuses what makes no sense.
func (k *K6) Check() error {
	switch {
	case k.Script != Opening && k.Script != Storm && k.Script != Soak:
		return fmt.Errorf("want one of %s, %s and %s, got %q", Opening, Storm, Soak, k.Script)
	case k.Units < 0 || k.Rate < 0 || k.VUs < 1 || k.Duration <= 0:
		return errors.New("--vus and --duration: want more than 0; --rate and --units: 0 or more")
	}
	if _, err := exec.LookPath(k.Binary); err != nil {
		return fmt.Errorf("%w: `make bench-k6` builds one", err)
	}
	return nil
}

// What suits the scripts: two cores that run everything manage the rates with much to
// spare, and a storm is sold out long before it is over.
const (
	openingRate = 500
	soakRate    = 200
	stormUnits  = 1_000
)

// rate is the arrivals a second.
func (k *K6) rate() int {
	switch {
	case k.Rate > 0:
		return k.Rate
	case k.Script == Soak:
		return soakRate
	default:
		return openingRate
	}
}

// units is how many there are: a soak has one for everybody, an opening is sold out in
// its first seconds.
func (k *K6) units() int {
	switch {
	case k.Units > 0:
		return k.Units
	case k.Script == Soak:
		return max(1, int(float64(k.rate())*k.Duration.Seconds()))
	case k.Script == Opening:
		return max(1, k.rate()/10)
	default:
		return stormUnits
	}
}

// summary is what is read of k6's --summary-export.
type summary struct {
	Metrics map[string]struct {
		Count *float64 `json:"count"`
		P99   *float64 `json:"p(99)"`
		P50   *float64 `json:"med"`
		Rate  *float64 `json:"rate"`
	} `json:"metrics"`
}

func (s *summary) count(name string) int64 {
	if m := s.Metrics[name]; m.Count != nil {
		return int64(*m.Count)
	}
	return 0
}

// Run is the run: k6's own table goes to stdout, and its thresholds are rules of the run.
func (k *K6) Run(ctx context.Context, sys *system.System, o *system.Options) (*report.Report, error) {
	rep := report.New("k6 "+k.Script, system.NewSaleID("k6"))
	secret := sys.Secret(system.EnvJWTSecret)
	if secret == "" {
		return nil, errors.New(system.EnvJWTSecret + " is not to be had: k6 signs its shoppers' tokens itself")
	}
	sale := system.Sale{ID: rep.Sale, Total: k.units()}
	starts := int64(0)
	if k.Script == Opening {
		sale.StartsAt = time.Now().Add(openingAfter)
		starts = sale.StartsAt.UnixMilli()
	}
	rep.Set("units", sale.Total)
	rep.Set("gateways", len(sys.Gateways))
	if err := sys.Open(ctx, sale); err != nil {
		return nil, err
	}
	urls := make([]string, len(sys.Gateways))
	for i, addr := range sys.Gateways {
		urls[i] = "http://" + addr
	}
	export := filepath.Join(sys.Dir, "k6.json")
	sys.Progress.Step("k6 %s", k.Script)
	ended := run(ctx, []string{
		"GATEWAYS=" + strings.Join(urls, ","), "SALE=" + sale.ID, system.EnvJWTSecret + "=" + secret,
		"SHOPPERS=" + strconv.Itoa(k.Shoppers), "RATE=" + strconv.Itoa(k.rate()), "VUS=" + strconv.Itoa(k.VUs),
		"DURATION=" + k.Duration.String(), "STARTS_AT_MS=" + strconv.FormatInt(starts, 10), "K6_NO_USAGE_REPORT=true",
	}, nil, os.Stdout, k.Binary, "run", "--quiet", "--no-color", "--summary-trend-stats", "med,p(90),p(99),max", "--summary-export", export,
		filepath.Join(k.Folder, k.Script+".js"))
	text, err := os.ReadFile(export)
	if err != nil {
		return rep, errors.Join(ended, err)
	}
	var s summary
	if err := json.Unmarshal(text, &s); err != nil {
		return rep, fmt.Errorf("k6's summary: %w", err)
	}
	if ended != nil {
		// Also a threshold that was missed: k6 has said above which.
		rep.Breaches.Add("k6's thresholds hold", "%v", ended)
	}
	if err := verify(ctx, sys, o, rep, sale, s.count("purchases_accepted"), s.count("purchases_unanswered")); err != nil {
		return rep, err
	}
	for _, name := range []string{"purchases_accepted", "purchases_replayed", "purchases_sold_out", "purchases_not_started", "purchases_unavailable", "purchases_outcome_unknown", "pages", "dropped_iterations"} {
		if n := s.count(name); n > 0 {
			rep.Figure(strings.ReplaceAll(name, "_", " "), float64(n), "")
		}
	}
	for _, name := range []string{"purchase_ms", "page_ms", "persisted_ms"} {
		if m := s.Metrics[name]; m.P99 != nil && m.P50 != nil {
			rep.Figure(strings.TrimSuffix(name, "_ms")+" P50", *m.P50, "ms")
			rep.Figure(strings.TrimSuffix(name, "_ms")+" P99", *m.P99, "ms")
		}
	}
	if m := s.Metrics["http_reqs"]; m.Rate != nil {
		rep.Figure("requests", *m.Rate, "/s over the whole run")
	}
	return rep, nil
}
