package cli

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"flashgate/internal/rig"
)

// The answers are those of the operators' port (operator.Server).
func TestReady(t *testing.T) {
	inFolder(t)
	for name, c := range map[string]struct {
		status int
		body   string
		code   int
		says   string
	}{
		"ready":           {200, `{"ready":true,"lacks":[]}`, 0, "ready\n"},
		"not ready":       {503, `{"ready":false,"lacks":["redis: no answer in time","start: starting"]}`, 1, "redis: no answer in time; start: starting"},
		"something else":  {404, "not found", 1, "is no operators' port: 404"},
		"nothing of ours": {200, `{}`, 1, "not ready"},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				assert.Equal(t, "/readyz", r.URL.Path)
				w.WriteHeader(c.status)
				_, _ = w.Write([]byte(c.body)) // the command says what it read
			}))
			defer server.Close()
			code, out, errout := command("ready", "--operators-listen", strings.TrimPrefix(server.URL, "http://"))
			require.Equal(t, c.code, code, out+errout)
			require.Contains(t, out+errout, c.says)
		})
	}
	nobody, err := rig.FreeAddresses(1)
	require.NoError(t, err)
	code, _, errout := command("ready", "--operators-listen", nobody[0])
	require.Equal(t, 1, code)
	require.Contains(t, errout, "no daemon answers")
}
