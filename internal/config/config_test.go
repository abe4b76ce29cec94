package config_test

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"flashgate/internal/config"
)

const configs = "../../configs"

// A file under configs/ that can't be read is a release that does not start.
func TestEveryFileUnderConfigs(t *testing.T) {
	entries, err := os.ReadDir(configs)
	require.NoError(t, err)
	var names []string
	for _, e := range entries {
		name := e.Name()
		names = append(names, name)
		if strings.HasPrefix(name, "limits.") {
			continue // read by way of the others, and in internal/limits
		}
		t.Run(name, func(t *testing.T) {
			c, err := config.Load(filepath.Join(configs, name))
			require.NoError(t, err)
			require.Equal(t, "configs/limits.yaml", c.Limits)
			require.NotNil(t, c.Rules)
			require.GreaterOrEqual(t, c.Rules.Concurrency.Purchase, 8192)
			require.GreaterOrEqual(t, c.Rules.Concurrency.Read, 8192)
			require.GreaterOrEqual(t, c.Gateway.Concurrency, 8192)
			require.Equal(t, 20*time.Second, c.Batch.Hold)
			_, err = config.Check(filepath.Join(configs, name))
			require.NoError(t, err)
		})
	}
	require.Equal(t, []string{
		"embedded.yaml", "limits.opening.yaml", "limits.panic.yaml", "limits.warmup.yaml", "limits.yaml",
		"local.yaml", "production.yaml",
	}, names)
}

// What scripts rely on, as text.
func TestFormsOfTheShippedFiles(t *testing.T) {
	for _, name := range []string{"embedded.yaml", "local.yaml"} {
		text := read(t, filepath.Join(configs, name))
		for _, line := range []string{"\nlisten: 127.0.0.1:8080", "\noperators_listen: 127.0.0.1:9090", "\nlimits: configs/limits.yaml\n"} {
			require.Equal(t, 1, strings.Count(text, line), "%s: %s", name, line)
		}
	}
	local, err := config.Load(filepath.Join(configs, "local.yaml"))
	require.NoError(t, err)
	for i, address := range local.Redis.Addresses {
		require.Equal(t, fmt.Sprintf("127.0.0.1:%d", 7001+i), address)
	}
	require.Len(t, local.Redis.Addresses, 6)
	require.True(t, local.Redis.Password.IsZero())
	require.Equal(t, []string{"127.0.0.1:9876"}, local.RocketMQ.NameServers)
	require.Equal(t, 1, local.WaitReplicas())

	embedded, err := config.Load(filepath.Join(configs, "embedded.yaml"))
	require.NoError(t, err)
	require.Equal(t, 0, embedded.WaitReplicas())
	demo := embedded.DemoSale(time.Now())
	require.NoError(t, demo.Validate())
}

func read(t *testing.T, path string) string {
	t.Helper()
	content, err := os.ReadFile(path)
	require.NoError(t, err)
	return string(content)
}

// write makes <dir>/configs/<name>, with the shipped limits beside it, and returns its path.
func write(t *testing.T, dir, name, content string) string {
	t.Helper()
	folder := filepath.Join(dir, "configs")
	require.NoError(t, os.MkdirAll(folder, 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(folder, "limits.yaml"), []byte(read(t, configs+"/limits.yaml")), 0o600))
	path := filepath.Join(folder, name)
	require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
	return path
}

const realConfig = `engines: real
listen: 127.0.0.1:8080
operators_listen: 127.0.0.1:9090
env_file: .run/env
operators_token: {env: FLASHGATE_TEST_A}
jwt:
  secret: {env: FLASHGATE_TEST_J}
redis:
  addresses: ["127.0.0.1:7001"]
rocketmq:
  name_servers: ["127.0.0.1:9876"]
mysql:
  dsn: {env: FLASHGATE_TEST_D}
`

const embeddedConfig = `engines: embedded
listen: 127.0.0.1:8080
operators_listen: 127.0.0.1:9090
operators_token: {env: FLASHGATE_ADMIN_TOKEN}
jwt: {secret: {env: FLASHGATE_JWT_SECRET}}
`

func TestProblems(t *testing.T) {
	dir := t.TempDir()
	for name, tc := range map[string]struct{ base, old, new, want string }{
		"unknown key":              {realConfig, "\nlisten:", "\nlisen:", ":2: lisen: unknown key: did you mean listen?"},
		"engines":                  {realConfig, "engines: real", "engines: fake", `:1: engines: "fake": want embedded or real`},
		"a literal secret":         {realConfig, "{env: FLASHGATE_TEST_J}", "hunter2", ":7: jwt.secret: a secret is never written in a config: want {env: VARIABLE} or {file: PATH}"},
		"a literal dsn":            {realConfig, "{env: FLASHGATE_TEST_D}", "root:hunter2@tcp(x)/y", "a secret is never written"},
		"secret by two ways":       {realConfig, "{env: FLASHGATE_TEST_J}", "{env: A, file: B}", "a secret is never written"},
		"secret by another way":    {realConfig, "{env: FLASHGATE_TEST_J}", "{value: hunter2}", "a secret is never written"},
		"not a variable":           {realConfig, "{env: FLASHGATE_TEST_J}", "{env: hunter 2}", "want the name of an environment variable"},
		"no operators' token":      {realConfig, "operators_token: {env: FLASHGATE_TEST_A}\n", "", "operators_token: missing"},
		"no key":                   {realConfig, "  secret: {env: FLASHGATE_TEST_J}", "  leeway: 1s", ":6: jwt: neither secret nor public_keys"},
		"both kinds of keys":       {realConfig, "jwt:\n", "jwt:\n  public_keys: [none.pem]\n", ":7: jwt.public_keys: beside a secret"},
		"a key that is not there":  {realConfig, "secret: {env: FLASHGATE_TEST_J}", "public_keys: [none.pem]", "none.pem"},
		"no redis":                 {realConfig, "redis:\n  addresses: [\"127.0.0.1:7001\"]\n", "", "redis.addresses: missing"},
		"no name server":           {realConfig, "rocketmq:\n  name_servers: [\"127.0.0.1:9876\"]\n", "", "rocketmq.name_servers: missing"},
		"no dsn":                   {realConfig, "mysql:\n  dsn: {env: FLASHGATE_TEST_D}\n", "", "mysql.dsn: missing"},
		"address without a port":   {realConfig, "127.0.0.1:7001", "127.0.0.1", `:9: redis.addresses: "127.0.0.1": want host:port`},
		"address twice":            {realConfig, `"127.0.0.1:7001"`, `"a:1", "a:1"`, `:9: redis.addresses: "a:1" is there twice`},
		"port":                     {realConfig, "127.0.0.1:8080", "127.0.0.1:80800", "listen: \"127.0.0.1:80800\": want host:port"},
		"one listener":             {realConfig, "127.0.0.1:9090", "127.0.0.1:8080", ":3: operators_listen: is the same as listen"},
		"real with a demo":         {realConfig, "mysql:", "demo: {sale: demo}\nmysql:", "demo.sale: contradicts engines: real"},
		"real with a data_dir":     {realConfig, "mysql:", "data_dir: x\nmysql:", "data_dir: contradicts engines: real"},
		"embedded with redis":      {embeddedConfig, "jwt:", "redis: {addresses: [\"a:1\"]}\njwt:", "redis.addresses: contradicts engines: embedded"},
		"embedded with replicas":   {embeddedConfig, "jwt:", "redis: {wait_replicas: 1}\njwt:", "redis.wait_replicas: 1: embedded engines have no replicas"},
		"embedded with a dsn":      {embeddedConfig, "jwt:", "mysql: {dsn: {env: X}}\njwt:", "mysql.dsn: contradicts engines: embedded"},
		"replicas":                 {realConfig, "redis:\n", "redis:\n  wait_replicas: many\n", `:9: redis.wait_replicas: "many": want auto, or a number`},
		"two nodes, no cluster":    {realConfig, "addresses: [\"127.0.0.1:7001\"]", "cluster: false\n  addresses: [\"a:1\", \"b:1\"]", "contradict cluster: false"},
		"hold":                     {realConfig, "mysql:", "batch: {hold: 2s}\nmysql:", ":12: batch.hold: gateway.request_timeout (3s) must be less than batch.hold (2s)"},
		"short lease":              {realConfig, "mysql:", "gateway: {cutoff_lease: 5ms}\nmysql:", ":12: gateway.cutoff_lease: 5ms: want 0s (no cut-off), or 20ms and more: it must last through a few calls of Redis"},
		"request timeout":          {realConfig, "mysql:", "gateway: {request_timeout: 25s}\nmysql:", ":12: gateway.request_timeout: gateway.request_timeout (25s) must be less than batch.hold (20s)"},
		"rebuild wait":             {realConfig, "mysql:", "reconciler: {rebuild_wait: 4s}\nmysql:", ":12: reconciler.rebuild_wait: gateway.request_timeout and rocketmq.half_send_timeout (4s) must be less than reconciler.rebuild_wait (4s)"},
		"check timeout":            {realConfig, "rocketmq:\n", "rocketmq:\n  check_timeout: 6s\n", "rocketmq.check_timeout: rocketmq.check_timeout (6s) must be less than reconciler.rebuild_wait (6s)"},
		"concurrency":              {realConfig, "mysql:", "gateway: {concurrency: 100}\nmysql:", "gateway.concurrency: 100 is out of range: want 8192 to 1000000"},
		"stock older than 200ms":   {realConfig, "mysql:", "gateway: {stock_refresh: 200ms}\nmysql:", "gateway.stock_refresh: 200ms is out of range"},
		"watermark":                {realConfig, "mysql:", "reconciler: {watermark: 100ms}\nmysql:", "reconciler.watermark: 100ms is out of range: want 1s to 24h"},
		"schedule":                 {realConfig, "mysql:", "reconciler: {schedule: hourly}\nmysql:", `:12: reconciler.schedule: "hourly": want five fields`},
		"a schedule that never is": {realConfig, "mysql:", "reconciler: {schedule: '0 0 30 2 *'}\nmysql:", `:12: reconciler.schedule: "0 0 30 2 *": there is no such day`},
		"demo":                     {embeddedConfig, "jwt:", "demo: {sale: demo, total: 0}\njwt:", ":5: demo: total: want 1"},
		"limits":                   {realConfig, "mysql:", "limits: elsewhere.yaml\nmysql:", ":12: limits: elsewhere.yaml is not there"},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, 1, strings.Count(tc.base, tc.old), "the test's own text")
			path := write(t, dir, "c.yaml", strings.Replace(tc.base, tc.old, tc.new, 1))
			_, err := config.Load(path)
			require.ErrorContains(t, err, path)
			require.ErrorContains(t, err, tc.want)
			require.NotContains(t, err.Error(), "hunter2")
		})
	}
}

func TestSeveralProblemsAtOnce(t *testing.T) {
	dir := t.TempDir()
	path := write(t, dir, "c.yaml", strings.NewReplacer(":8080", "", ":7001", "", "{env: FLASHGATE_TEST_A}", "{env: A}\nworker: {backoff_min: 6s}").Replace(realConfig))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "own.yaml"), []byte("gateway: {purchase: {rate: 0, burst: 1}}\n"), 0o600))
	t.Chdir(dir)
	require.NoError(t, os.WriteFile(path, []byte(read(t, path)+"limits: own.yaml\n"), 0o600))
	_, err := config.Load(path)
	for _, want := range []string{
		"c.yaml:2: listen:", "c.yaml:6: worker.backoff_min:", "c.yaml:10: redis.addresses:",
		"own.yaml:1: gateway.purchase.rate: 0 is out of range", "own.yaml:1: user.read.burst: missing",
	} {
		require.ErrorContains(t, err, want)
	}
}

func TestPaths(t *testing.T) {
	dir := t.TempDir()
	path := write(t, dir, "c.yaml", realConfig)
	t.Chdir(t.TempDir())
	c, err := config.Load(path)
	require.NoError(t, err, "limits of the folder above the config's")
	require.Equal(t, filepath.Join(dir, "configs", "limits.yaml"), c.LimitsFile())

	require.NoError(t, os.MkdirAll("configs", 0o700))
	require.NoError(t, os.WriteFile("configs/limits.yaml", []byte(read(t, path[:len(path)-len("c.yaml")]+"limits.yaml")), 0o600))
	c, err = config.Load(path)
	require.NoError(t, err)
	require.Equal(t, "configs/limits.yaml", c.LimitsFile(), "the working directory's comes first")
}

// Secrets are looked up when they are asked for: environment, then env_file.
func TestSecrets(t *testing.T) {
	const (
		own   = "Zq3vJt0mWn8xKc5yRb2sLd7fHg4pTe6u"
		admin = "8uY2kQ7rXw1vPz5nBc9mJd3gLs6tHf0a"
	)
	dir := t.TempDir()
	path := write(t, dir, "c.yaml", realConfig)
	t.Chdir(dir)
	load := func() *config.Config {
		c, err := config.Load(path)
		require.NoError(t, err)
		return c
	}
	_, err := load().MySQLDSN()
	require.ErrorIs(t, err, config.ErrNotSet)
	require.EqualError(t, err, "FLASHGATE_TEST_D is not set (mysql.dsn of "+path+"): run `make up`, which writes .run/env, or export it")

	require.NoError(t, os.Mkdir(".run", 0o700))
	env := func(text string) { require.NoError(t, os.WriteFile(".run/env", []byte(text), 0o600)) }
	env("# a comment\n\nexport FLASHGATE_TEST_J=" + own + "\nFLASHGATE_TEST_D='u:p&$#@tcp(127.0.0.1:3306)/d?a=b'\n FLASHGATE_TEST_A=\"x\\\"\\$y\"\n")
	c := load()
	dsn, err := c.MySQLDSN()
	require.NoError(t, err)
	require.Equal(t, "u:p&$#@tcp(127.0.0.1:3306)/d?a=b", dsn)
	secret, err := c.JWTSecret()
	require.NoError(t, err)
	require.Equal(t, own, string(secret))
	value, err := c.OperatorsToken.Value()
	require.NoError(t, err)
	require.Equal(t, `x"$y`, value)
	_, err = c.AdminToken()
	require.ErrorContains(t, err, "has 4 bytes, fewer than 32")

	t.Setenv("FLASHGATE_TEST_A", admin)
	token, err := c.AdminToken()
	require.NoError(t, err)
	require.Equal(t, admin, token, "the environment comes first")

	line, err := config.Check(path)
	require.NoError(t, err)
	require.Equal(t, path+": OK (real engines, limits of configs/limits.yaml)", line)

	env("FLASHGATE_TEST_J=" + own + "\n")
	_, err = load().MySQLDSN()
	require.ErrorContains(t, err, ".run/env does not set it either")
	line, err = config.Check(path)
	require.NoError(t, err)
	require.Contains(t, line, "; not set here: mysql.dsn (environment variable FLASHGATE_TEST_D)")

	for text, want := range map[string]string{
		"A=b\nfoo\n":       ".run/env:2: want KEY=VALUE",
		"A='b\n":           ".run/env:1: A: the closing quote is missing",
		"A='b'c\n":         "something follows",
		"A=hunter2 b\n":    "put it in single quotes",
		"A=\"$hunter2\"\n": "put the value in single quotes",
	} {
		env(text)
		_, err = load().MySQLDSN()
		require.ErrorContains(t, err, want)
		require.NotContains(t, err.Error(), "hunter2")
	}
}

func TestDSNIsCheckedAndNeverShown(t *testing.T) {
	path := write(t, t.TempDir(), "c.yaml", realConfig)
	c, err := config.Load(path)
	require.NoError(t, err)
	for _, dsn := range []string{"hunter2", "u:hunter2@tcp(127.0.0.1:3306)/", "u:hunter2@tcp(127.0.0.1:3306"} {
		t.Setenv("FLASHGATE_TEST_D", dsn)
		_, err = c.MySQLDSN()
		require.ErrorContains(t, err, "want user:password@tcp(host:port)/database")
		require.NotContains(t, err.Error(), "hunter2")
		_, err = config.Check(path)
		require.Error(t, err)
	}
}

func TestWeakSecretsAreRefusedOnRealEngines(t *testing.T) {
	dir := t.TempDir()
	onReal := write(t, dir, "real.yaml", realConfig)
	embedded := write(t, dir, "embedded.yaml", strings.ReplaceAll(embeddedConfig, "FLASHGATE_JWT_SECRET", "FLASHGATE_TEST_J"))
	for secret, want := range map[string]string{
		"a-string-secret-at-least-256-bits-long":         "is a demo secret that everyone knows",
		"Flashgate-Demo-Secret-Do-Not-Use-In-Production": "is a demo secret that everyone knows",
		"short":                           "has 5 bytes, fewer than 32",
		"0123456789012345678901234567890": "has 31 bytes, fewer than 32",
		strings.Repeat("ab", 40):          "has only 2 distinct bytes",
	} {
		t.Setenv("FLASHGATE_TEST_J", secret)
		c, err := config.Load(onReal)
		require.NoError(t, err)
		_, err = c.TokenOptions()
		require.ErrorContains(t, err, want)
		require.ErrorContains(t, err, "jwt.secret")
		require.NotContains(t, err.Error(), secret)
		_, err = config.Check(onReal)
		require.ErrorContains(t, err, want)

		c, err = config.Load(embedded)
		require.NoError(t, err)
		_, err = c.TokenOptions()
		require.NoError(t, err)
	}
}

func TestSecretFile(t *testing.T) {
	dir := t.TempDir()
	path := write(t, dir, "c.yaml", strings.Replace(realConfig, "{env: FLASHGATE_TEST_J}", "{file: secrets/jwt}", 1))
	t.Chdir(dir)
	c, err := config.Load(path)
	require.NoError(t, err)
	_, err = c.JWTSecret()
	require.ErrorIs(t, err, config.ErrNotSet)
	require.ErrorContains(t, err, "secrets/jwt is not there (jwt.secret of")
	require.NoError(t, os.Mkdir("secrets", 0o700))
	require.NoError(t, os.WriteFile("secrets/jwt", []byte("\n"), 0o600))
	_, err = c.JWTSecret()
	require.ErrorContains(t, err, "secrets/jwt is empty")
	require.NoError(t, os.WriteFile("secrets/jwt", []byte(" Zq3vJt0mWn8xKc5yRb2sLd7fHg4pTe6u \n"), 0o600))
	secret, err := c.JWTSecret()
	require.NoError(t, err)
	require.Equal(t, " Zq3vJt0mWn8xKc5yRb2sLd7fHg4pTe6u ", string(secret))
}

func TestNothingPrintsASecret(t *testing.T) {
	t.Setenv("FLASHGATE_TEST_J", "hunter2")
	path := write(t, t.TempDir(), "c.yaml", realConfig)
	c, err := config.Load(path)
	require.NoError(t, err)
	value, err := c.JWT.Secret.Value()
	require.NoError(t, err)
	require.Equal(t, "hunter2", value)
	encoded, err := json.Marshal(c.JWT)
	require.NoError(t, err)
	var logged strings.Builder
	slog.New(slog.NewTextHandler(&logged, nil)).Info("x", "secret", c.JWT.Secret, "jwt", c.JWT)
	for _, text := range []string{
		fmt.Sprint(c.JWT), fmt.Sprintf("%+v", c.JWT), fmt.Sprintf("%#v", c.JWT), fmt.Sprintf("%s %v %q %x", c.JWT.Secret, &c.JWT.Secret, c.JWT.Secret, c.JWT.Secret),
		string(encoded), logged.String(),
	} {
		require.NotContains(t, text, "hunter2")
		require.NotContains(t, text, "68756e74657232")
	}
	require.Contains(t, fmt.Sprint(c.JWT.Secret), "FLASHGATE_TEST_J")
}

func TestEnsureEnvFile(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	path, err := config.EnsureEnvFile(dir)
	require.NoError(t, err)
	require.Equal(t, filepath.Join(dir, "env"), path)
	first := read(t, path)
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())

	again, err := config.EnsureEnvFile(dir)
	require.NoError(t, err)
	require.Equal(t, path, again)
	require.Equal(t, first, read(t, path), "kept")
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, entries, 1, "nothing left lying about")

	file := write(t, t.TempDir(), "c.yaml", embeddedConfig+"data_dir: "+dir+"\n")
	t.Setenv(config.EnvJWTSecret, "")
	t.Setenv(config.EnvAdminToken, "")
	c, err := config.Load(file)
	require.NoError(t, err)
	secret, err := c.JWTSecret()
	require.NoError(t, err)
	token, err := c.AdminToken()
	require.NoError(t, err)
	require.Len(t, secret, 64)
	require.Len(t, token, 64)
	require.NotEqual(t, string(secret), token)
	require.Contains(t, first, "FLASHGATE_JWT_SECRET='"+string(secret)+"'\n")

	other, err := config.EnsureEnvFile(t.TempDir())
	require.NoError(t, err)
	require.NotContains(t, read(t, other), string(secret))
}

func TestEmbeddedBeforeTheFirstStart(t *testing.T) {
	t.Setenv(config.EnvJWTSecret, "")
	file := write(t, t.TempDir(), "c.yaml", embeddedConfig)
	t.Chdir(t.TempDir())
	c, err := config.Load(file)
	require.NoError(t, err)
	_, err = c.JWTSecret()
	require.ErrorIs(t, err, config.ErrNotSet)
	require.ErrorContains(t, err, "the first start of `flashgate` writes data/env")
}
