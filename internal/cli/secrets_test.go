package cli

import (
	"database/sql"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"flashgate/internal/config"
	"flashgate/internal/rig"
	"flashgate/internal/token"
)

// The secrets of these tests; each is found by a part of it, too.
const (
	secretJWT   = "tJ8wPq2-hunter2-jwt-Zs5vXk9mRb4nLc7d"
	secretAdmin = "aQ3xTn6-hunter2-admin-Vg8hYf2pWe5uKs1"
	secretDSN   = "pL7zMd4-hunter2-mysql"
)

// hidden says which secret a text gives away, or a part or a form of one.
func hidden(text string) string {
	for _, s := range []string{secretJWT, secretAdmin, secretDSN, "hunter2", fmt.Sprintf("%x", "hunter2")} {
		if strings.Contains(text, s) {
			return s
		}
	}
	return ""
}

// A whole life of the program at debug level, with hostile shoppers, operators without a
// token, and a ledger that breaks, is told in its log without one secret, token or name of
// a shopper, one record a line.
func TestALogTellsNoSecret(t *testing.T) {
	for _, format := range []string{"text", "json"} {
		t.Run(format, func(t *testing.T) {
			inFolder(t)
			t.Setenv(config.EnvJWTSecret, secretJWT)
			t.Setenv(config.EnvAdminToken, secretAdmin)
			r := startEmbedded(t, func(c *config.Config) { c.Log.Level, c.Log.Format = "debug", format })
			issuer, err := token.NewIssuer([]byte(secretJWT), "", "")
			require.NoError(t, err)
			const name = "mallory"
			var tokens []string
			bearer := func(user string) string {
				raw, err := issuer.Issue(user, time.Hour)
				require.NoError(t, err)
				tokens = append(tokens, raw, raw[strings.LastIndexByte(raw, '.')+1:])
				return raw
			}
			evil := bearer(name + "\nlevel=ERROR msg=forged \x1b[2J\u009b'; DROP TABLE orders; --")
			const buy = "/v1/sales/demo/purchases"

			// Shoppers, good and bad.
			status, answer := r.ask("POST", r.shoppers, buy, evil, "Idempotency-Key: "+name+"'; --")
			require.Equal(t, 202, status, answer)
			require.Empty(t, hidden(answer))
			var bought struct {
				OrderID string `json:"order_id"`
			}
			require.NoError(t, json.Unmarshal([]byte(bodyOf(t, answer)), &bought))
			for _, bad := range []string{evil + "x", evil[:len(evil)-4] + "AAAA", secretJWT, secretAdmin, "a.b.c", strings.Repeat(evil, 10)} {
				status, answer := r.ask("POST", r.shoppers, buy, bad)
				require.Contains(t, []int{400, 401, 431}, status)
				require.Empty(t, hidden(answer))
			}
			for _, path := range []string{"/v1/orders/" + bought.OrderID, "/v1/orders", "/v1/orders?sale_id=demo", "/v1/sales", "/" + name} {
				_, answer := r.ask("GET", r.shoppers, path, evil)
				require.Empty(t, hidden(answer))
			}
			r.ask("GET", r.shoppers, "/v1/sales\x00 HTTP/9", evil, "\x00: x", "Content-Length: 5")
			r.ask("POST", r.shoppers, buy, evil, "Content-Length: 99999999", "Idempotency-Key: "+name+"\x1b[2J")

			// Operators, good and bad.
			for _, path := range []string{
				"/metrics", "/readyz", "/healthz", "/debug/pprof/", "/debug/pprof/cmdline", "/debug/pprof/goroutine?debug=2", "/debug/pprof/allocs?debug=1",
				"/admin/v1/sales", "/admin/v1/audit", "/admin/v1/tasks", "/admin/v1/dead-batches", "/admin/v1/reconcile/reports", "/admin/v1/" + name,
			} {
				for _, token := range []string{"", secretAdmin, secretAdmin + "x", evil} {
					_, answer := r.ask("GET", r.operators, path, token)
					require.Empty(t, hidden(answer), path)
					for _, raw := range tokens {
						require.NotContains(t, answer, raw, path)
					}
				}
			}
			status, _ = r.ask("POST", r.operators, "/admin/v1/reconcile", secretAdmin)
			require.Equal(t, 200, status)

			// The ledger breaks under a purchase, and mends.
			ledger, err := sql.Open("sqlite", "data/ledger.db")
			require.NoError(t, err)
			defer func() { require.NoError(t, ledger.Close()) }()
			exec := func(statement string) {
				require.Eventually(t, func() bool { _, err := ledger.Exec(statement); return err == nil }, 20*time.Second, 10*time.Millisecond)
			}
			exec("ALTER TABLE orders RENAME TO orders_away")
			second := bearer(name + "-2")
			status, answer = r.ask("POST", r.shoppers, buy, second)
			require.Equal(t, 202, status, answer)
			require.Eventually(t, func() bool { return strings.Contains(r.log(), "the ledger did not take it") }, 30*time.Second, 10*time.Millisecond)
			r.ask("GET", r.shoppers, "/v1/orders", second)
			exec("ALTER TABLE orders_away RENAME TO orders")
			require.Eventually(t, func() bool {
				_, answer := r.ask("GET", r.shoppers, "/v1/orders", second)
				return strings.Contains(answer, "PENDING_PAYMENT")
			}, 30*time.Second, 10*time.Millisecond)
			r.stop()

			require.Empty(t, hidden(r.greeting.String()), "the greeting tells no secret")
			log := r.log()
			require.NotEmpty(t, log)
			require.Empty(t, hidden(log))
			for _, raw := range tokens {
				require.NotContains(t, log, raw)
			}
			require.NotContains(t, log, name, "nor a shopper's name or key")
			require.False(t, controls(log))
			for line := range strings.Lines(log) {
				if format == "json" {
					require.True(t, json.Valid([]byte(line)), "%q", line)
				} else {
					require.Regexp(t, `^time=\S+ level=(DEBUG|INFO|WARN|ERROR) msg=`, line)
				}
			}
		})
	}
}

// What the commands say of secrets that are wrong, or of engines that are away, holds none.
func TestCommandsTellNoSecret(t *testing.T) {
	inFolder(t)
	t.Setenv(config.EnvJWTSecret, secretJWT)
	t.Setenv(config.EnvAdminToken, secretAdmin)
	nobody, err := rig.FreeAddresses(1)
	require.NoError(t, err)
	text, err := os.ReadFile("configs/local.yaml")
	require.NoError(t, err)
	before, after, ok := strings.Cut(string(text), "    - 127.0.0.1:7001\n")
	require.True(t, ok)
	_, after, ok = strings.Cut(after, "7006\n")
	require.True(t, ok)
	require.NoError(t, os.WriteFile("configs/local.yaml", []byte(before+"    - "+nobody[0]+"\n"+strings.ReplaceAll(after, "127.0.0.1:9876", nobody[0])), 0o600))
	for _, dsn := range []string{
		"flashgate:" + secretDSN + "@tcp(" + nobody[0] + ")/flashgate", "flashgate:" + secretDSN + "@tcp(no.such.host.invalid:3306)/flashgate",
		"flashgate:" + secretDSN, "flashgate:" + secretDSN + "@tcp(127.0.0.1:x)/f?parseTime=maybe", secretDSN,
	} {
		t.Setenv("FLASHGATE_MYSQL_DSN", dsn)
		for _, args := range [][]string{{"--check-config", "gateway"}, {"migrate"}, {"token", "--user", ""}, {"token", "--user", strings.Repeat("u", 65)}} {
			_, out, errout := command(args...)
			require.Empty(t, hidden(out+errout), "%v: %s%s", args, out, errout)
		}
	}
	t.Setenv(config.EnvJWTSecret, "hunter2")
	t.Setenv(config.EnvAdminToken, "hunter2")
	for _, args := range [][]string{{"--check-config", "gateway"}, {"token", "--user", "u"}, {"gateway"}} {
		code, out, errout := command(args...)
		require.Equal(t, 1, code, "%v: too short on real engines", args)
		require.Empty(t, hidden(out+errout), "%v: %s%s", args, out, errout)
	}
}
