package cli

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"flashgate/internal/sale"
	"flashgate/internal/stock"
)

// inFolder runs commands in a working directory that has the project's configs.
func inFolder(t *testing.T) {
	t.Helper()
	files, err := filepath.Glob("../../configs/*.yaml")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	dir := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(dir, "configs"), 0o755))
	for _, file := range files {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(dir, "configs", filepath.Base(file)), text, 0o644))
	}
	t.Chdir(dir)
	for _, name := range []string{"FLASHGATE_JWT_SECRET", "FLASHGATE_ADMIN_TOKEN", "FLASHGATE_MYSQL_DSN"} {
		t.Setenv(name, "") // restored afterwards
		require.NoError(t, os.Unsetenv(name))
	}
}

func command(args ...string) (code int, stdout, stderr string) {
	var out, errout bytes.Buffer
	code = Run(args, &out, &errout)
	return code, out.String(), errout.String()
}

const embedded = "--config=configs/embedded.yaml"

// TestCommandsOnAFolderThatNobodyRuns: the commands open ./data themselves.
func TestCommandsOnAFolderThatNobodyRuns(t *testing.T) {
	inFolder(t)
	must := func(args ...string) string {
		t.Helper()
		code, out, errout := command(append(args, embedded)...)
		require.Zero(t, code, "%s%s", out, errout)
		return out
	}
	require.Contains(t, must("sale", "list"), "no sales yet")
	create := []string{"sale", "create", "--id", "s", "--title", "T", "--total", "5", "--price-cents", "100", "--ends-at", "2090-01-01T00:00:00Z"}
	require.Contains(t, must(create...), "created")
	require.Contains(t, must(create...), "there already", "a sale that starts now can be created twice")
	require.Contains(t, must("sale", "open", "s"), "OPEN")
	require.Contains(t, must("sale", "open", "s"), "already")
	require.Contains(t, must("sale", "pause", "s"), "paused")
	require.Contains(t, must("sale", "restock", "s", "--add", "3"), "8 units")
	require.Contains(t, must(create...), "there already", "and after a restock")
	require.Contains(t, must("sale", "load", "s"), "already", "what opens the folder loads it")
	require.Contains(t, must("sale", "list", "--json"), `"available": 8`)
	require.Contains(t, must("audit"), "no invariant is broken")
	require.Contains(t, must("audit", "--sale", "s", "--json"), `"ok": true`)
	require.Contains(t, must("reconcile", "--once"), "0 left")
	require.Contains(t, must("migrate"), "up to date")
	token := must("token", "--user", "alice")
	require.Equal(t, 2, strings.Count(token, "."), "a token alone: %s", token)
	require.Equal(t, 1, strings.Count(token, "\n"))
	require.NoError(t, os.WriteFile("users", []byte("alice\nbob\r\n\ncarol"), 0o600))
	lines := strings.Split(strings.TrimSpace(must("token", "--users", "users")), "\n")
	require.Len(t, lines, 3)
	require.True(t, strings.HasPrefix(lines[1], "bob ey"), lines[1])
	info, err := os.Stat("data/env")
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
}

func TestRefusalsSayWhatToDo(t *testing.T) {
	inFolder(t)
	for _, c := range []struct {
		name string
		args []string
		says string
	}{
		{"no such file", []string{"audit", "--config=nothing.yaml"}, "nothing.yaml"},
		{"no secret", []string{"token", "--user", "u"}, "FLASHGATE_JWT_SECRET"},
		{"no ledger", []string{"audit"}, "FLASHGATE_MYSQL_DSN"},
		{"a time without a date", []string{"sale", "create", embedded, "--id", "s", "--title", "T", "--total", "1", "--price-cents", "1", "--ends-at", "noon"}, "RFC 3339"},
		{"a sale without a total", []string{"sale", "create", embedded, "--id", "s"}, "total"},
		{"an unknown sale", []string{"sale", "open", embedded, "nothing"}, "SALE_NOT_FOUND"},
		{"both users", []string{"token", embedded, "--user", "u", "--users", "f"}, "either"},
		{"no ttl", []string{"token", embedded, "--user", "u", "--ttl", "-1s"}, "--ttl"},
		{"reconcile without once", []string{"reconcile", embedded}, "--once"},
		{"bare on real engines", []string{"--config=configs/local.yaml"}, "real engines"},
		{"an unknown command", []string{"sell"}, "unknown command"},
		{"an unknown sale command", []string{"sale", "opne", "s"}, "opne"},
	} {
		t.Run(c.name, func(t *testing.T) {
			code, out, errout := command(c.args...)
			require.Equal(t, 1, code)
			require.Empty(t, out)
			require.Contains(t, errout, c.says)
		})
	}
}

func TestADaemonOnAnEmbeddedConfigIsRefused(t *testing.T) {
	inFolder(t)
	for _, daemon := range []string{"gateway", "worker", "reconciler"} {
		code, _, errout := command(daemon, embedded)
		require.Equal(t, 1, code)
		require.Contains(t, errout, "bare `flashgate`")
	}
}

func TestCheckConfig(t *testing.T) {
	inFolder(t)
	for _, args := range [][]string{{}, {"gateway"}, {"worker"}, {"audit", "--config=configs/production.yaml"}} {
		code, out, errout := command(append(args, "--check-config")...)
		require.Zero(t, code, errout)
		require.Contains(t, out, "OK")
	}
	require.NoDirExists(t, "data", "nothing else is done")
	text, err := os.ReadFile("configs/local.yaml")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile("configs/local.yaml", append(text, "\nlissten: x\n"...), 0o600))
	code, _, errout := command("gateway", "--check-config")
	require.Equal(t, 1, code)
	require.Contains(t, errout, "lissten")
	require.Contains(t, errout, "listen", "what would be right")
}

func TestHelpTeaches(t *testing.T) {
	code, out, _ := command("--help")
	require.Zero(t, code)
	for _, word := range []string{"gateway", "worker", "reconciler", "migrate", "sale", "token", "audit", "reconcile", "flashgate sale open s1"} {
		require.Contains(t, out, word)
	}
}

func TestWhatSpeaksAgainstAnEngine(t *testing.T) {
	require.True(t, failed(errors.New("i/o timeout")))
	require.True(t, failed(stock.ErrNotRun))
	require.True(t, failed(stock.ErrNotReplicated))
	for _, answer := range []error{&sale.Error{Code: sale.CodeOrderNotFound}, stock.ErrNotReady, stock.ErrBatchKnown} {
		require.False(t, failed(answer), answer.Error())
	}
}
