// Package enginetest hands the real engines to tests.
//
// The engines are started by `make test`, which passes their addresses in the
// environment (named in internal/rig). Without them a test fails: it never skips, or a green run would
// prove nothing. Only real MySQL may be absent, with the reason logged, since
// it can't be had on every machine.
package enginetest

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/hex"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"

	"flashgate/internal/rig"
)

// databaseTimeoutSeconds bounds the making and the dropping of one database.
// Dropping one with many tables takes a few hundred milliseconds on a busy
// machine; a minute means that the engine hangs.
const databaseTimeoutSeconds = 60

const howToHaveEngines = "run `make test`, which starts them, or `go run ./deploy/local test -- -run NAME ./PACKAGE` for one test"

// Redis returns host:port of every node of the test cluster. Tests of all
// packages share it: use a sale id of your own.
func Redis(t testing.TB) []string {
	t.Helper()
	return strings.Split(required(t, rig.EnvRedis, "Redis Cluster"), ",")
}

// RocketMQ returns host:port of the test name server. Tests of all packages
// share the broker: use a topic and groups of your own.
func RocketMQ(t testing.TB) string {
	t.Helper()
	return required(t, rig.EnvRocketMQ, "RocketMQ")
}

// MariaDB returns the DSN of an empty database made for this test on MariaDB,
// dropped when the test ends.
func MariaDB(t testing.TB) string {
	t.Helper()
	return freshDatabase(t, required(t, rig.EnvMariaDB, "MariaDB"))
}

// MySQL is MariaDB's counterpart on real MySQL. Where MySQL can't be had, ok is
// false and the reason is logged: return from the test then.
func MySQL(t testing.TB) (dsn string, ok bool) {
	t.Helper()
	if dsn := os.Getenv(rig.EnvMySQL); dsn != "" {
		return freshDatabase(t, dsn), true
	}
	// An unset reason means that nobody tried, which is a fault of the run.
	t.Logf("not run on MySQL: %s", required(t, rig.EnvMySQLUnavailable, "MySQL"))
	return "", false
}

func required(t testing.TB, name, engine string) string {
	t.Helper()
	value := os.Getenv(name)
	if value == "" {
		t.Fatalf("this test needs %s, and %s is not set: %s", engine, name, howToHaveEngines)
	}
	return value
}

func freshDatabase(t testing.TB, adminDSN string) string {
	t.Helper()
	config, err := mysql.ParseDSN(adminDSN)
	if err != nil {
		t.Fatalf("the DSN from the environment is malformed: %v", err)
	}
	suffix := make([]byte, 6)
	if _, err := rand.Read(suffix); err != nil {
		t.Fatalf("name a test database: %v", err)
	}
	name := rig.TestDatabasePrefix + hex.EncodeToString(suffix)

	config.DBName = ""
	admin := config.FormatDSN()
	execute(t, admin, "CREATE DATABASE "+name+" CHARACTER SET utf8mb4")
	t.Cleanup(func() { execute(t, admin, "DROP DATABASE "+name) })

	config.DBName = name
	return config.FormatDSN()
}

func execute(t testing.TB, dsn, statement string) {
	t.Helper()
	db, err := sql.Open("mysql", dsn)
	if err != nil {
		t.Fatalf("open the test engine: %v", err)
	}
	defer func() { _ = db.Close() }()
	// Not t.Context(): it is already cancelled when cleanups run.
	ctx, cancel := context.WithTimeout(context.Background(), databaseTimeoutSeconds*time.Second)
	defer cancel()
	if _, err := db.ExecContext(ctx, statement); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}
