package config

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"flashgate/internal/strictyaml"
)

// The environment variables that the configs here refer to.
const (
	EnvJWTSecret  = "FLASHGATE_JWT_SECRET"
	EnvAdminToken = "FLASHGATE_ADMIN_TOKEN"
	EnvMySQLDSN   = "FLASHGATE_MYSQL_DSN"
	EnvTicket     = "FLASHGATE_TICKET_SECRET"
)

// generatedSecretBytes is the entropy of a secret made here; HS256 wants 32 or more.
const generatedSecretBytes = 48

// env is what an env file sets, read once, when first asked for.
type env struct {
	once   sync.Once
	values map[string]string // nil = no such file
	path   string
	err    error
}

// envValues are what env_file sets, and its path; "" = the config names none.
func (c *Config) envValues() (values map[string]string, path string, err error) {
	e := &c.env
	e.once.Do(func() {
		switch {
		case c.EnvFile != "":
			e.path = c.resolve(c.EnvFile)
		case c.Engines == Embedded:
			e.path = filepath.Join(c.DataDir, "env")
		default:
			return
		}
		content, err := strictyaml.ReadFile(e.path)
		if errors.Is(err, os.ErrNotExist) {
			return
		}
		if err != nil {
			e.err = fmt.Errorf("env_file: %w", err)
			return
		}
		e.values, e.err = parseEnv(e.path, content)
	})
	return e.values, e.path, e.err
}

// parseEnv reads lines of KEY=VALUE, as sh would: the value bare, in 'single' or in
// "double" quotes; blank lines, # comments and a leading export are let pass. Errors
// name the line and never quote a value.
func parseEnv(file string, content []byte) (map[string]string, error) {
	values := map[string]string{}
	for i, line := range strings.Split(string(content), "\n") {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		bad := func(detail string) error {
			return strictyaml.Problem{File: file, Line: i + 1, Detail: detail}
		}
		name, value, ok := strings.Cut(strings.TrimPrefix(line, "export "), "=")
		if name = strings.TrimLeft(name, " \t"); !ok || !variablePattern.MatchString(name) {
			return nil, bad("want KEY=VALUE")
		}
		value, err := unquote(value)
		if err != nil {
			return nil, bad(name + ": " + err.Error())
		}
		values[name] = value
	}
	return values, nil
}

// unquote reads one value of an env file.
func unquote(v string) (string, error) {
	if v == "" || v[0] != '\'' && v[0] != '"' {
		if strings.ContainsAny(v, " \t'\"\\$`&;|<>()*?#~") {
			return "", errors.New("the value has characters that mean something to sh: put it in single quotes")
		}
		return v, nil
	}
	quote, body := v[0], v[1:]
	var out strings.Builder
	for i := 0; i < len(body); i++ {
		switch c := body[i]; {
		case c == quote:
			if i != len(body)-1 {
				return "", errors.New("something follows the closing quote")
			}
			return out.String(), nil
		case quote == '"' && c == '\\' && i+1 < len(body) && strings.IndexByte("\"\\$`", body[i+1]) >= 0:
			i++
			out.WriteByte(body[i])
		case quote == '"' && (c == '$' || c == '`'):
			return "", errors.New("nothing is expanded here: put the value in single quotes")
		default:
			out.WriteByte(c)
		}
	}
	return "", errors.New("the closing quote is missing")
}

// EnsureEnvFile makes <dataDir>/env, readable by its owner alone, with a random JWT
// secret and operators' token, unless it is there already: what it holds is then kept,
// or every token given out would be void. It returns the file's path. Two processes
// may do so at once: the first file that is there stays.
func EnsureEnvFile(dataDir string) (string, error) {
	path := filepath.Join(dataDir, "env")
	switch _, err := os.Stat(path); {
	case err == nil:
		return path, nil
	case !errors.Is(err, os.ErrNotExist):
		return "", err
	}
	if err := os.MkdirAll(dataDir, 0o700); err != nil {
		return "", err
	}
	var content bytes.Buffer
	content.WriteString("# Secrets of this embedded flashgate, made by its first start. Keep the file: without\n" +
		"# it every token that was given out is void.\n")
	for _, name := range []string{EnvJWTSecret, EnvAdminToken} {
		secret := make([]byte, generatedSecretBytes)
		_, _ = rand.Read(secret) // never fails: it ends the program instead
		fmt.Fprintf(&content, "%s='%s'\n", name, base64.RawURLEncoding.EncodeToString(secret))
	}
	// Written aside and linked: a file that is there is whole, and never replaced.
	aside, err := os.CreateTemp(dataDir, "env.*") // mode 0600
	if err != nil {
		return "", err
	}
	defer func() { _ = os.Remove(aside.Name()) }()
	_, err = aside.Write(content.Bytes())
	if err = errors.Join(err, aside.Sync(), aside.Close()); err != nil {
		return "", err
	}
	if err := os.Link(aside.Name(), path); err != nil && !errors.Is(err, os.ErrExist) {
		return "", err
	}
	return path, nil
}
