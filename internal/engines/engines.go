// Package engines opens the engines that a configuration names: Redis, the bus and the
// ledger, real or embedded.
package engines

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"flashgate/internal/bus"
	"flashgate/internal/config"
	"flashgate/internal/gather"
	"flashgate/internal/ledger"
	"flashgate/internal/stock"
)

// Needs are what every engine is opened with.
type Needs struct {
	Config     *config.Config
	Log        *slog.Logger
	Registerer prometheus.Registerer // nil = no metrics
}

// Ledger opens the ledger on MySQL. It does not connect: daemons start in any order.
func Ledger(n Needs) (*ledger.Ledger, error) {
	dsn, err := n.Config.MySQLDSN()
	if err != nil {
		return nil, err
	}
	o := ledgerOptions(n)
	o.Driver, o.DSN = ledger.DriverMySQL, dsn
	return ledger.Open(o)
}

func ledgerOptions(n Needs) ledger.Options {
	m := &n.Config.MySQL
	return ledger.Options{
		MaxOpen: m.MaxConnections, MaxConnLifetime: m.ConnectionLifetime, Timeout: m.CallTimeout,
		ApplyTimeout: m.ApplyTimeout, MigrateTimeout: m.MigrateTimeout, SlowQuery: m.SlowQuery,
		Logger: n.Log, Registerer: n.Registerer,
	}
}

// Stock opens Redis; a node must answer.
func Stock(n Needs) (*stock.Store, error) {
	r := &n.Config.Redis
	password, err := n.Config.RedisPassword()
	if err != nil {
		return nil, err
	}
	secure, err := redisTLS(n.Config)
	if err != nil {
		return nil, err
	}
	return stock.Open(stock.Options{
		Addresses: r.Addresses, Cluster: r.Cluster, Username: r.Username, Password: password, TLS: secure,
		WaitReplicas: n.Config.WaitReplicas(), WaitTimeout: r.WaitTimeout, DialTimeout: r.DialTimeout,
		CallTimeout: r.CallTimeout, MaxWaitConnections: r.WaitConnections, Registerer: n.Registerer,
	})
}

func redisTLS(c *config.Config) (*tls.Config, error) {
	if !c.Redis.TLS {
		return nil, nil
	}
	secure := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.Redis.TLSCAFile != "" {
		pem, err := os.ReadFile(c.RedisCAFile())
		if err != nil {
			return nil, fmt.Errorf("redis.tls_ca_file: %w", err)
		}
		secure.RootCAs = x509.NewCertPool()
		if !secure.RootCAs.AppendCertsFromPEM(pem) {
			return nil, errors.New("redis.tls_ca_file: no certificate in it")
		}
	}
	return secure, nil
}

// Pauses between tries to open Redis.
const (
	retryMinMillis = 100
	retryMaxMillis = 3000
)

// AwaitStock opens Redis, and tries again until it answers or ctx ends: daemons and
// engines start in any order. waiting is told why it is not there yet.
func AwaitStock(ctx context.Context, n Needs, waiting func(error)) (*stock.Store, error) {
	pause := retryMinMillis * time.Millisecond
	for {
		store, err := Stock(n)
		if err == nil {
			return store, nil
		}
		waiting(err)
		n.Log.Warn("Redis is not there yet; trying again", "in", pause, "err", err)
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(pause):
		}
		pause = min(2*pause, retryMaxMillis*time.Millisecond)
	}
}

// Bus opens RocketMQ. check answers check-backs; with nil this process only consumes,
// or lists what was not delivered.
// It does not wait for the broker: sending fails until it is there.
func Bus(n Needs, check bus.Checker, producers int) (*bus.RocketMQ, error) {
	r := &n.Config.RocketMQ
	o := busOptions(n, check)
	o.NameServers, o.Topic, o.ProducerGroup, o.ConsumerGroup = r.NameServers, r.Topic, r.ProducerGroup, r.ConsumerGroup
	o.Producers = producers
	return bus.OpenRocketMQ(o)
}

func busOptions(n Needs, check bus.Checker) bus.Options {
	return bus.Options{
		Check: check, CheckTimeout: n.Config.RocketMQ.CheckTimeout,
		BatchMessages: n.Config.Worker.MaxMessages, Handlers: n.Config.Worker.Handlers, DrainTimeout: n.Config.Worker.DrainTimeout,
		Linger:       gather.Linger{Most: n.Config.Worker.Linger, Lull: n.Config.Worker.Lull},
		PullInterval: n.Config.RocketMQ.PullInterval,
		Logger:       n.Log, Registerer: n.Registerer,
	}
}
