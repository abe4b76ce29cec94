package operator

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
)

// timedWriter notes the deadline that its connection has when the answer begins.
type timedWriter struct {
	*httptest.ResponseRecorder
	deadline, atHeader time.Time
}

func (w *timedWriter) SetWriteDeadline(t time.Time) error { w.deadline = t; return nil }
func (w *timedWriter) WriteHeader(status int) {
	w.atHeader = w.deadline
	w.ResponseRecorder.WriteHeader(status)
}

// Strangers are answered within a bound, or not at all; a profile may take its time.
func TestStrangersAreAnsweredWithinABound(t *testing.T) {
	s, err := NewServer(ServerOptions{Listen: "127.0.0.1:0", Token: "t", Gatherer: prometheus.NewRegistry()})
	require.NoError(t, err)
	defer func() { require.NoError(t, s.listener.Close()) }()
	require.Positive(t, s.http.ReadHeaderTimeout)
	require.Positive(t, s.http.ReadTimeout)
	require.Positive(t, s.http.IdleTimeout)
	for _, path := range []string{"/healthz", "/readyz", "/metrics", "/debug/pprof/cmdline"} {
		w := &timedWriter{ResponseRecorder: httptest.NewRecorder()}
		s.http.Handler.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		require.True(t, w.atHeader.After(time.Now()), path)
	}
	r := httptest.NewRequest(http.MethodGet, "/debug/pprof/cmdline", nil)
	r.Header.Set("Authorization", "Bearer t")
	w := &timedWriter{ResponseRecorder: httptest.NewRecorder()}
	s.http.Handler.ServeHTTP(w, r)
	require.Equal(t, 200, w.Code)
	require.Zero(t, w.deadline)
}
