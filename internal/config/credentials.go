package config

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/go-sql-driver/mysql"

	"flashgate/internal/strictyaml"
	"flashgate/internal/token"
)

const (
	// minSecretBytes is what HS256 wants (RFC 7518 §3.2), and no less for a bearer token.
	minSecretBytes = 32
	// minDistinctBytes refuses keys of a repeated letter; random ones of 32 bytes in any
	// usual alphabet have far more.
	minDistinctBytes = 8
)

// demoSecrets are in documentation for anyone to read and long enough to pass for
// secrets: those of this project, and those that people copy.
var demoSecrets = []string{
	"flashgate-demo-secret-do-not-use-in-production",
	"a-string-secret-at-least-256-bits-long", // jwt.io
	"your-256-bit-secret-your-256-bit-secret",
	"this-is-a-demo-secret-do-not-use-it",
	"my-super-secret-key-that-is-long-enough",
	"change-me-change-me-change-me-change-me",
	"changeme-changeme-changeme-changeme",
	"0123456789abcdef0123456789abcdef",
	"00000000000000000000000000000000",
	"abcdefghijklmnopqrstuvwxyz0123456789",
	"abcdefghijklmnopqrstuvwxyz123456",
	"12345678901234567890123456789012",
}

// strong refuses, on real engines, a secret that others may know or guess.
func (c *Config) strong(s Secret, value string) error {
	if c.Engines != Real {
		return nil
	}
	refuse := func(why string) error {
		return fmt.Errorf("%s of %s (%s) %s: real engines want a secret of your own, such as from `openssl rand -base64 48`",
			s.key, c.File, s.Where(), why)
	}
	distinct := map[byte]bool{}
	for i := range len(value) {
		distinct[value[i]] = true
	}
	switch {
	case slices.Contains(demoSecrets, strings.ToLower(strings.TrimSpace(value))):
		return refuse("is a demo secret that everyone knows")
	case len(value) < minSecretBytes:
		return refuse(fmt.Sprintf("has %d bytes, fewer than %d", len(value), minSecretBytes))
	case len(distinct) < minDistinctBytes:
		return refuse(fmt.Sprintf("has only %d distinct bytes", len(distinct)))
	}
	return nil
}

func (c *Config) strongValue(s Secret) (string, error) {
	value, err := s.Value()
	if err == nil {
		err = c.strong(s, value)
	}
	if err != nil {
		return "", err
	}
	return value, nil
}

// JWTSecret is the HS256 key: the secret's bytes, as they are.
func (c *Config) JWTSecret() ([]byte, error) {
	if c.JWT.Secret.IsZero() {
		return nil, fmt.Errorf("%s verifies tokens by public key: who holds the private key issues them", c.File)
	}
	value, err := c.strongValue(c.JWT.Secret)
	return []byte(value), err
}

// TokenOptions are what a token.Verifier needs.
func (c *Config) TokenOptions() (token.Options, error) {
	o := token.Options{
		Issuer: c.JWT.Issuer, Audience: c.JWT.Audience, Leeway: c.JWT.Leeway, CacheEntries: c.JWT.CacheTokens,
	}
	if !c.JWT.Secret.IsZero() {
		secret, err := c.JWTSecret()
		o.Secret = secret
		return o, err
	}
	for _, path := range c.JWT.PublicKeys {
		key, err := readPublicKey(c.resolve(path))
		if err != nil {
			return o, fmt.Errorf("jwt.public_keys: %s: %w", path, err)
		}
		o.PublicKeys = append(o.PublicKeys, key)
	}
	return o, nil
}

// AdminToken is the bearer token of the operators' port.
func (c *Config) AdminToken() (string, error) { return c.strongValue(c.OperatorsToken) }

// RedisPassword is "" when the config names none.
func (c *Config) RedisPassword() (string, error) {
	if c.Redis.Password.IsZero() {
		return "", nil
	}
	return c.Redis.Password.Value()
}

// RedisTLS is nil when the config asks for none.
func (c *Config) RedisTLS() (*tls.Config, error) {
	if !c.Redis.TLS {
		return nil, nil
	}
	t := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.Redis.TLSCAFile == "" {
		return t, nil
	}
	content, err := strictyaml.ReadFile(c.resolve(c.Redis.TLSCAFile))
	if err != nil {
		return nil, fmt.Errorf("redis.tls_ca_file: %w", err)
	}
	t.RootCAs = x509.NewCertPool()
	if !t.RootCAs.AppendCertsFromPEM(content) {
		return nil, fmt.Errorf("redis.tls_ca_file: %s holds no certificate in PEM", c.Redis.TLSCAFile)
	}
	return t, nil
}

// TicketSecret is the key of purchase tickets; nil when the config names none.
func (c *Config) TicketSecret() ([]byte, error) {
	if c.Ticket.Secret.IsZero() {
		return nil, nil
	}
	value, err := c.strongValue(c.Ticket.Secret)
	if err == nil && len(value) < minSecretBytes {
		err = fmt.Errorf("%s of %s (%s) has %d bytes, fewer than %d", c.Ticket.Secret.key, c.File, c.Ticket.Secret.Where(), len(value), minSecretBytes)
	}
	return []byte(value), err
}

// MySQLDSN is the ledger's, which names a database.
func (c *Config) MySQLDSN() (string, error) {
	value, err := c.MySQL.DSN.Value()
	if err != nil {
		return "", err
	}
	parsed, err := mysql.ParseDSN(value)
	if err != nil || parsed.DBName == "" {
		// The driver's error is not shown: it may hold the password.
		return "", fmt.Errorf("%s of %s (%s): want user:password@tcp(host:port)/database", c.MySQL.DSN.key, c.File, c.MySQL.DSN.Where())
	}
	return value, nil
}

// readPublicKey reads an Ed25519 or RSA public key from a PEM file.
func readPublicKey(path string) (crypto.PublicKey, error) {
	content, err := strictyaml.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(content)
	if block == nil {
		return nil, errors.New("not a PEM file: want -----BEGIN PUBLIC KEY-----")
	}
	var key any
	switch block.Type {
	case "PUBLIC KEY":
		key, err = x509.ParsePKIXPublicKey(block.Bytes)
	case "RSA PUBLIC KEY":
		key, err = x509.ParsePKCS1PublicKey(block.Bytes)
	default:
		if strings.Contains(block.Type, "PRIVATE") {
			return nil, errors.New("is a PRIVATE key, which has no business here: want the public one")
		}
		return nil, fmt.Errorf("holds a %s: want a PUBLIC KEY", block.Type)
	}
	if err != nil {
		return nil, err
	}
	switch key.(type) {
	case ed25519.PublicKey, *rsa.PublicKey:
	default:
		return nil, fmt.Errorf("%T: want an Ed25519 or an RSA public key", key)
	}
	// A verifier knows what else is wrong with it: its size.
	if _, err := token.NewVerifier(token.Options{PublicKeys: []crypto.PublicKey{key}}); err != nil {
		return nil, err
	}
	return key, nil
}

// Check is Load and all that can be said without engines: it looks up the secrets that
// are set here and refuses those that are no good. The line it returns says what is
// fine, and which secrets are not set: a command that needs one will not start.
func Check(path string) (string, error) {
	c, err := Load(path)
	if err != nil {
		return "", err
	}
	lookups := map[string]func() error{
		"operators_token": func() error { _, err := c.AdminToken(); return err },
		"redis.password":  func() error { _, err := c.RedisPassword(); return err },
		"mysql.dsn":       func() error { _, err := c.MySQLDSN(); return err },
		"jwt.secret":      func() error { _, err := c.JWTSecret(); return err },
		"ticket.secret":   func() error { _, err := c.TicketSecret(); return err },
	}
	var wrong []error
	var unset []string
	if _, err := c.RedisTLS(); err != nil {
		wrong = append(wrong, err)
	}
	for key, s := range c.secrets() {
		if s.IsZero() {
			continue
		}
		switch err := lookups[key](); {
		case errors.Is(err, ErrNotSet):
			unset = append(unset, key+" ("+s.Where()+")")
		case err != nil:
			wrong = append(wrong, err)
		}
	}
	if len(wrong) > 0 {
		return "", errors.Join(wrong...)
	}
	line := fmt.Sprintf("%s: OK (%s engines, limits of %s)", path, c.Engines, c.LimitsFile())
	if len(unset) > 0 {
		slices.Sort(unset)
		line += "; not set here: " + strings.Join(unset, ", ")
	}
	return line, nil
}
