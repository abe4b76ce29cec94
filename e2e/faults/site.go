// Package faults runs flashgate as processes on engines of its own, sells to shoppers
// who write down every answer, kills, stops, cuts and floods what there is, by a seed,
// and then checks the invariants of ARCHITECTURE.md from outside: what the shoppers
// were told against the ledger by plain SQL and Redis by plain commands.
package faults

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/golang-jwt/jwt/v5"
	"github.com/redis/rueidis"
	"go.yaml.in/yaml/v3"

	"flashgate/internal/rig"
)

// How the site is set up: smaller waits than shipped, so that a round fits in half a
// minute, and in the same order of size to each other.
const (
	holdSeconds      = 5 // a reservation; above the request's 3 s
	watermarkSeconds = 3
	settleAgeSeconds = 2
	checkBackSeconds = 3 // about as long as a request may take: check-backs meet confirms
	topicQueues      = 4

	topic         = "faults-orders"
	producerGroup = "faults-gateway"
	consumerGroup = "faults-worker"

	daemonsOfAKind = 2
)

// commandTimeoutSeconds bounds one flashgate command.
const commandTimeoutSeconds = 120

// Options say where a site is and what it promises.
type Options struct {
	Root         string    // the repository
	Dir          string    // logs, configuration and the engines' data; emptied first
	Log          io.Writer // what is printed
	WaitReplicas int       // redis.wait_replicas
	HoldSeconds  int       // batch.hold; 0 = short
}

// Site is the system under test: engines behind proxies, and daemons.
type Site struct {
	o       Options
	dir     string
	binary  string
	config  string
	env     []string // of daemons and commands
	secret  []byte   // signs shoppers' tokens
	ports   rig.Ports
	home    string // of the engines
	rig     *rig.Rig
	network *network
	redis   []*rig.Process // the cluster's nodes by number
	daemons []*daemon      // gateways, workers, reconcilers
	db      *sql.DB        // not through a proxy

	mu     sync.Mutex
	client rueidis.Client   // nil until it is asked for
	files  map[string]int64 // how much of each daemon's log was looked through
}

// Start builds the binaries, starts engines and daemons, and waits until all are ready.
// On an error what was started is stopped.
func Start(ctx context.Context, o Options) (_ *Site, err error) {
	if o.HoldSeconds == 0 {
		o.HoldSeconds = holdSeconds
	}
	s := &Site{files: make(map[string]int64)}
	if s.ports, s.home, err = rig.FaultPorts(ctx, o.Dir); err != nil {
		return nil, err
	}
	s.o, s.dir = o, s.home+"-site"
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	if err := os.RemoveAll(s.dir); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return nil, err
	}
	if s.network, err = newNetwork(s.ports); err != nil {
		return nil, err
	}
	var group errGroup
	group.do(func() error { return s.build(ctx) })
	group.do(func() error { return s.engines(ctx) })
	if err := group.wait(); err != nil {
		return nil, err
	}
	if err := s.configure(); err != nil {
		return nil, err
	}
	if _, err := s.run(ctx, "migrate"); err != nil {
		return nil, err
	}
	for _, role := range []string{"gateway", "worker", "reconciler"} {
		for i := range daemonsOfAKind {
			d, err := s.newDaemon(role, i)
			if err != nil {
				return nil, err
			}
			s.daemons = append(s.daemons, d)
			if role == "gateway" {
				// Shoppers go through a proxy, too: 127.0.0.2 and the gateway's port.
				_, port, _ := strings.Cut(d.shoppers, ":")
				if err := s.network.add(d.name, front+":"+port, d.shoppers); err != nil {
					return nil, err
				}
			}
			if err := d.start(); err != nil {
				return nil, err
			}
		}
	}
	return s, s.daemonsReady(ctx)
}

// errGroup runs functions side by side and joins their errors.
type errGroup struct {
	wg   sync.WaitGroup
	mu   sync.Mutex
	errs []error
}

func (g *errGroup) do(f func() error) {
	g.wg.Go(func() {
		if err := f(); err != nil {
			g.mu.Lock()
			g.errs = append(g.errs, err)
			g.mu.Unlock()
		}
	})
}

func (g *errGroup) wait() error {
	g.wg.Wait()
	return errors.Join(g.errs...)
}

// build makes the binary under test, with failpoints and the race detector.
func (s *Site) build(ctx context.Context) error {
	s.binary = filepath.Join(s.dir, "flashgate")
	cmd := exec.CommandContext(ctx, "go", "build", "-race", "-tags", "failpoints", "-o", s.binary, "flashgate")
	cmd.Dir = s.o.Root
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w\n%s", err, out)
	}
	return nil
}

func (s *Site) engines(ctx context.Context) (err error) {
	s.rig, err = rig.Up(ctx, rig.Options{
		Dir:   s.home,
		Cache: filepath.Join(s.o.Root, ".run", "cache"),
		POM:   filepath.Join(s.o.Root, "deploy", "local", "rocketmq", "pom.xml"),
		Ports: s.ports, Front: front, CheckBackSeconds: checkBackSeconds, QuickStart: true, Fresh: true, Log: s.o.Log,
	})
	if err != nil {
		return err
	}
	for i := range redisNodes {
		s.redis = append(s.redis, s.rig.Process("redis-"+strconv.Itoa(s.ports.Redis+i)))
	}
	return nil
}

// configure writes what the daemons read, and opens the ledger for the harness.
func (s *Site) configure() error {
	env := make(map[string]string)
	for _, pair := range s.rig.Env() {
		name, value, _ := strings.Cut(pair, "=")
		env[name] = value
	}
	s.secret = []byte(env[rig.EnvJWTSecret])
	direct, err := mysql.ParseDSN(env[rig.EnvMySQLDSN])
	if err != nil {
		return err
	}
	direct.Logger = &mysql.NopLogger{} // faults make it print
	connector, err := mysql.NewConnector(direct)
	if err != nil {
		return err
	}
	s.db = sql.OpenDB(connector)
	through := direct.Clone()
	_, port, _ := strings.Cut(direct.Addr, ":")
	through.Addr = front + ":" + port
	env[rig.EnvMySQLDSN] = through.FormatDSN()

	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "FLASHGATE_") && !strings.HasPrefix(v, "GORACE=") {
			s.env = append(s.env, v)
		}
	}
	for name, value := range env {
		s.env = append(s.env, name+"="+value)
	}
	// The RocketMQ client has races of its own.
	s.env = append(s.env, "GORACE=suppressions="+filepath.Join(s.o.Root, "internal", "bus", "race.suppressions"))

	limits, err := s.writeLimits()
	if err != nil {
		return err
	}
	var nodes []string
	for i := range redisNodes {
		nodes = append(nodes, fmt.Sprintf("%s:%d", front, s.ports.Redis+i))
	}
	s.config = filepath.Join(s.dir, "flashgate.yaml")
	text, err := yaml.Marshal(map[string]any{
		"engines": "real", "listen": "127.0.0.1:1", "operators_listen": "127.0.0.1:2", "limits": limits,
		"operators_token": map[string]string{"env": rig.EnvAdminToken},
		"jwt":             map[string]any{"secret": map[string]string{"env": rig.EnvJWTSecret}},
		"redis":           map[string]any{"addresses": nodes, "wait_replicas": s.o.WaitReplicas},
		"rocketmq": map[string]any{
			"name_servers": []string{fmt.Sprintf("%s:%d", front, s.ports.Namesrv)},
			"topic":        topic, "producer_group": producerGroup, "consumer_group": consumerGroup, "queues": topicQueues,
		},
		"mysql": map[string]any{"dsn": map[string]string{"env": rig.EnvMySQLDSN}},
		"batch": map[string]any{"hold": seconds(s.o.HoldSeconds)},
		"reconciler": map[string]any{
			"watermark": seconds(watermarkSeconds), "settle_age": seconds(settleAgeSeconds),
		},
	})
	if err != nil {
		return err
	}
	return os.WriteFile(s.config, text, 0o644)
}

func seconds(n int) string { return strconv.Itoa(n) + "s" }

// writeLimits is the shipped limits, but for those of an address: all shoppers here
// have the same.
func (s *Site) writeLimits() (string, error) {
	text, err := os.ReadFile(filepath.Join(s.o.Root, "configs", "limits.yaml"))
	if err != nil {
		return "", err
	}
	var limits map[string]any
	if err := yaml.Unmarshal(text, &limits); err != nil {
		return "", err
	}
	wide := map[string]int{"rate": 1_000_000, "burst": 1_000_000}
	limits["address"] = map[string]any{"purchase": wide, "read": wide}
	if text, err = yaml.Marshal(limits); err != nil {
		return "", err
	}
	path := filepath.Join(s.dir, "limits.yaml")
	return path, os.WriteFile(path, text, 0o644)
}

// run runs a flashgate command to its end and returns what it printed, on an error too.
func (s *Site) run(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeoutSeconds*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, s.binary, append(args, "--config", s.config)...)
	cmd.Dir, cmd.Env = s.dir, s.env
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("flashgate %s: %w\n%s", strings.Join(args, " "), err, stderr.Bytes())
	}
	return stdout.String(), nil
}

// ofRole lists the daemons of a role.
func (s *Site) ofRole(role string) []*daemon {
	var found []*daemon
	for _, d := range s.daemons {
		if strings.HasPrefix(d.name, role+"-") {
			found = append(found, d)
		}
	}
	return found
}

// gatewayURLs are where shoppers go, through the proxies.
func (s *Site) gatewayURLs() []string {
	var urls []string
	for _, d := range s.ofRole("gateway") {
		urls = append(urls, "http://"+s.network.proxies[d.name].Listen)
	}
	return urls
}

// daemonsReady waits until every daemon says that it lacks nothing.
func (s *Site) daemonsReady(ctx context.Context) error {
	return await(ctx, readyTimeoutSeconds*time.Second, func(ctx context.Context) error {
		for _, d := range s.daemons {
			if err := d.ready(ctx); err != nil {
				return err
			}
		}
		return nil
	})
}

// token makes a shopper's token, as an identity provider would.
func (s *Site) token(user string) (string, error) {
	claims := jwt.RegisteredClaims{Subject: user, ExpiresAt: jwt.NewNumericDate(time.Now().Add(24 * time.Hour))}
	return jwt.NewWithClaims(jwt.SigningMethodHS256, claims).SignedString(s.secret)
}

// cluster is the Redis Cluster, for the harness's own looks.
func (s *Site) cluster() (rueidis.Client, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.client != nil {
		return s.client, nil
	}
	var nodes []string
	for _, p := range s.redis {
		nodes = append(nodes, p.Addr)
	}
	var err error
	s.client, err = rueidis.NewClient(rueidis.ClientOption{
		InitAddress: nodes, DisableCache: true, Dialer: net.Dialer{Timeout: time.Second},
	})
	return s.client, err
}

// alarms looks through what the daemons have logged since the last look for what no
// fault excuses.
func (s *Site) alarms() ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var found []string
	for _, d := range s.daemons {
		line, size, err := alarmed(d.log, s.files[d.name])
		if err != nil {
			return found, err
		}
		s.files[d.name] = size
		if line != "" {
			found = append(found, d.name+": "+line)
		}
		if d.died() {
			found = append(found, d.name+" ended though nobody ended it")
		}
	}
	return found, nil
}

// Close ends everything. The logs stay.
func (s *Site) Close() error {
	for _, d := range s.daemons {
		d.signal(sigContinue)
		d.kill()
	}
	var failures []error
	if s.client != nil {
		s.client.Close()
	}
	if s.db != nil {
		failures = append(failures, s.db.Close())
	}
	// Not the caller's context, which may be why we end.
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeoutSeconds*time.Second)
	defer cancel()
	if err := rig.Discard(ctx, s.home, nil); !errors.Is(err, rig.ErrNotUp) {
		failures = append(failures, err)
	}
	if s.network != nil {
		failures = append(failures, s.network.close())
	}
	return errors.Join(failures...)
}

// pollMillis is between two looks at what is waited for.
const pollMillis = 100

// await looks until ok returns nil; its last complaint is the error when time is up.
func await(ctx context.Context, timeout time.Duration, ok func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	for {
		err := ok(ctx)
		if err == nil {
			return nil
		}
		if !pause(ctx, pollMillis*time.Millisecond) {
			return fmt.Errorf("not within %s: %w", timeout, err)
		}
	}
}

// pause waits for d; false: ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
