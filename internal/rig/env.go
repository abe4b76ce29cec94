package rig

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/go-sql-driver/mysql"
)

// The environment of flashgate's daemons, kept in the rig's env file.
const (
	EnvJWTSecret  = "FLASHGATE_JWT_SECRET"  // HS256: the key is this string's bytes
	EnvAdminToken = "FLASHGATE_ADMIN_TOKEN" // bearer token of the operators' port
	EnvMySQLDSN   = "FLASHGATE_MYSQL_DSN"
)

// The environment of tests; package enginetest reads it.
const (
	EnvRedis            = "FLASHGATE_TEST_REDIS"       // host:port of every cluster node, comma-separated
	EnvRocketMQ         = "FLASHGATE_TEST_ROCKETMQ"    // host:port of the name server
	EnvMariaDB          = "FLASHGATE_TEST_MARIADB_DSN" // a user who may make databases named TestDatabasePrefix…
	EnvMySQL            = "FLASHGATE_TEST_MYSQL_DSN"   // the same on MySQL, unless
	EnvMySQLUnavailable = "FLASHGATE_TEST_MYSQL"       // "unavailable: <reason>"
)

// TestDatabasePrefix opens the name of every database made for a test.
const TestDatabasePrefix = "flashgate_test_"

const (
	jwtSecretBytes  = 48 // 64 characters; HS256 wants a key of 32 bytes or more
	adminTokenBytes = 32
	passwordBytes   = 16
)

const envFileHead = `# Made once, kept for as long as it exists. For sh: set -a; . FILE; set +a
`

// secrets is the content of a rig's env file.
type secrets struct {
	pairs    []string // NAME=value
	password string   // of the database user
}

// loadSecrets reads the env file at path, and makes it first if need be.
func loadSecrets(path string, mariadbPort int) (secrets, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		text = newSecrets(mariadbPort)
		// Written aside and renamed: a file that exists is whole.
		partial := path + ".partial"
		if err = os.WriteFile(partial, text, 0o600); err == nil {
			err = os.Rename(partial, path)
		}
	}
	if err != nil {
		return secrets{}, err
	}
	s, err := parseSecrets(text)
	if err != nil {
		return secrets{}, fmt.Errorf("%s: %w; mend it, or remove it to have a new one made", path, err)
	}
	return s, nil
}

func newSecrets(mariadbPort int) []byte {
	random := func(n int) []byte {
		b := make([]byte, n)
		_, _ = rand.Read(b) // never fails: it ends the program instead
		return b
	}
	var out bytes.Buffer
	out.WriteString(envFileHead)
	for _, pair := range [][2]string{
		{EnvJWTSecret, base64.RawURLEncoding.EncodeToString(random(jwtSecretBytes))},
		{EnvAdminToken, base64.RawURLEncoding.EncodeToString(random(adminTokenBytes))},
		{EnvMySQLDSN, dsn(hex.EncodeToString(random(passwordBytes)), mariadbPort)},
	} {
		fmt.Fprintf(&out, "%s='%s'\n", pair[0], pair[1])
	}
	return out.Bytes()
}

// parseSecrets reads NAME=value lines, the value bare or in single quotes.
func parseSecrets(text []byte) (secrets, error) {
	var s secrets
	values := map[string]string{}
	n := 0
	for line := range strings.Lines(string(text)) {
		n++
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, value, ok := strings.Cut(line, "=")
		if !ok {
			return secrets{}, fmt.Errorf("line %d is not NAME='value'", n)
		}
		if quoted, found := strings.CutPrefix(value, "'"); found {
			if value, ok = strings.CutSuffix(quoted, "'"); !ok {
				return secrets{}, fmt.Errorf("line %d: the closing quote is missing", n)
			}
		}
		values[name] = value
		s.pairs = append(s.pairs, name+"="+value)
	}
	for _, name := range []string{EnvJWTSecret, EnvAdminToken, EnvMySQLDSN} {
		if values[name] == "" {
			return secrets{}, fmt.Errorf("%s is missing", name)
		}
	}
	config, err := mysql.ParseDSN(values[EnvMySQLDSN])
	if err != nil {
		return secrets{}, fmt.Errorf("%s: %w", EnvMySQLDSN, err)
	}
	// It becomes part of an SQL statement between single quotes.
	if strings.ContainsAny(config.Passwd, `'\`) {
		return secrets{}, fmt.Errorf("%s: the password holds a quote or a backslash", EnvMySQLDSN)
	}
	s.password = config.Passwd
	return s, nil
}

func envFile(dir string) string { return filepath.Join(dir, "env") }
