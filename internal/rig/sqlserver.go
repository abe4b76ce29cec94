package rig

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/go-sql-driver/mysql"
)

const (
	database     = "flashgate"
	databaseUser = "flashgate"

	// sqlInitTimeoutSeconds is for the system tables, 1–3 s on an idle machine.
	sqlInitTimeoutSeconds  = 120
	sqlReadyTimeoutSeconds = 60
	sqlPingTimeoutSeconds  = 2
)

// sqlServer is MariaDB or MySQL: the same but for where the program comes from
// and how its system tables are made.
type sqlServer struct {
	engine   string
	password string
	port     int
	process  *Process
	// initialise returns the command that makes the system tables in datadir.
	initialise func(datadir string) []string
}

// newSQLServer: program is the command line up to the daemon's own flags, flags
// are the engine's beside the common ones.
func newSQLServer(dir, engine string, port int, password string, program, flags []string) *sqlServer {
	home := filepath.Join(dir, engine)
	argv := append([]string{}, program...)
	// --no-defaults has to be the first: the machine's own my.cnf is not ours.
	argv = append(argv,
		"--no-defaults",
		"--datadir="+filepath.Join(home, "data"),
		"--tmpdir="+tmpDir(home),
		"--bind-address=127.0.0.1",
		"--port="+strconv.Itoa(port),
		// No socket: its path has a limit of 107 bytes, which a deep clone exceeds.
		"--socket=",
		"--pid-file="+filepath.Join(home, engine+".pid"),
		"--log-error="+filepath.Join(home, engine+".log"),
		// Makes the database and the user at every start, so that they agree with
		// the env file whichever of the two was made anew.
		"--init-file="+filepath.Join(home, "init.sql"),
		"--skip-name-resolve",
		"--default-time-zone=+00:00",
		"--character-set-server=utf8mb4",
		"--innodb-flush-log-at-trx-commit=1",
		"--innodb-buffer-pool-size=1G",
		"--max-connections=500",
	)
	argv = append(argv, asRoot()...)
	argv = append(argv, flags...)
	return &sqlServer{
		engine:   engine,
		password: password,
		port:     port,
		process: &Process{
			Name:    engine,
			Engine:  engine,
			Addr:    address(port),
			Argv:    argv,
			PIDFile: filepath.Join(home, engine+".pid"),
			Logs:    []string{filepath.Join(home, "console.log"), filepath.Join(home, engine+".log")},
			Nice:    BehindNice,
		},
	}
}

// tmpDir is a server's own: what starts removes temporary tables of whoever shares it.
func tmpDir(home string) string { return filepath.Join(home, "tmp") }

// asRoot is the flag without which the daemons refuse to run as root.
func asRoot() []string {
	if os.Geteuid() == 0 {
		return []string{"--user=root"}
	}
	return nil
}

func newMariaDB(dir string, port int, password string) (*sqlServer, error) {
	daemon, err := lookup("mariadbd")
	if err != nil {
		return nil, err
	}
	installer, err := lookup("mariadb-install-db")
	if err != nil {
		return nil, err
	}
	s := newSQLServer(dir, "mariadb", port, password, []string{daemon}, []string{
		// The default, 96 MB, makes bulk inserts wait for checkpoints.
		"--innodb-log-file-size=256M",
	})
	s.initialise = func(datadir string) []string {
		// --force: the host's name need not resolve, nobody logs in by it.
		return append([]string{installer, "--no-defaults", "--datadir=" + datadir, "--skip-test-db", "--force"}, asRoot()...)
	}
	return s, nil
}

func (s *sqlServer) name() string          { return s.engine }
func (s *sqlServer) where() string         { return address(s.port) }
func (s *sqlServer) processes() []*Process { return []*Process{s.process} }

func (s *sqlServer) start(ctx context.Context) error {
	if s.process.PID() != 0 {
		return nil
	}
	if err := portFree(s.port); err != nil {
		return err
	}
	home := filepath.Dir(s.process.PIDFile)
	if err := os.MkdirAll(tmpDir(home), 0o755); err != nil {
		return err
	}
	if err := s.makeData(ctx, home); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(home, "init.sql"), []byte(s.initSQL()), 0o600); err != nil {
		return err
	}
	return s.process.Start()
}

// makeData makes the system tables aside and renames them: a data directory
// that exists is whole.
func (s *sqlServer) makeData(ctx context.Context, home string) error {
	data := filepath.Join(home, "data")
	if _, err := os.Stat(data); err == nil {
		return nil
	}
	partial := filepath.Join(home, "data.partial")
	if err := os.RemoveAll(partial); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, sqlInitTimeoutSeconds*time.Second)
	defer cancel()
	argv := s.initialise(partial)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir = home
	cmd.Env = append(os.Environ(), "TMPDIR="+tmpDir(home))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(argv, " "), err, out)
	}
	return os.Rename(partial, data)
}

// initSQL has one statement a line: the servers read it so.
func (s *sqlServer) initSQL() string {
	user := "'" + databaseUser + "'@'127.0.0.1'"
	statements := []string{
		"CREATE DATABASE IF NOT EXISTS " + database + " CHARACTER SET utf8mb4",
		"CREATE USER IF NOT EXISTS " + user + " IDENTIFIED BY '" + s.password + "'",
		"ALTER USER " + user + " IDENTIFIED BY '" + s.password + "'",
		"GRANT ALL ON " + database + ".* TO " + user,
		// Tests make a database each.
		"GRANT ALL ON `" + strings.ReplaceAll(TestDatabasePrefix, "_", `\_`) + "%`.* TO " + user,
	}
	return strings.Join(statements, ";\n") + ";\n"
}

func (s *sqlServer) ready(ctx context.Context) error {
	config, err := mysql.ParseDSN(dsn(s.password, s.port))
	if err != nil {
		return err
	}
	config.Logger = &mysql.NopLogger{} // or it prints every attempt while the server starts
	connector, err := mysql.NewConnector(config)
	if err != nil {
		return err
	}
	db := sql.OpenDB(connector)
	defer func() { _ = db.Close() }()
	return await(ctx, sqlReadyTimeoutSeconds*time.Second, s.processes(), func() error {
		ctx, cancel := context.WithTimeout(ctx, sqlPingTimeoutSeconds*time.Second)
		defer cancel()
		return db.PingContext(ctx)
	})
}

func dsn(password string, port int) string {
	return fmt.Sprintf("%s:%s@tcp(%s)/%s?parseTime=true&loc=UTC&interpolateParams=true&charset=utf8mb4",
		databaseUser, password, address(port), database)
}
