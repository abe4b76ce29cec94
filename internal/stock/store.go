package stock

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/rueidis"
)

// Options say where Redis is and how long to wait for it.
type Options struct {
	Addresses []string // host:port; of a cluster, any of its nodes
	Cluster   bool     // a Redis Cluster; otherwise one node
	Username  string
	Password  string
	TLS       *tls.Config // nil = none

	// WaitReplicas is how many replicas must have a confirm, a VOID or an adoption
	// before it counts. 1 on a cluster with one replica a master; 0 asks for none, and
	// then the promise is as weak as Redis's own replication.
	WaitReplicas int
	WaitTimeout  time.Duration // for the replicas to acknowledge; 0 = 500 ms

	DialTimeout time.Duration // 0 = 1 s
	CallTimeout time.Duration // for one script, queueing and sending included; 0 = 1 s

	// MaxWaitConnections bounds the calls that wait for replicas at one time, each of
	// which needs a connection to itself. 0 = 64: at 64 orders a batch and 1 ms a
	// confirm that is millions of orders a second.
	MaxWaitConnections int

	Registerer prometheus.Registerer // nil = metrics that nobody sees
}

const (
	defaultWaitTimeoutMillis  = 500
	defaultDialTimeoutMillis  = 1_000
	defaultCallTimeoutMillis  = 1_000
	defaultMaxWaitConnections = 64

	// upkeepTimeoutMillis bounds one script call that is not on a shopper's path: a
	// load's slice, a recount of 100,000 records.
	upkeepTimeoutMillis = 10_000
	upkeepTimeout       = upkeepTimeoutMillis * time.Millisecond

	// shardsRefreshMillis is how often the client looks at the cluster's topology anew.
	// It does so on errors as well; the interval finds what no error shows.
	shardsRefreshMillis = 5_000
	// maxRedirects bounds how often one call follows MOVED or ASK. Two nodes that name
	// each other, as in the middle of a failover, would otherwise keep it busy till its
	// deadline.
	maxRedirects = 5
	// bufferBytes is the read and the write buffer of one connection. A batch of 64
	// orders is 5 kB; rueidis's default of 512 KiB is for bulk transfers.
	bufferBytes = 64 << 10
	// idleConnectionSeconds closes connections that served waiting calls in a peak.
	idleConnectionSeconds = 60
	// stuckConnectionMillis is added to the longest call for the time after which a
	// connection without answers is given up: a node that is stopped, or cut off.
	stuckConnectionMillis = 1_000
)

// Store is one process's access to the sales in Redis. It is safe for concurrent use.
type Store struct {
	client  rueidis.Client
	opts    Options
	waiting chan struct{} // a token for each call that waits for replicas
	metrics *metrics
}

// Open connects. A node must answer; the rest of a cluster may come later.
func Open(opts Options) (*Store, error) {
	setDefault(&opts.WaitTimeout, defaultWaitTimeoutMillis)
	setDefault(&opts.DialTimeout, defaultDialTimeoutMillis)
	setDefault(&opts.CallTimeout, defaultCallTimeoutMillis)
	if opts.MaxWaitConnections == 0 {
		opts.MaxWaitConnections = defaultMaxWaitConnections
	}
	switch {
	case len(opts.Addresses) == 0:
		return nil, errors.New("stock: no Redis address")
	case !opts.Cluster && len(opts.Addresses) > 1:
		return nil, fmt.Errorf("stock: %d addresses, and not a cluster", len(opts.Addresses))
	case opts.WaitReplicas < 0:
		return nil, fmt.Errorf("stock: %d replicas to wait for", opts.WaitReplicas)
	}
	client, err := rueidis.NewClient(rueidis.ClientOption{
		InitAddress:       opts.Addresses,
		Username:          opts.Username,
		Password:          opts.Password,
		TLSConfig:         opts.TLS,
		ForceSingleClient: !opts.Cluster,
		Dialer:            net.Dialer{Timeout: opts.DialTimeout},
		DialCtxFn:         dial,
		ConnWriteTimeout:  opts.CallTimeout + opts.WaitTimeout + stuckConnectionMillis*time.Millisecond,
		// One call in the peak needs one connection; the tokens keep the pool from ever
		// being asked for more, since rueidis waits for one without a bound.
		BlockingPoolSize:    opts.MaxWaitConnections,
		BlockingPoolCleanup: idleConnectionSeconds * time.Second,
		ReadBufferEachConn:  bufferBytes,
		WriteBufferEachConn: bufferBytes,
		DisableCache:        true, // nothing here may be old; and miniredis has no tracking
		DisableRetry:        true, // what may be asked again is the caller's to say
		ClusterOption: rueidis.ClusterOption{
			ShardsRefreshInterval: shardsRefreshMillis * time.Millisecond,
			MaxMovedRedirections:  maxRedirects,
		},
	})
	if err != nil {
		if client != nil {
			client.Close()
		}
		return nil, fmt.Errorf("stock: connect to Redis at %v: %w", opts.Addresses, err)
	}
	s := &Store{client: client, opts: opts, waiting: make(chan struct{}, opts.MaxWaitConnections)}
	if s.metrics, err = newMetrics(s, opts.Registerer); err != nil {
		client.Close()
		return nil, fmt.Errorf("stock: metrics: %w", err)
	}
	return s, nil
}

func setDefault(d *time.Duration, millis int) {
	if *d == 0 {
		*d = time.Duration(millis) * time.Millisecond
	}
}

// dial marks its errors: what failed here was never sent.
func dial(ctx context.Context, address string, dialer *net.Dialer, config *tls.Config) (net.Conn, error) {
	open := dialer.DialContext
	if config != nil {
		open = (&tls.Dialer{NetDialer: dialer, Config: config}).DialContext
	}
	connection, err := open(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errDial, err)
	}
	return connection, nil
}

// Ping says whether sales can be served: the node answers, or, of a cluster, one of
// its nodes answers and finds a master for every slot.
func (s *Store) Ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, s.opts.CallTimeout)
	defer cancel()
	if !s.opts.Cluster {
		return s.client.Do(ctx, s.client.B().Ping().Build()).Error()
	}
	// All nodes at once: those that are down may take the whole time-out.
	nodes := s.client.Nodes()
	answers := make(chan error, len(nodes))
	for _, node := range nodes {
		go func() { answers <- pingClusterNode(ctx, node) }()
	}
	err := errors.New("stock: no node of the Redis Cluster is known")
	for range nodes {
		if err = <-answers; err == nil {
			return nil
		}
	}
	return err
}

func pingClusterNode(ctx context.Context, node rueidis.Client) error {
	info, err := node.Do(ctx, node.B().ClusterInfo().Build()).ToString()
	if err == nil && !strings.Contains(info, "cluster_state:ok") {
		err = errors.New("stock: the Redis Cluster is down: a slot has no master")
	}
	return err
}

// Close closes all connections. Calls under way fail with an unknown outcome.
func (s *Store) Close() { s.client.Close() }
