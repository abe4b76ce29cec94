package enginetest_test

import (
	"context"
	"database/sql"
	"net"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/redis/rueidis"

	"flashgate/internal/enginetest"
)

func within(t *testing.T, limit time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	t.Cleanup(cancel)
	return ctx
}

func TestMariaDB(t *testing.T) {
	testFreshDatabase(t, enginetest.MariaDB)
}

func TestMySQL(t *testing.T) {
	if _, ok := enginetest.MySQL(t); !ok {
		return
	}
	testFreshDatabase(t, func(t testing.TB) string {
		dsn, _ := enginetest.MySQL(t)
		return dsn
	})
}

// A database is this test's own, usable, and gone afterwards.
func testFreshDatabase(t *testing.T, fresh func(testing.TB) string) {
	ctx := within(t, time.Minute)
	var first *mysql.Config
	t.Run("usable", func(t *testing.T) {
		dsn := fresh(t)
		config, err := mysql.ParseDSN(dsn)
		if err != nil {
			t.Fatal(err)
		}
		first = config
		if !config.ParseTime || !config.InterpolateParams || config.Loc != time.UTC {
			t.Errorf("%s lost parameters of the rig's DSN", dsn)
		}
		db := open(t, dsn)
		if _, err := db.ExecContext(ctx, "CREATE TABLE t (id BIGINT PRIMARY KEY, n INT, CHECK (n >= 0))"); err != nil {
			t.Fatal(err)
		}
		if _, err := db.ExecContext(ctx, "INSERT INTO t VALUES (1, -1)"); err == nil {
			t.Error("CHECK constraints do not hold")
		}
	})
	if first == nil {
		t.Fatal("no database was made")
	}
	second, err := mysql.ParseDSN(fresh(t))
	if err != nil {
		t.Fatal(err)
	}
	if second.DBName == first.DBName {
		t.Errorf("two tests share the database %s", first.DBName)
	}
	var left int
	err = open(t, second.FormatDSN()).QueryRowContext(ctx,
		"SELECT count(*) FROM information_schema.schemata WHERE schema_name = ?", first.DBName).Scan(&left)
	if err != nil {
		t.Fatal(err)
	}
	if left != 0 {
		t.Errorf("%s is still there after its test", first.DBName)
	}
}

func open(t *testing.T, dsn string) *sql.DB {
	t.Helper()
	db, err := sql.Open("mysql", dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

// WAIT 1 succeeds on every master, or no promise of flashgate's holds.
func TestRedisReplicates(t *testing.T) {
	client, err := rueidis.NewClient(rueidis.ClientOption{
		InitAddress:  enginetest.Redis(t),
		DisableCache: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ctx := within(t, 10*time.Second)
	for _, key := range []string{"enginetest:{a}", "enginetest:{b}", "enginetest:{c}"} { // one on each master
		err := client.Dedicated(func(c rueidis.DedicatedClient) error {
			if err := c.Do(ctx, c.B().Set().Key(key).Value("1").Ex(time.Minute).Build()).Error(); err != nil {
				return err
			}
			replicas, err := c.Do(ctx, c.B().Wait().Numreplicas(1).Timeout(1000).Build()).AsInt64()
			if err == nil && replicas != 1 {
				t.Errorf("%s reached %d replicas, not 1", key, replicas)
			}
			return err
		})
		if err != nil {
			t.Errorf("%s: %v", key, err)
		}
	}
}

func TestRocketMQ(t *testing.T) {
	conn, err := net.DialTimeout("tcp", enginetest.RocketMQ(t), 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
}
