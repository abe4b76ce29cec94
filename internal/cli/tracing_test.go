package cli

import (
	"bufio"
	"compress/gzip"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/protobuf/proto"

	"flashgate/internal/config"
)

// span is what a collector was sent of one.
type span struct {
	trace, id, parent, service string
	attributes                 map[string]string
}

// collect is an OpenTelemetry collector.
func collect(t *testing.T) (url string, spans func() map[string]span) {
	var mu sync.Mutex
	got := map[string]span{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var body io.Reader = r.Body
		if r.Header.Get("Content-Encoding") == "gzip" {
			unzipped, err := gzip.NewReader(r.Body)
			if err != nil {
				t.Error(err)
				return
			}
			body = unzipped
		}
		content, err := io.ReadAll(body)
		var q collector.ExportTraceServiceRequest
		if err != nil || proto.Unmarshal(content, &q) != nil || r.URL.Path != "/v1/traces" {
			t.Error(err, r.URL.Path)
		}
		mu.Lock()
		defer mu.Unlock()
		for _, of := range q.GetResourceSpans() {
			service := ""
			for _, a := range of.GetResource().GetAttributes() {
				if a.GetKey() == "service.name" {
					service = a.GetValue().GetStringValue()
				}
			}
			for _, in := range of.GetScopeSpans() {
				for _, s := range in.GetSpans() {
					attributes := map[string]string{}
					for _, a := range s.GetAttributes() {
						attributes[a.GetKey()] = a.GetValue().GetStringValue()
					}
					got[s.GetName()] = span{string(s.GetTraceId()), string(s.GetSpanId()), string(s.GetParentSpanId()), service, attributes}
				}
			}
		}
	}))
	t.Cleanup(server.Close)
	return server.URL, func() map[string]span {
		mu.Lock()
		defer mu.Unlock()
		copied := map[string]span{}
		for name, s := range got {
			copied[name] = s
		}
		return copied
	}
}

// One purchase is one trace, from the shopper's request to the ledger, with what was
// logged of it; and neither holds a secret.
func TestAPurchaseIsOneTrace(t *testing.T) {
	endpoint, spans := collect(t)
	inFolder(t)
	r := startEmbedded(t, func(c *config.Config) {
		c.Log.Level, c.Log.Format = "debug", "json"
		c.Tracing = config.Tracing{Endpoint: endpoint, Sample: 1, Timeout: 5 * time.Second}
	})
	const parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	status, answer := r.purchase("traceparent: "+parent, "Idempotency-Key: a-key")
	require.Equal(t, 202, status, answer)
	var order struct {
		OrderID string `json:"order_id"`
	}
	require.NoError(t, json.Unmarshal([]byte(bodyOf(t, answer)), &order))
	names := []string{"POST purchases", "batch", "reserve", "half", "confirm", "persist", "ledger transaction", "settle"}
	var got map[string]span
	require.Eventually(t, func() bool {
		got = spans()
		for _, name := range names {
			if _, ok := got[name]; !ok {
				return false
			}
		}
		return true
	}, 30*time.Second, 50*time.Millisecond)
	for _, name := range names {
		require.Equal(t, got["POST purchases"].trace, got[name].trace, name)
		require.Equal(t, "flashgate-embedded", got[name].service)
	}
	require.Equal(t, "\x4b\xf9\x2f\x35\x77\xb3\x4d\xa6\xa3\xce\x92\x9d\x0e\x0e\x47\x36", got["batch"].trace, "the caller's")
	require.Equal(t, got["POST purchases"].id, got["batch"].parent)
	require.Equal(t, got["batch"].id, got["reserve"].parent)
	require.Equal(t, got["batch"].id, got["confirm"].parent)
	require.Equal(t, got["half"].id, got["persist"].parent, "over the bus")
	require.Equal(t, got["persist"].id, got["ledger transaction"].parent)
	require.Equal(t, order.OrderID, got["POST purchases"].attributes["flashgate.order_id"])
	require.Equal(t, "OK", got["POST purchases"].attributes["flashgate.code"])

	text := r.log()
	secrets, err := os.ReadFile("data/env")
	require.NoError(t, err)
	hidden := []string{r.token(), r.token()[strings.LastIndex(r.token(), ".")+1:]}
	for line := range strings.SplitSeq(string(secrets), "\n") {
		if _, value, ok := strings.Cut(line, "='"); ok {
			hidden = append(hidden, strings.TrimSuffix(value, "'"))
		}
	}
	require.Len(t, hidden, 4)
	for _, secret := range hidden {
		require.NotContains(t, text, secret)
	}
	found := false
	for lines := bufio.NewScanner(strings.NewReader(text)); lines.Scan(); {
		var record map[string]any
		require.NoError(t, json.Unmarshal(lines.Bytes(), &record), lines.Text())
		if record["msg"] == "purchase accepted" {
			found = true
			require.Equal(t, "4bf92f3577b34da6a3ce929d0e0e4736", record["trace_id"])
			require.Equal(t, order.OrderID, record["order"])
		}
	}
	require.True(t, found, text)
}
