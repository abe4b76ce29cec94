package config

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"go.yaml.in/yaml/v3"

	"flashgate/internal/strictyaml"
)

// Secret is where a secret is found: an environment variable or a file. It never holds
// the secret, so nothing that prints it gives the secret away.
type Secret struct {
	variable string // of the environment
	file     string
	key      string // of the config, for errors
	config   *Config
}

// ErrNotSet is what the error of a secret wraps whose variable is not set, or whose
// file is not there. A command that does not need the secret never sees it.
var ErrNotSet = errors.New("not set")

var variablePattern = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

const wantReference = "a secret is never written in a config: want {env: VARIABLE} or {file: PATH}"

// UnmarshalYAML reads {env: NAME} or {file: PATH}. Its errors never quote what they found.
func (s *Secret) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind != yaml.MappingNode || len(n.Content) != 2 || n.Content[1].Kind != yaml.ScalarNode {
		return errors.New(wantReference)
	}
	switch value := n.Content[1].Value; n.Content[0].Value {
	case "env":
		if !variablePattern.MatchString(value) {
			return errors.New("env: want the name of an environment variable, such as FLASHGATE_JWT_SECRET")
		}
		s.variable = value
	case "file":
		if value == "" || strings.ContainsRune(value, '\n') {
			return errors.New("file: want the path of a file that holds the secret and nothing else")
		}
		s.file = value
	default:
		return errors.New(wantReference)
	}
	return nil
}

// IsZero reports whether the config names no such secret.
func (s Secret) IsZero() bool { return s.variable == "" && s.file == "" }

// Where says where the secret is found, never what it is.
func (s Secret) Where() string {
	switch {
	case s.variable != "":
		return "environment variable " + s.variable
	case s.file != "":
		return "file " + s.file
	default:
		return "nowhere"
	}
}

// String says where the secret is found; so do GoString, LogValue and MarshalText.
func (s Secret) String() string { return "[secret: " + s.Where() + "]" }

// GoString is String, for %#v.
func (s Secret) GoString() string { return s.String() }

// LogValue is String, for slog.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalText is String, for JSON and YAML.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Value looks the secret up, now. Its errors name the variable or the file and what to
// do; ErrNotSet tells that there is none from one that can't be read.
func (s Secret) Value() (string, error) {
	switch {
	case s.config == nil && !s.IsZero():
		panic("BUG: a secret that was not loaded with its config")
	case s.variable != "":
		return s.fromEnvironment()
	case s.file != "":
		return s.fromFile()
	default:
		return "", fmt.Errorf("%s: %w", s.key, ErrNotSet)
	}
}

func (s Secret) fromEnvironment() (string, error) {
	if value := os.Getenv(s.variable); value != "" {
		return value, nil
	}
	values, path, err := s.config.envValues()
	if err != nil {
		return "", err
	}
	if value := values[s.variable]; value != "" {
		return value, nil
	}
	var hint string
	switch {
	case path == "":
		hint = "export it, or name a file that sets it in env_file"
	case values != nil:
		hint = path + " does not set it either"
	case s.config.Engines == Embedded:
		hint = "the first start of `flashgate` writes " + path
	default:
		hint = "run `make up`, which writes " + path + ", or export it"
	}
	return "", notSetError{fmt.Sprintf("%s is not set (%s of %s): %s", s.variable, s.key, s.config.File, hint)}
}

func (s Secret) fromFile() (string, error) {
	path := s.config.resolve(s.file)
	content, err := strictyaml.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return "", notSetError{fmt.Sprintf("%s is not there (%s of %s)", path, s.key, s.config.File)}
	}
	if err != nil {
		return "", fmt.Errorf("%s of %s: %w", s.key, s.config.File, err)
	}
	value := strings.TrimSuffix(strings.TrimSuffix(string(content), "\n"), "\r")
	if value == "" {
		return "", notSetError{fmt.Sprintf("%s is empty (%s of %s)", path, s.key, s.config.File)}
	}
	return value, nil
}

type notSetError struct{ text string }

func (e notSetError) Error() string { return e.text }
func (e notSetError) Unwrap() error { return ErrNotSet }

// bindSecrets tells the secrets where they stand.
func (c *Config) bindSecrets() {
	for key, s := range c.secrets() {
		s.key, s.config = key, c
	}
}

// secrets are all of the config's, by key.
func (c *Config) secrets() map[string]*Secret {
	return map[string]*Secret{
		"operators_token": &c.OperatorsToken,
		"jwt.secret":      &c.JWT.Secret,
		"redis.password":  &c.Redis.Password,
		"mysql.dsn":       &c.MySQL.DSN,
		"ticket.secret":   &c.Ticket.Secret,
	}
}

// resolve finds a path of the config file; see the package.
func (c *Config) resolve(path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	if _, err := os.Stat(path); err == nil {
		return path
	}
	other := filepath.Join(filepath.Dir(c.File), "..", path)
	if _, err := os.Stat(other); err == nil {
		return other
	}
	return path
}
