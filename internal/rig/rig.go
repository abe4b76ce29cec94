// Package rig runs the real engines on one machine: a Redis Cluster, RocketMQ,
// MariaDB and, where it can be had, MySQL. They run as the calling user, listen
// on 127.0.0.1, keep their data under one directory and outlive the program that
// started them. Nothing restarts them: a fault test kills one process and starts
// it again by the same command line.
package rig

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// lockWaitSeconds bounds the wait for another start or stop of the same rig; the
// first start of all downloads the engines.
const lockWaitSeconds = 900

// Ports are the ports of a rig. Beside each of Redis's there is its bus port,
// 10000 above; the broker also takes Broker-2 and Broker+1.
type Ports struct {
	Redis   int `json:"redis"` // the first of six
	Namesrv int `json:"namesrv"`
	Broker  int `json:"broker"`
	MariaDB int `json:"mariadb"`
	MySQL   int `json:"mysql"`
}

// HandPorts are those of `make up`, which configs/local.yaml names.
var HandPorts = Ports{Redis: 7001, Namesrv: 9876, Broker: 10911, MariaDB: 13306, MySQL: 13307}

// TestPorts are those of `make test`. They share none with HandPorts, bus ports
// included: both sets may be up at once.
var TestPorts = Ports{Redis: 7101, Namesrv: 19876, Broker: 20911, MariaDB: 23306, MySQL: 23307}

// faultPorts are the sets for fault tests, which kill their engines while other tests
// run on theirs: so many may run on one machine at a time.
var faultPorts = []Ports{
	{Redis: 7201, Namesrv: 18876, Broker: 21911, MariaDB: 22306, MySQL: 22307},
	{Redis: 7301, Namesrv: 18886, Broker: 21921, MariaDB: 22316, MySQL: 22317},
	{Redis: 7401, Namesrv: 18896, Broker: 21931, MariaDB: 22326, MySQL: 22327},
	{Redis: 7501, Namesrv: 18906, Broker: 21941, MariaDB: 22336, MySQL: 22337},
}

// Options say what to run and where.
type Options struct {
	Dir   string `json:"dir"`   // data, logs, pid files and the env file
	Cache string `json:"cache"` // what was downloaded: RocketMQ's jars, MySQL
	POM   string `json:"pom"`   // the Maven file that names RocketMQ's jars
	Ports Ports  `json:"ports"`
	MySQL bool   `json:"mysql"` // run real MySQL too, if it can be had
	// Front, when not empty, is the address by which Redis's nodes and the broker tell
	// others to reach them, on the ports that they have on 127.0.0.1: whoever gives it
	// passes connections on from there, and may cut them. Such as 127.0.0.2.
	Front string `json:"front,omitempty"`
	// CheckBackSeconds is the age at which the broker asks about a half message; 0 = 6.
	CheckBackSeconds int `json:"check_back_seconds,omitempty"`
	// QuickStart is for engines that are killed and started often: the broker starts on
	// half the processor time, and serves less than it could.
	QuickStart bool `json:"quick_start,omitempty"`
	// Fresh stops what runs from Dir and begins with no data.
	Fresh bool      `json:"-"`
	Log   io.Writer `json:"-"` // progress lines; nil for none
}

// Rig is a set of engines.
type Rig struct {
	options Options
	secrets secrets
	engines []engine
	// strays run from Dir but belong to no engine of these options.
	strays []*Process

	mu               sync.Mutex // guards all below, and writes to the log and the state file
	mysql            *sqlServer
	mysqlUnavailable string
}

// engine is one of the products: one process or several.
type engine interface {
	name() string
	where() string
	processes() []*Process
	// start starts the processes that are not running, after getting what they
	// need. It leaves alone those that are.
	start(ctx context.Context) error
	// ready waits until clients are served.
	ready(ctx context.Context) error
}

// progress writes one line: an engine, what about it, and how long it took.
type progress func(engine, what, took string)

// state is what the state file keeps for Attach.
type state struct {
	Options          Options    `json:"options"`
	Processes        []*Process `json:"processes"`
	MySQLUnavailable string     `json:"mysql_unavailable,omitempty"`
}

// ErrNotUp says that no engine was started from the directory.
var ErrNotUp = errors.New("the engines are not up")

// Up starts the engines that are not running and waits until all are ready. On
// an error those that were started keep running: Down stops them. The rig is nil
// when none was tried.
func Up(ctx context.Context, options Options) (*Rig, error) {
	for _, path := range []*string{&options.Dir, &options.Cache, &options.POM} {
		abs, err := filepath.Abs(*path)
		if err != nil {
			return nil, err
		}
		*path = abs
	}
	for _, dir := range []string{options.Dir, options.Cache} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
	}
	unlock, err := Lock(ctx, lockFile(options.Dir), options.Log)
	if err != nil {
		return nil, err
	}
	defer unlock()

	before, err := readState(options.Dir)
	if err != nil && !errors.Is(err, ErrNotUp) {
		return nil, err
	}
	if options.Fresh {
		// Left over by a run that was killed.
		if err := stopAll(ctx, before.Processes, (*Process).killIfRunning, func(string, string, string) {}); err != nil {
			return nil, err
		}
		before = state{}
		if err := wipe(options.Dir); err != nil {
			return nil, err
		}
	}
	r, err := build(options, before)
	if err != nil {
		return nil, err
	}
	if err := r.save(); err != nil {
		return nil, err
	}

	var wait sync.WaitGroup
	failures := make([]error, len(r.engines))
	for i, e := range r.engines {
		wait.Go(func() { failures[i] = r.bring(ctx, e) })
	}
	if options.MySQL {
		wait.Go(func() { r.bringMySQL(ctx, before) })
	}
	wait.Wait()
	return r, errors.Join(errors.Join(failures...), r.save())
}

// Attach returns the rig that was started from dir, or ErrNotUp. It starts
// nothing: its processes may have died since.
func Attach(dir string, log io.Writer) (*Rig, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	saved, err := readState(dir)
	if err != nil {
		return nil, err
	}
	saved.Options.Log = log
	r, err := build(saved.Options, saved)
	if err != nil {
		return nil, err
	}
	r.mysqlUnavailable = saved.MySQLUnavailable
	if saved.Options.MySQL && saved.MySQLUnavailable == "" {
		r.mysql, err = newMySQL(context.Background(), dir, saved.Options.Cache, saved.Options.Ports.MySQL, r.secrets.password, r.progress)
		if err != nil {
			return nil, err
		}
		r.adopt(saved, r.mysql.processes())
	}
	return r, nil
}

// build makes the engines' handles. Processes that run already keep the command
// line they were started by, which an earlier version of this code may have made.
func build(options Options, before state) (*Rig, error) {
	r := &Rig{options: options}
	ports := options.Ports
	secrets, err := loadSecrets(envFile(options.Dir), ports.MariaDB)
	if err != nil {
		return nil, err
	}
	r.secrets = secrets

	redis, redisErr := newRedisCluster(options.Dir, ports.Redis, options.Front)
	broker, brokerErr := newRocketMQ(&options, r.progress)
	mariadb, mariadbErr := newMariaDB(options.Dir, ports.MariaDB, secrets.password)
	if err := errors.Join(redisErr, brokerErr, mariadbErr); err != nil {
		return nil, err
	}
	r.engines = []engine{redis, broker, mariadb}

	known := map[string]bool{}
	for _, e := range r.engines {
		r.adopt(before, e.processes())
		for _, p := range e.processes() {
			known[p.Name] = true
		}
	}
	known[mysqlName] = options.MySQL // adopted when it is there
	for _, p := range before.Processes {
		if !known[p.Name] && p.PID() != 0 {
			r.strays = append(r.strays, p)
		}
	}
	return r, nil
}

func (r *Rig) adopt(before state, processes []*Process) {
	for _, p := range processes {
		i := slices.IndexFunc(before.Processes, func(old *Process) bool { return old.Name == p.Name })
		if i >= 0 && before.Processes[i].PID() != 0 {
			*p = *before.Processes[i]
		}
	}
}

func (r *Rig) bring(ctx context.Context, e engine) error {
	began := time.Now()
	started := slices.ContainsFunc(e.processes(), func(p *Process) bool { return p.PID() == 0 })
	err := e.start(ctx)
	if err == nil {
		err = e.ready(ctx)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", e.name(), err)
	}
	took := "already up"
	if started {
		took = fmt.Sprintf("ready in %.1fs", time.Since(began).Seconds())
	}
	r.progress(e.name(), e.where(), took)
	return nil
}

// bringMySQL never fails the rig: MySQL comes from a distribution that changes
// daily and can't be had everywhere. What went wrong is kept for the reader.
func (r *Rig) bringMySQL(ctx context.Context, before state) {
	unavailable := func(err error) {
		r.mu.Lock()
		r.mysqlUnavailable = err.Error()
		r.mu.Unlock()
		if ctx.Err() == nil {
			r.progress(mysqlName, "not to be had here", "goes on without")
		}
	}
	m, err := newMySQL(ctx, r.options.Dir, r.options.Cache, r.options.Ports.MySQL, r.secrets.password, r.progress)
	if err != nil {
		unavailable(err)
		return
	}
	r.adopt(before, m.processes())
	r.mu.Lock()
	r.mysql = m
	r.mu.Unlock()
	if err := r.save(); err != nil {
		unavailable(err)
		return
	}
	if err := r.bring(ctx, m); err != nil {
		unavailable(err)
	}
}

// MySQLUnavailable is why there is no real MySQL, or "".
func (r *Rig) MySQLUnavailable() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mysqlUnavailable == "" && !r.options.MySQL {
		return "these engines were started without it"
	}
	return r.mysqlUnavailable
}

// Ready waits until every engine serves clients, for instance after a fault test
// started a process again.
func (r *Rig) Ready(ctx context.Context) error {
	var failures []error
	for _, e := range r.engines {
		if err := e.ready(ctx); err != nil {
			failures = append(failures, fmt.Errorf("%s: %w", e.name(), err))
		}
	}
	return errors.Join(failures...)
}

// Processes are the handles of all processes, in the order they are started in.
func (r *Rig) Processes() []*Process {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []*Process
	for _, e := range r.engines {
		all = append(all, e.processes()...)
	}
	if r.mysql != nil {
		all = append(all, r.mysql.processes()...)
	}
	return append(all, r.strays...)
}

// Process is the handle of one process, such as "redis-7001", "rocketmq-broker"
// or "mariadb"; nil if there is none of that name.
func (r *Rig) Process(name string) *Process {
	for _, p := range r.Processes() {
		if p.Name == name {
			return p
		}
	}
	return nil
}

// Env is the environment of flashgate's daemons on this rig, as NAME=value.
func (r *Rig) Env() []string { return slices.Clone(r.secrets.pairs) }

// TestEnv is the environment that package enginetest reads, as NAME=value.
func (r *Rig) TestEnv() []string {
	ports := r.options.Ports
	var nodes []string
	for i := range redisNodes {
		nodes = append(nodes, address(ports.Redis+i))
	}
	env := []string{
		EnvRedis + "=" + strings.Join(nodes, ","),
		EnvRocketMQ + "=" + address(ports.Namesrv),
		EnvMariaDB + "=" + dsn(r.secrets.password, ports.MariaDB),
	}
	if reason := r.MySQLUnavailable(); reason != "" {
		return append(env, EnvMySQLUnavailable+"=unavailable: "+reason)
	}
	return append(env, EnvMySQL+"="+dsn(r.secrets.password, ports.MySQL))
}

// Down stops every process of the rig; one that is not running is stopped
// already. The data stays.
func (r *Rig) Down(ctx context.Context) error { return Down(ctx, r.options.Dir, r.options.Log) }

// Down stops in good order what was started from dir. It asks the state file
// alone, so it works whatever else is missing or broken.
func Down(ctx context.Context, dir string, log io.Writer) error {
	return end(ctx, dir, log, (*Process).Stop)
}

// Discard is Down by kill -9, for a rig whose data nobody wants: a broker takes
// ten seconds to stop in good order.
func Discard(ctx context.Context, dir string, log io.Writer) error {
	return end(ctx, dir, log, (*Process).killIfRunning)
}

func end(ctx context.Context, dir string, log io.Writer, stop func(*Process, context.Context) error) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	if _, err := os.Stat(stateFile(dir)); errors.Is(err, fs.ErrNotExist) {
		return ErrNotUp
	}
	unlock, err := Lock(ctx, lockFile(dir), log)
	if err != nil {
		return err
	}
	defer unlock()
	saved, err := readState(dir)
	if err != nil {
		return err
	}
	r := &Rig{options: Options{Log: log}} // for its way of writing progress lines
	if err := stopAll(ctx, saved.Processes, stop, r.progress); err != nil {
		return err
	}
	return os.Remove(stateFile(dir))
}

// stopAll stops the engines side by side, and the processes of one engine one
// after the other in the reverse of their start: replicas before masters, so that
// none fails over, and the broker before the name server it says goodbye to.
func stopAll(
	ctx context.Context, processes []*Process, stop func(*Process, context.Context) error, progress progress,
) error {
	byEngine := map[string][]*Process{}
	for _, p := range processes {
		byEngine[p.Engine] = append(byEngine[p.Engine], p)
	}
	var (
		wait     sync.WaitGroup
		mu       sync.Mutex
		failures []error
	)
	for name, members := range byEngine {
		wait.Go(func() {
			began := time.Now()
			stopped := 0
			for _, p := range slices.Backward(members) {
				if p.PID() != 0 {
					stopped++
				}
				err := stop(p, ctx)
				if err == nil {
					err = removeIfThere(p.PIDFile)
				}
				if err != nil {
					mu.Lock()
					failures = append(failures, err)
					mu.Unlock()
					return
				}
			}
			what := "was not running"
			if stopped > 0 {
				what = fmt.Sprintf("stopped, %d of %d processes were running", stopped, len(members))
			}
			progress(name, what, fmt.Sprintf("in %.1fs", time.Since(began).Seconds()))
		})
	}
	wait.Wait()
	return errors.Join(failures...)
}

func (r *Rig) progress(engine, what, took string) {
	if r.options.Log == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	line := strings.TrimRight(fmt.Sprintf("%-14s %-48s %s", engine, what, took), " ")
	_, _ = fmt.Fprintln(r.options.Log, line) // a lost progress line stops nothing
}
