package operator

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"flashgate/internal/sale"
)

// probe is one thing a daemon needs to be ready.
type probe struct {
	name  string
	check func(context.Context) error
}

// ServerOptions are the port's parts.
type ServerOptions struct {
	Listen   string
	Token    string // the bearer token; only /healthz and /readyz go without it
	Gatherer prometheus.Gatherer
	Log      *slog.Logger
}

// Bounds of the operators' port. Who holds the token may take long to be answered: a
// profile, an audit.
const (
	headerTimeoutSeconds = 5
	strangerWriteSeconds = 10 // for probes and refusals
	readTimeoutSeconds   = 30
	idleTimeoutSeconds   = 120
	drainTimeoutSeconds  = 5
	probeTimeoutSeconds  = 2
	maxBodyBytes         = 1 << 20 // a mended batch of 1,024 orders is some 300 kB
	maxHeaderBytes       = 16 << 10
)

// Server is the operators' port. It answers before the engines are there, so that
// /readyz can say what is missing.
type Server struct {
	o        ServerOptions
	listener net.Listener
	http     *http.Server
	admin    atomic.Pointer[http.ServeMux] // nil until Serve

	mu     sync.Mutex
	probes []probe
}

// NewServer binds the port; Run serves it.
func NewServer(o ServerOptions) (*Server, error) {
	if o.Token == "" {
		return nil, errors.New("operators' port: the token is empty; set FLASHGATE_ADMIN_TOKEN")
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	l, err := net.Listen("tcp", o.Listen)
	if err != nil {
		return nil, err
	}
	s := &Server{o: o, listener: l}
	s.http = &http.Server{
		Handler:           s.routes(),
		ReadHeaderTimeout: headerTimeoutSeconds * time.Second,
		ReadTimeout:       readTimeoutSeconds * time.Second,
		IdleTimeout:       idleTimeoutSeconds * time.Second,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(o.Log.Handler(), slog.LevelDebug),
	}
	return s, nil
}

// Addr is where the port is bound.
func (s *Server) Addr() string { return s.listener.Addr().String() }

// AddProbe adds a thing that the daemon needs to be ready.
func (s *Server) AddProbe(name string, check func(context.Context) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.probes = append(s.probes, probe{name, check})
}

// Serve puts a service behind /admin/v1.
func (s *Server) Serve(service Service) {
	mux := http.NewServeMux()
	adminRoutes(mux, service)
	s.admin.Store(mux)
}

// Run serves until ctx ends, then drains within a bound.
func (s *Server) Run(ctx context.Context) error {
	done := make(chan error, 1)
	go func() { done <- s.http.Serve(s.listener) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	drain, cancel := context.WithTimeout(context.Background(), drainTimeoutSeconds*time.Second)
	defer cancel()
	if err := s.http.Shutdown(drain); err != nil {
		return s.http.Close()
	}
	return nil
}

func (s *Server) routes() http.Handler {
	open := http.NewServeMux()
	open.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, map[string]string{"status": "alive"})
	})
	open.HandleFunc("GET /readyz", s.ready)

	guarded := http.NewServeMux()
	guarded.Handle("GET /metrics", promhttp.HandlerFor(s.o.Gatherer, promhttp.HandlerOpts{}))
	guarded.HandleFunc("/debug/pprof/", pprof.Index)
	guarded.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	guarded.HandleFunc("/debug/pprof/profile", pprof.Profile)
	guarded.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	guarded.HandleFunc("/debug/pprof/trace", pprof.Trace)
	guarded.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		if admin := s.admin.Load(); admin != nil {
			admin.ServeHTTP(w, r)
			return
		}
		writeJSON(w, http.StatusServiceUnavailable, failure{sale.CodeUnavailable, "the process is starting: /readyz says what it waits for"})
	})
	open.Handle("/", s.authenticated(guarded))
	return http.MaxBytesHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		writeWithin(w, strangerWriteSeconds*time.Second)
		open.ServeHTTP(w, r)
	}), maxBodyBytes)
}

// writeWithin bounds how long the answer may take to be written; 0 is no bound. A client
// that stops reading holds its connection no longer.
func writeWithin(w http.ResponseWriter, d time.Duration) {
	var deadline time.Time
	if d > 0 {
		deadline = time.Now().Add(d)
	}
	// A writer that has no deadlines is none of a connection.
	_ = http.NewResponseController(w).SetWriteDeadline(deadline)
}

func (s *Server) authenticated(next http.Handler) http.Handler {
	// Hashes are compared, so that the time taken tells nothing, not even a length.
	want := sha256.Sum256([]byte(s.o.Token))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		got := sha256.Sum256([]byte(token))
		if !ok || subtle.ConstantTimeCompare(got[:], want[:]) != 1 {
			w.Header().Set("WWW-Authenticate", `Bearer realm="flashgate operators"`)
			writeJSON(w, http.StatusUnauthorized, failure{Code: "UNAUTHENTICATED", Detail: "this port wants `Authorization: Bearer $FLASHGATE_ADMIN_TOKEN`"})
			return
		}
		writeWithin(w, 0)
		next.ServeHTTP(w, r)
	})
}

// ready says what the process lacks to do its work.
func (s *Server) ready(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), probeTimeoutSeconds*time.Second)
	defer cancel()
	s.mu.Lock()
	probes := s.probes
	s.mu.Unlock()
	type answer struct {
		probe int
		err   error
	}
	answers := make(chan answer, len(probes))
	for i, p := range probes {
		go func() { answers <- answer{i, p.check(ctx)} }()
	}
	lacks := make([]string, len(probes))
	for i, p := range probes {
		lacks[i] = p.name + ": no answer in time"
	}
wait:
	for range probes {
		select {
		case a := <-answers:
			lacks[a.probe] = ""
			if a.err != nil {
				lacks[a.probe] = probes[a.probe].name + ": " + a.err.Error()
			}
		case <-ctx.Done():
			break wait
		}
	}
	lacks = slices.DeleteFunc(lacks, func(s string) bool { return s == "" })
	status := http.StatusOK
	if len(lacks) > 0 {
		status = http.StatusServiceUnavailable
	}
	writeJSON(w, status, map[string]any{"ready": len(lacks) == 0, "lacks": lacks})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	// The status is out; a client that has gone cannot be told more.
	_ = e.Encode(v)
}
