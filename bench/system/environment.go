package system

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/go-sql-driver/mysql"
)

// The variables by which flashgate's secrets come.
const (
	EnvJWTSecret = "FLASHGATE_JWT_SECRET"
	EnvMySQLDSN  = "FLASHGATE_MYSQL_DSN"
)

// Secret is the value of a variable as the daemons of this system see it: from the
// environment, or else from the file that their config names; "" if from neither.
func (s *System) Secret(name string) string {
	if s.own != nil && name == EnvMySQLDSN {
		return s.own.dsn
	}
	return secret(s.Config, name)
}

func secret(config, name string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	d, err := ReadDocument(config)
	if err != nil {
		return ""
	}
	file := filepath.Join(d.Get(keyData), "env")
	if named := d.Get([]string{"env_file"}); named != "" {
		file = fromConfig(config, named)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return "" // then it is not to be had: who needs it says so
	}
	for line := range strings.Lines(string(text)) {
		line = strings.TrimPrefix(strings.TrimSpace(line), "export ")
		if value, ok := strings.CutPrefix(line, name+"="); ok {
			return strings.Trim(value, `'"`)
		}
	}
	return ""
}

// reachMillis is how long an engine may take to take a connection: it is on this
// machine, or near.
const reachMillis = 500

// ResolveStart settles StartAuto: daemons, if the real engines of the config answer,
// or else embedded.
func (o *Options) ResolveStart() {
	if o.Start != StartAuto {
		return
	}
	o.Start = StartDaemons
	if !reachable(o.ConfigFile()) {
		o.Start = StartEmbedded
	}
}

// reachable tells whether each of the three real engines of a config takes connections.
func reachable(config string) bool {
	d, err := ReadDocument(config)
	if err != nil {
		return false
	}
	dsn, err := mysql.ParseDSN(secret(config, EnvMySQLDSN))
	if err != nil {
		return false
	}
	for _, addresses := range [][]string{d.List(keyRedis), d.List(keyNameServers), {dsn.Addr}} {
		if len(addresses) == 0 {
			return false
		}
		c, err := net.DialTimeout("tcp", addresses[0], reachMillis*time.Millisecond)
		if err != nil {
			return false
		}
		_ = c.Close()
	}
	return true
}

// Redis are the addresses of the real Redis that the system runs on; nil when embedded.
func (s *System) Redis() []string { return s.list(keyRedis) }

// NameServers are those of the real RocketMQ that the system runs on; nil when embedded.
func (s *System) NameServers() []string { return s.list(keyNameServers) }

func (s *System) list(key []string) []string {
	d, err := ReadDocument(s.Config)
	if !s.Real || err != nil {
		return nil
	}
	return d.List(key)
}
