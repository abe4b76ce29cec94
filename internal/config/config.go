// Package config reads a config file: strictly, with its defaults stated once, at the
// field, and secrets by reference only.
//
// Relative paths in a file are taken from the working directory if they are there,
// and otherwise from the folder above the config file's folder: so
// `flashgate gateway --config /srv/flashgate/configs/local.yaml` works from anywhere.
// Only data_dir, which is made when it is not there, is always the working directory's.
package config

import (
	"time"

	"flashgate/internal/limits"
)

// Engines says what a process runs on.
type Engines string

// The engines.
const (
	Embedded Engines = "embedded" // miniredis and SQLite, in one process
	Real     Engines = "real"     // Redis Cluster, RocketMQ and MySQL or MariaDB
)

// Config is the contents of a config file, and of the limits file it names. A
// duration is written with its unit (500ms, 20s, 1h); a size is a plain number of
// what its key says.
type Config struct {
	File  string        `yaml:"-"` // where it was read
	Rules *limits.Rules `yaml:"-"` // what the limits file says

	Engines         Engines `yaml:"engines" required:"true" oneof:"embedded|real"`
	Listen          string  `yaml:"listen" required:"true"`           // host:port for shoppers
	OperatorsListen string  `yaml:"operators_listen" required:"true"` // host:port for operators
	OperatorsToken  Secret  `yaml:"operators_token"`                  // bearer token of the operators' port
	DataDir         string  `yaml:"data_dir" default:"data"`          // embedded: where everything is kept
	EnvFile         string  `yaml:"env_file"`                         // variables for those the environment lacks; embedded: <data_dir>/env
	Limits          string  `yaml:"limits" default:"configs/limits.yaml"`

	JWT        JWT        `yaml:"jwt"`
	Redis      Redis      `yaml:"redis"`
	RocketMQ   RocketMQ   `yaml:"rocketmq"`
	MySQL      MySQL      `yaml:"mysql"`
	Ticket     Ticket     `yaml:"ticket"`
	Gateway    Gateway    `yaml:"gateway"`
	Batch      Batch      `yaml:"batch"`
	Worker     Worker     `yaml:"worker"`
	Reconciler Reconciler `yaml:"reconciler"`
	Demo       Demo       `yaml:"demo"`
	Log        Log        `yaml:"log"`
	Tracing    Tracing    `yaml:"tracing"`

	env env // what env_file adds to the environment
}

// JWT says which shoppers' tokens are good: signed with Secret (HS256) or for one of
// PublicKeys, never both.
type JWT struct {
	Secret     Secret        `yaml:"secret"`
	PublicKeys []string      `yaml:"public_keys" min:"1" max:"16"` // PEM files: Ed25519 (EdDSA) or RSA (RS256)
	Issuer     string        `yaml:"issuer" max:"256"`             // wanted in iss; "" = any
	Audience   string        `yaml:"audience" max:"256"`           // wanted in aud; "" = any
	Leeway     time.Duration `yaml:"leeway" default:"5s" min:"0s" max:"5m"`
	// CacheTokens is how many verified tokens are remembered, some 200 bytes each. Plain HS256
	// ones are not: they are verified as fast as they are found.
	CacheTokens int `yaml:"cache_tokens" default:"100000" min:"0" max:"10000000"`
}

// Redis is where stock is reserved.
type Redis struct {
	Addresses []string `yaml:"addresses" min:"1" max:"1000"` // host:port; of a cluster, any of its nodes
	Cluster   bool     `yaml:"cluster" default:"true"`       // a Redis Cluster; false = one node
	Username  string   `yaml:"username"`
	Password  Secret   `yaml:"password"` // optional
	TLS       bool     `yaml:"tls" default:"false"`
	TLSCAFile string   `yaml:"tls_ca_file"` // PEM; "" = the system's

	// WaitReplicas is how many replicas must have a confirmation before a shopper is
	// told yes. With 0 the promise is as weak as Redis's own replication.
	WaitReplicas Replicas      `yaml:"wait_replicas" default:"auto"`
	WaitTimeout  time.Duration `yaml:"wait_timeout" default:"500ms" min:"1ms" max:"10s"`
	DialTimeout  time.Duration `yaml:"dial_timeout" default:"1s" min:"10ms" max:"30s"`
	CallTimeout  time.Duration `yaml:"call_timeout" default:"1s" min:"10ms" max:"30s"` // of one script
	// WaitConnections bounds the calls that wait for replicas at one time; each has a
	// connection to itself meanwhile.
	WaitConnections int `yaml:"wait_connections" default:"64" min:"1" max:"10000"`
}

// RocketMQ carries batches from gateways to workers.
type RocketMQ struct {
	NameServers     []string      `yaml:"name_servers" min:"1" max:"100"` // host:port
	Topic           string        `yaml:"topic" default:"flashgate-orders" min:"1" max:"127"`
	ProducerGroup   string        `yaml:"producer_group" default:"flashgate-gateway" min:"1" max:"255"` // the same in every gateway
	ConsumerGroup   string        `yaml:"consumer_group" default:"flashgate-worker" min:"1" max:"255"`  // the same in every worker
	Producers       int           `yaml:"producers" default:"4" min:"1" max:"64"`                       // connections of a gateway that send
	Queues          int           `yaml:"queues" default:"16" min:"1" max:"1024"`                       // of the topic: no more workers than queues can share it
	PullInterval    time.Duration `yaml:"pull_interval" default:"300ms" min:"0s" max:"2s"`              // how long a worker leaves a queue that had messages alone, for more to come at once
	HalfSendTimeout time.Duration `yaml:"half_send_timeout" default:"1s" min:"10ms" max:"30s"`
	CheckTimeout    time.Duration `yaml:"check_timeout" default:"2s" min:"100ms" max:"30s"` // to answer one check-back
}

// MySQL is the ledger: MySQL 8.0 or later, or MariaDB 10.6 or later.
type MySQL struct {
	DSN                Secret        `yaml:"dsn"` // user:password@tcp(host:port)/database
	MaxConnections     int           `yaml:"max_connections" default:"16" min:"1" max:"10000"`
	ConnectionLifetime time.Duration `yaml:"connection_lifetime" default:"30m" min:"1s" max:"24h"` // below the server's wait_timeout
	CallTimeout        time.Duration `yaml:"call_timeout" default:"5s" min:"10ms" max:"5m"`
	ApplyTimeout       time.Duration `yaml:"apply_timeout" default:"30s" min:"100ms" max:"10m"` // of the worker's transaction with its retries
	MigrateTimeout     time.Duration `yaml:"migrate_timeout" default:"5m" min:"1s" max:"24h"`
	SlowQuery          time.Duration `yaml:"slow_query" default:"500ms" min:"1ms" max:"1h"` // a statement that takes longer is logged
}

// Ticket is the key of purchase tickets, and who judges a shopper before he gets one.
// Whether a purchase needs a ticket is said in the limits file, and can change any time.
type Ticket struct {
	Secret           Secret        `yaml:"secret"`                   // the same in every gateway; none = no tickets
	ChallengeURL     string        `yaml:"challenge_url" max:"1024"` // "" = whoever asks gets a ticket
	ChallengeTimeout time.Duration `yaml:"challenge_timeout" default:"1s" min:"10ms" max:"10s"`
}

// Gateway is the HTTP edge.
type Gateway struct {
	ReadTimeout    time.Duration `yaml:"read_timeout" default:"5s" min:"100ms" max:"5m"` // of a whole request, from its first byte
	WriteTimeout   time.Duration `yaml:"write_timeout" default:"5s" min:"100ms" max:"5m"`
	IdleTimeout    time.Duration `yaml:"idle_timeout" default:"1m" min:"1s" max:"1h"`        // between two requests of a connection
	RequestTimeout time.Duration `yaml:"request_timeout" default:"3s" min:"100ms" max:"30s"` // until a purchase is answered
	PollTimeout    time.Duration `yaml:"poll_timeout" default:"1s" min:"10ms" max:"30s"`     // for the ledger, and again for Redis, when an order is asked for
	ReplayWait     time.Duration `yaml:"replay_wait" default:"250ms" min:"1ms" max:"10s"`    // for the ledger's word on a replayed order
	DrainTimeout   time.Duration `yaml:"drain_timeout" default:"10s" min:"0s" max:"10m"`     // for what is in hand when told to stop
	MaxHeaderBytes int           `yaml:"max_header_bytes" default:"8192" min:"1024" max:"1048576"`
	MaxBodyBytes   int           `yaml:"max_body_bytes" default:"4096" min:"64" max:"1048576"`
	Concurrency    int           `yaml:"concurrency" default:"65536" min:"8192" max:"1000000"` // connections open at once
	MaxReads       int           `yaml:"max_reads" default:"256" min:"1" max:"100000"`         // reads of ledger or Redis under way
	MaxSales       int           `yaml:"max_sales" default:"1024" min:"1" max:"100000"`        // sales selling at once
	SaleRefresh    time.Duration `yaml:"sale_refresh" default:"300ms" min:"10ms" max:"1s"`     // an operator's change is everywhere within 1 s
	StockRefresh   time.Duration `yaml:"stock_refresh" default:"100ms" min:"10ms" max:"150ms"` // stock_left is at most 200 ms old
	// CutoffLease is for how long a gateway may refuse shoppers of a sold-out sale without
	// asking Redis; what comes back sells no later than that. 0s = it always asks.
	CutoffLease  time.Duration `yaml:"cutoff_lease" default:"100ms" min:"0s" max:"180ms"`
	CutoffBuyers int           `yaml:"cutoff_buyers" default:"20000" min:"1" max:"200000"` // of a sale whom it knows then, some 100 bytes each; with more it always asks
	NodeLease    time.Duration `yaml:"node_lease" default:"1m" min:"5s" max:"24h"`         // of the number in the ids a gateway makes
}

// Batch is how purchases travel together: a lone one goes at once, and what comes while
// a batch is under way gathers for the next.
type Batch struct {
	Max            int           `yaml:"max" default:"128" min:"1" max:"1024"`              // purchases in a batch
	Flushers       int           `yaml:"flushers" default:"4" min:"1" max:"64"`             // batches of a sale under way at once: one more for each whole batch that waits,
	Linger         time.Duration `yaml:"linger" default:"10ms" min:"0s" max:"1s"`           // how long less than a whole batch gathers after the last, at most as long as that took
	Patience       time.Duration `yaml:"patience" default:"20ms" min:"0s" max:"1s"`         // or when nothing was taken for so long
	Queue          int           `yaml:"queue" default:"16384" min:"1" max:"1000000"`       // purchases of a sale that wait; more are refused
	Hold           time.Duration `yaml:"hold" default:"20s" min:"1s" max:"10m"`             // a reservation's deadline: then the sweeper releases it
	ReleaseTimeout time.Duration `yaml:"release_timeout" default:"2s" min:"10ms" max:"30s"` // to give back what a failed batch reserved
}

// Worker persists batches.
type Worker struct {
	MaxMessages   int           `yaml:"max_messages" default:"512" min:"1" max:"1024"` // in one transaction
	Linger        time.Duration `yaml:"linger" default:"2500ms" min:"0s" max:"10s"`    // how long a transaction of a rush waits for more messages, unless it is full;
	Lull          time.Duration `yaml:"lull" default:"100ms" min:"0s" max:"10s"`       // and not when there was none for so long and a pull interval. A few messages: how long the first waits
	Handlers      int           `yaml:"handlers" default:"2" min:"1" max:"64"`         // transactions side by side
	BackoffMin    time.Duration `yaml:"backoff_min" default:"50ms" min:"1ms" max:"1m"`
	BackoffMax    time.Duration `yaml:"backoff_max" default:"5s" min:"1ms" max:"10m"`
	PoisonTries   int           `yaml:"poison_tries" default:"3" min:"1" max:"100"` // of a message that fails by its own fault
	SettleTimeout time.Duration `yaml:"settle_timeout" default:"2s" min:"10ms" max:"1m"`
	DrainTimeout  time.Duration `yaml:"drain_timeout" default:"10s" min:"0s" max:"10m"`
}

// Reconciler repairs.
type Reconciler struct {
	Interval    time.Duration `yaml:"interval" default:"1s" min:"50ms" max:"10s"`        // between two sweeps
	LeaseTTL    time.Duration `yaml:"lease_ttl" default:"5s" min:"500ms" max:"5m"`       // how long a leader that died keeps the others waiting
	StepTimeout time.Duration `yaml:"step_timeout" default:"10s" min:"100ms" max:"10m"`  // of one step for one sale
	LoadTimeout time.Duration `yaml:"load_timeout" default:"5m" min:"1s" max:"24h"`      // of loading one sale into Redis
	RebuildWait time.Duration `yaml:"rebuild_wait" default:"6s" min:"3s" max:"10m"`      // real engines: from the loss of a sale's Redis data until the bus is read for it
	VoidAge     time.Duration `yaml:"void_age" default:"1h" min:"1m" max:"168h"`         // how long a tombstone stays: longer than any check-back can be late
	SettleAge   time.Duration `yaml:"settle_age" default:"10s" min:"100ms" max:"1h"`     // how long a worker is given to settle by itself
	TaskTries   int           `yaml:"task_tries" default:"20" min:"1" max:"1000"`        // then a task waits for an operator
	TaskBackoff time.Duration `yaml:"task_backoff" default:"1s" min:"10ms" max:"10m"`    // after the first failure; doubles
	Schedule    string        `yaml:"schedule" default:"0 * * * *"`                      // of the full reconcile, in UTC: minute hour day month weekday
	Watermark   time.Duration `yaml:"watermark" default:"2m" min:"1s" max:"24h"`         // younger orders are in flight, and not compared
	FusePercent float64       `yaml:"fuse_percent" default:"1" min:"0" max:"100"`        // of a sale's units: a repair of more waits for an operator,
	FuseUnits   int           `yaml:"fuse_units" default:"100" min:"0" max:"1000000000"` // unless it is of no more units than this
	Pace        int           `yaml:"pace" default:"20000" min:"100" max:"10000000"`     // records a second that a reconcile reads, so that the sales do not feel it

	ReportRetention time.Duration `yaml:"report_retention" default:"720h" min:"1h" max:"87600h"` // how long its reports are kept
}

// Demo is a sale that an embedded start makes and opens, so that there is one to buy from.
type Demo struct {
	Sale         string        `yaml:"sale"` // its id; "" = none
	Title        string        `yaml:"title" default:"Demo sale"`
	Total        int64         `yaml:"total" default:"100"` // units
	PriceCents   int64         `yaml:"price_cents" default:"1999"`
	Currency     string        `yaml:"currency" default:"CNY"`
	PerUserLimit int           `yaml:"per_user_limit" default:"2"` // units
	Lasts        time.Duration `yaml:"lasts" default:"720h" min:"1m" max:"87600h"`
}

// Log is how a process logs, to standard error.
type Log struct {
	Level  string `yaml:"level" default:"info" oneof:"debug|info|warn|error"`
	Format string `yaml:"format" default:"text" oneof:"text|json"`
}

// Tracing sends spans of sampled requests to an OpenTelemetry collector, over OTLP/HTTP.
type Tracing struct {
	Endpoint string        `yaml:"endpoint" max:"1024"`                       // such as http://127.0.0.1:4318; "" = off, which costs nothing
	Sample   float64       `yaml:"sample" default:"0.001" min:"0" max:"1"`    // part of the requests that are followed
	Timeout  time.Duration `yaml:"timeout" default:"5s" min:"100ms" max:"1m"` // of sending; what cannot be sent is dropped
}
