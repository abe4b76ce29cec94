package system

import (
	"errors"
	"fmt"
	"time"
)

// Limits of the options: a load that would be more than the machine can hold is
// refused and not tried.
const (
	maxShoppers    = 5_000_000 // some 700 bytes each, with token, key and answers
	maxConnections = 16_384
	maxDuration    = time.Hour
)

// Options are what all scenarios share.
type Options struct {
	Start                     string   // StartNone, StartAuto, StartDaemons or StartEmbedded
	Gateways                  []string // URLs of those that run already
	GatewayCount, WorkerCount int      // of those to start
	Flashgate                 string   // the binary
	Config                    string   // its config file; "" = ConfigFile decides
	Limits                    string   // limitsRaised or LimitsAsIs
	MySQL                     bool
	Own                       bool // a database and a topic of the run's own
	own                       *own // within withOwn
	Connections               int
	Timeout, Drain            time.Duration
	JSONFile                  string
}

// The limits that processes of the run are started with.
const (
	LimitsRaised = "raised"
	LimitsAsIs   = "as-is"
)

// ConfigFile is the config of the options, or the one that is shipped for their Start.
func (o *Options) ConfigFile() string {
	switch {
	case o.Config != "":
		return o.Config
	case o.Start == StartEmbedded:
		return "configs/embedded.yaml"
	default:
		return "configs/local.yaml"
	}
}

// roles names the processes to start; a name is a command and, where there are
// several, a number.
func (o *Options) roles() []string {
	if o.Start == StartEmbedded {
		return []string{"flashgate"}
	}
	var roles []string
	for n := range o.GatewayCount {
		roles = append(roles, fmt.Sprintf("gateway-%d", n+1))
	}
	for n := range o.WorkerCount {
		roles = append(roles, fmt.Sprintf("worker-%d", n+1))
	}
	return append(roles, "reconciler")
}

// Check refuses options that make no sense, before anything is started.
func (o *Options) Check(requests int) error {
	switch {
	case requests < 1 || requests > maxShoppers:
		return fmt.Errorf("want 1–%d shoppers or requests, got %d", maxShoppers, requests)
	case o.Connections < 1 || o.Connections > maxConnections:
		return fmt.Errorf("--connections: want 1–%d, got %d", maxConnections, o.Connections)
	case o.Timeout <= 0:
		return fmt.Errorf("--timeout: want more than 0, got %s", o.Timeout)
	}
	return nil
}

// CheckSystem refuses options of a system that make no sense, and settles StartAuto.
func (o *Options) CheckSystem() error {
	o.ResolveStart()
	switch {
	case o.Start != StartNone && o.Start != StartDaemons && o.Start != StartEmbedded:
		return fmt.Errorf("--start: want none, auto, daemons or embedded, got %q", o.Start)
	case o.Limits != LimitsRaised && o.Limits != LimitsAsIs:
		return fmt.Errorf("--limits: want raised or as-is, got %q", o.Limits)
	case o.Start == StartDaemons && (o.GatewayCount < 1 || o.WorkerCount < 1):
		return errors.New("--gateways and --workers: want 1 or more")
	case o.MySQL && o.Start == StartEmbedded:
		return errors.New("--mysql: an embedded system has its ledger in SQLite")
	case o.MySQL && secret(o.ConfigFile(), EnvMySQLDSN) == "":
		return errors.New("--mysql: " + EnvMySQLDSN + " is not set; after make up: set -a && . .run/env && set +a")
	case o.Drain <= 0:
		return fmt.Errorf("--drain: want more than 0, got %s", o.Drain)
	}
	return nil
}
