package system

import (
	"context"
	"database/sql"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-sql-driver/mysql"
	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"flashgate/bench/load"
	"flashgate/internal/enginetest"
)

// TestARunOfItsOwnLeavesNothing: within it there are a database, and an environment that
// names it; a second run is refused; afterwards database and keys are gone.
func TestARunOfItsOwnLeavesNothing(t *testing.T) {
	ctx, dsn, redis := t.Context(), enginetest.MariaDB(t), enginetest.Redis(t)
	t.Setenv(EnvMySQLDSN, dsn)
	config := filepath.Join(t.TempDir(), "config.yaml")
	require.NoError(t, os.WriteFile(config, []byte(
		"redis: {addresses: ["+strings.Join(redis, ", ")+"]}\nmysql: {dsn: {env: "+EnvMySQLDSN+"}}\n"), 0o600))
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: redis, DisableCache: true})
	require.NoError(t, err)
	t.Cleanup(client.Close)
	stock := func(sale string) string { return keysOf(sale)[0] }
	ours, others := NewSaleID("own"), NewSaleID("others")
	for _, sale := range []string{ours, others} {
		require.NoError(t, client.Do(ctx, client.B().Set().Key(stock(sale)).Value("1").Build()).Error())
	}
	t.Cleanup(func() {
		client.Do(context.WithoutCancel(ctx), client.B().Unlink().Key(stock(others)).Build())
	})
	o := &Options{Start: StartDaemons, Config: config, Own: true}
	exists := func(name string) bool {
		db, err := sql.Open("mysql", dsn)
		require.NoError(t, err)
		defer func() { require.NoError(t, db.Close()) }()
		n := 0
		require.NoError(t, db.QueryRowContext(ctx, "SELECT COUNT(*) FROM information_schema.schemata WHERE schema_name = ?", name).Scan(&n))
		return n == 1
	}

	var name string
	err = withOwn(ctx, o, &load.Progress{}, func() error {
		sys := &System{Config: config, own: o.own}
		own, err := mysql.ParseDSN(sys.Secret(EnvMySQLDSN))
		require.NoError(t, err)
		name = own.DBName
		require.True(t, exists(name))
		require.Contains(t, sys.own.env(), EnvMySQLDSN+"="+own.FormatDSN())
		sys.own.note(ours)

		second := *o
		second.own = nil
		require.ErrorContains(t, withOwn(ctx, &second, &load.Progress{}, func() error { return nil }), "another run")
		return os.ErrInvalid
	})
	require.ErrorIs(t, err, os.ErrInvalid)
	require.Nil(t, o.own)
	require.NotEqual(t, name, "")
	require.False(t, exists(name))
	for sale, want := range map[string]int64{ours: 0, others: 1} {
		n, err := client.Do(ctx, client.B().Exists().Key(stock(sale)).Build()).AsInt64()
		require.NoError(t, err)
		require.Equal(t, want, n, sale)
	}
	require.NoError(t, withOwn(ctx, o, &load.Progress{}, func() error { return nil }), "the lock was given back")
}

func TestARunOnTheLedgerOfTheConfig(t *testing.T) {
	config := filepath.Join(t.TempDir(), "config.yaml")
	require.NoError(t, os.WriteFile(config, []byte("mysql: {dsn: {file: /run/dsn}}\n"), 0o600))
	for _, o := range []*Options{
		{Start: StartEmbedded, Own: true}, {Start: StartDaemons, Config: config}, {Start: StartDaemons, Config: config, Own: true},
	} {
		called := false
		require.NoError(t, withOwn(t.Context(), o, &load.Progress{}, func() error {
			called = o.own == nil
			return nil
		}))
		require.True(t, called)
	}
}

func TestSaleIDs(t *testing.T) {
	for _, scenario := range []string{"storm", "accept, batch.max 1", strings.Repeat("längst", 20)} {
		require.Regexp(t, `^bench-[a-z0-9-]+-\d{8}-\d{6}-[0-9a-f]{8}$`, NewSaleID(scenario))
		for _, sale := range NewSales(NewSaleID(scenario), 1000, 1) {
			require.LessOrEqual(t, len(sale.ID), 64)
		}
	}
}

func TestTheCopyOfAConfigHasItsOwnBus(t *testing.T) {
	dir := t.TempDir()
	from := filepath.Join(dir, "config.yaml")
	require.NoError(t, os.WriteFile(from, []byte("rocketmq:\n  topic: theirs\n  name_servers: [a, b]\n"), 0o600))
	for own, want := range map[bool]string{false: "theirs", true: ownTopic} {
		file, err := WriteConfig(from, dir, "copy.yaml", Setup{ownBus: own})
		require.NoError(t, err)
		d, err := ReadDocument(file)
		require.NoError(t, err)
		require.Equal(t, want, d.Get(keyTopic))
		require.Equal(t, []string{"a", "b"}, d.List(keyNameServers))
	}
}
