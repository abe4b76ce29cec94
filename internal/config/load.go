package config

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/robfig/cron/v3"
	"go.yaml.in/yaml/v3"

	"flashgate/internal/limits"
	"flashgate/internal/sale"
	"flashgate/internal/strictyaml"
)

// Load reads and checks the config file at path and the limits file it names. Secrets
// are looked up when they are asked for, so a command that needs none starts without.
// Its error is made of strictyaml.Problems: file, line and key of everything that is
// wrong, a line each.
func Load(path string) (*Config, error) {
	c, doc, err := read(path)
	if err != nil {
		return nil, err
	}
	rules, err := limits.Load(c.LimitsFile())
	var problems strictyaml.Problems
	switch {
	case errors.As(err, &problems) && errors.Is(statError(c.LimitsFile()), os.ErrNotExist):
		doc.Fail("limits", "%s is not there, nor from the folder above %s", c.Limits, path)
	case err != nil:
		return nil, errors.Join(doc.Err(), err)
	}
	if rules != nil && rules.Ticket.Required && c.Ticket.Secret.IsZero() {
		doc.Fail("ticket", "%s says ticket.required: true, which wants secret: {env: %s} or {file: PATH} here", c.LimitsFile(), EnvTicket)
	}
	c.Rules = rules
	if err := doc.Err(); err != nil {
		return nil, err
	}
	return c, nil
}

// LoadAlone is Load without the limits file, for what keeps no limits: an operator whose
// limits file is wrong must be able to look, to pause a sale, and to start a worker.
func LoadAlone(path string) (*Config, error) {
	c, doc, err := read(path)
	if err == nil {
		err = doc.Err()
	}
	if err != nil {
		return nil, err
	}
	return c, nil
}

// read reads and checks the config file alone. doc holds what is wrong with it, unless
// that is so much that the rest would only say what follows from it.
func read(path string) (*Config, *strictyaml.Doc, error) {
	c := &Config{File: path}
	doc := strictyaml.Read(path, c)
	c.bindSecrets()
	if err := doc.Err(); err != nil {
		return nil, nil, err
	}
	c.check(doc)
	return c, doc, nil
}

func statError(path string) error {
	_, err := os.Stat(path)
	return err
}

// LimitsFile is where the limits file is, for limits.Limiter.Watch.
func (c *Config) LimitsFile() string { return c.resolve(c.Limits) }

// check finds what no single field can tell: contradictions, and values of a form.
func (c *Config) check(doc *strictyaml.Doc) {
	c.checkEngines(doc)
	addresses(doc, "listen", c.Listen)
	addresses(doc, "operators_listen", c.OperatorsListen)
	if c.Listen == c.OperatorsListen && !strings.HasSuffix(c.Listen, ":0") {
		doc.Fail("operators_listen", "is the same as listen: want another port, out of shoppers' reach")
	}
	if c.OperatorsToken.IsZero() {
		doc.Fail("operators_token", "missing: want {env: %s} or {file: PATH}", EnvAdminToken)
	}
	switch secret, keys := !c.JWT.Secret.IsZero(), len(c.JWT.PublicKeys) > 0; {
	case secret && keys:
		doc.Fail("jwt.public_keys", "beside a secret: want one or the other")
	case !secret && !keys:
		doc.Fail("jwt", "neither secret nor public_keys: want secret: {env: %s} or public_keys: [FILE.pem]", EnvJWTSecret)
	}
	checkURL(doc, "ticket.challenge_url", c.Ticket.ChallengeURL)
	checkURL(doc, "tracing.endpoint", c.Tracing.Endpoint)
	if c.Ticket.ChallengeURL != "" && c.Ticket.Secret.IsZero() {
		doc.Fail("ticket.challenge_url", "without ticket.secret: want {env: %s} or {file: PATH}", EnvTicket)
	}
	for _, path := range c.JWT.PublicKeys {
		if _, err := readPublicKey(c.resolve(path)); err != nil {
			doc.Fail("jwt.public_keys", "%s: %v", path, err)
		}
	}
	if schedule, err := cron.ParseStandard(c.Reconciler.Schedule); err != nil {
		doc.Fail("reconciler.schedule", "%q: want five fields (minute hour day month weekday), such as \"0 * * * *\": %v", c.Reconciler.Schedule, err)
	} else if schedule.Next(time.Now().UTC()).IsZero() {
		doc.Fail("reconciler.schedule", "%q: there is no such day: want one that comes, such as \"0 * * * *\"", c.Reconciler.Schedule)
	}
	less := func(a string, av time.Duration, b string, bv time.Duration, why string) {
		if av >= bv {
			key := a
			if !doc.Written(a) {
				key = b
			}
			doc.Fail(key, "%s (%s) must be less than %s (%s): %s", a, av, b, bv, why)
		}
	}
	less("gateway.request_timeout", c.Gateway.RequestTimeout, "batch.hold", c.Batch.Hold,
		"a reservation must outlive the request it was made for")
	less("rocketmq.half_send_timeout", c.RocketMQ.HalfSendTimeout, "gateway.request_timeout", c.Gateway.RequestTimeout,
		"time must be left to confirm")
	less("gateway.request_timeout and rocketmq.half_send_timeout", c.Gateway.RequestTimeout+c.RocketMQ.HalfSendTimeout, "reconciler.rebuild_wait", c.Reconciler.RebuildWait,
		"what a gateway reserved before Redis lost it must be on the bus by then")
	less("rocketmq.check_timeout", c.RocketMQ.CheckTimeout, "reconciler.rebuild_wait", c.Reconciler.RebuildWait,
		"a check-back asked before Redis lost a sale must be given up by then, or it would adopt what is rolled back")
	if lease := c.Gateway.CutoffLease; lease > 0 && lease < cutoffLeaseLeast {
		doc.Fail("gateway.cutoff_lease", "%s: want 0s (no cut-off), or %s and more: it must last through a few calls of Redis", lease, cutoffLeaseLeast)
	}
	less("worker.backoff_min", c.Worker.BackoffMin, "worker.backoff_max", c.Worker.BackoffMax, "it grows from one to the other")
	less("reconciler.interval", 2*c.Reconciler.Interval, "reconciler.lease_ttl", c.Reconciler.LeaseTTL,
		"twice the interval, or a leader loses its lease between two sweeps")
	if c.Demo.Sale != "" {
		now := time.Now()
		s := c.DemoSale(now)
		var wrong *sale.Error
		if err := s.Validate(); errors.As(err, &wrong) {
			doc.Fail("demo", "%s", wrong.Detail)
		}
	}
}

// cutoffLeaseLeast is the shortest lease that can be renewed before it lapses.
const cutoffLeaseLeast = 20 * time.Millisecond

// checkURL checks the URL of a service; "" is none. It is not quoted: it may hold a
// password by mistake.
func checkURL(doc *strictyaml.Doc, key, text string) {
	if text == "" {
		return
	}
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "":
		doc.Fail(key, "is no URL: want one such as http://127.0.0.1:4318")
	case u.User != nil:
		doc.Fail(key, "holds a password: put the service behind a proxy that adds it")
	}
}

// checkEngines holds the engines against what is said of them.
func (c *Config) checkEngines(doc *strictyaml.Doc) {
	if c.Engines == Embedded {
		for _, key := range []string{"redis.addresses", "redis.username", "redis.password", "redis.tls", "rocketmq.name_servers", "mysql.dsn"} {
			if doc.Written(key) {
				doc.Fail(key, "contradicts engines: embedded, which has engines of its own: leave it out, or say engines: real")
			}
		}
		if c.Redis.WaitReplicas > 0 {
			doc.Fail("redis.wait_replicas", "%d: embedded engines have no replicas: want auto or 0", c.Redis.WaitReplicas)
		}
		if strings.TrimSpace(c.DataDir) == "" {
			doc.Fail("data_dir", "is empty: want a folder, such as data")
		}
		return
	}
	for _, key := range []string{"demo.sale", "data_dir"} {
		if doc.Written(key) {
			doc.Fail(key, "contradicts engines: real: it is for embedded engines alone")
		}
	}
	if len(c.Redis.Addresses) == 0 {
		doc.Fail("redis.addresses", "missing: real engines want a list, such as [\"127.0.0.1:7001\"]")
	}
	addresses(doc, "redis.addresses", c.Redis.Addresses...)
	if !c.Redis.Cluster && len(c.Redis.Addresses) > 1 {
		doc.Fail("redis.addresses", "%d of them contradict cluster: false: want one", len(c.Redis.Addresses))
	}
	if c.Redis.TLSCAFile != "" && !c.Redis.TLS {
		doc.Fail("redis.tls_ca_file", "contradicts tls: false")
	}
	if len(c.RocketMQ.NameServers) == 0 {
		doc.Fail("rocketmq.name_servers", "missing: real engines want a list, such as [\"127.0.0.1:9876\"]")
	}
	addresses(doc, "rocketmq.name_servers", c.RocketMQ.NameServers...)
	if c.MySQL.DSN.IsZero() {
		doc.Fail("mysql.dsn", "missing: want {env: %s} or {file: PATH}", EnvMySQLDSN)
	}
}

// addresses checks host:port each, without looking anything up.
func addresses(doc *strictyaml.Doc, key string, list ...string) {
	for i, address := range list {
		_, port, err := net.SplitHostPort(address)
		if n, convErr := strconv.Atoi(port); err != nil || convErr != nil || n < 0 || n > 65535 {
			doc.Fail(key, "%q: want host:port, such as 127.0.0.1:8080", address)
		}
		if slices.Contains(list[:i], address) {
			doc.Fail(key, "%q is there twice", address)
		}
	}
}

// Replicas is a number of replicas, or auto.
type Replicas int

// autoReplicas stands for what fits the engines.
const autoReplicas Replicas = -1

// UnmarshalYAML reads auto or 0 to 10.
func (r *Replicas) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind == yaml.ScalarNode && n.Value == "auto" {
		*r = autoReplicas
		return nil
	}
	const most = 10
	i, err := strconv.Atoi(n.Value)
	if n.Kind != yaml.ScalarNode || err != nil || i < 0 || i > most {
		return fmt.Errorf("%q: want auto, or a number of replicas from 0 to %d", n.Value, most)
	}
	*r = Replicas(i)
	return nil
}

// WaitReplicas is redis.wait_replicas with auto worked out: 0 embedded, 1 on a cluster,
// which has a replica a master, and 0 on a single node.
func (c *Config) WaitReplicas() int {
	switch {
	case c.Redis.WaitReplicas != autoReplicas:
		return int(c.Redis.WaitReplicas)
	case c.Engines == Real && c.Redis.Cluster:
		return 1
	default:
		return 0
	}
}

// Schedule is reconciler.schedule. It goes by UTC, unless it names a zone (CRON_TZ=).
func (c *Config) Schedule() cron.Schedule {
	schedule, err := cron.ParseStandard(c.Reconciler.Schedule)
	if err != nil {
		panic("BUG: the config let a schedule through: " + err.Error())
	}
	return schedule
}

// DemoSale is the sale that demo describes, as it would start now.
func (c *Config) DemoSale(now time.Time) sale.Sale {
	d := &c.Demo
	now = now.UTC().Truncate(time.Second)
	return sale.Sale{
		ID: d.Sale, Title: d.Title, Total: d.Total, PriceCents: d.PriceCents, Currency: d.Currency,
		PerUserLimit: d.PerUserLimit, StartsAt: now, EndsAt: now.Add(d.Lasts), Status: sale.Draft,
	}
}

// RedisCAFile is where the certificates of redis.tls_ca_file are.
func (c *Config) RedisCAFile() string { return c.resolve(c.Redis.TLSCAFile) }
