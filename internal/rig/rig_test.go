package rig

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"github.com/go-sql-driver/mysql"
)

// Both sets may be up at once, so no port of one, bus ports and the broker's
// others included, is the other's.
func TestPortSetsAreDisjoint(t *testing.T) {
	owner := map[int]string{}
	take := func(port int, who string) {
		if other, taken := owner[port]; taken {
			t.Errorf("port %d is %s's and %s's", port, other, who)
		}
		owner[port] = who
	}
	sets := map[string]Ports{"hand": HandPorts, "test": TestPorts}
	for i, ports := range faultPorts {
		sets["fault "+strconv.Itoa(i)] = ports
	}
	for set, ports := range sets {
		for i := range redisNodes {
			take(ports.Redis+i, set+" redis")
			take(ports.Redis+i+clusterBusOffset, set+" redis bus")
		}
		take(ports.Namesrv, set+" name server")
		for _, offset := range []int{-2, 0, 1} {
			take(ports.Broker+offset, set+" broker")
		}
		take(ports.MariaDB, set+" mariadb")
		take(ports.MySQL, set+" mysql")
	}
}

func TestSecretsAreMadeOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "env")
	first, err := loadSecrets(path, 13306)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if mode := info.Mode().Perm(); mode != 0o600 {
		t.Errorf("mode %o, not 600", mode)
	}
	second, err := loadSecrets(path, 13306)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(first, second) {
		t.Errorf("read back otherwise:\n%v\n%v", first, second)
	}
	values := map[string]string{}
	for _, pair := range first.pairs {
		name, value, _ := strings.Cut(pair, "=")
		values[name] = value
	}
	if secret := values[EnvJWTSecret]; len(secret) < 32 || strings.ContainsAny(secret, "+/='\"$` ") {
		t.Errorf("%s=%q is short or not URL-safe", EnvJWTSecret, secret)
	}
	if values[EnvJWTSecret] == values[EnvAdminToken] || values[EnvAdminToken] == "" {
		t.Errorf("%s is empty or the JWT secret", EnvAdminToken)
	}
	config, err := mysql.ParseDSN(values[EnvMySQLDSN])
	if err != nil {
		t.Fatal(err)
	}
	if config.Addr != "127.0.0.1:13306" || config.DBName != database || config.Passwd != first.password || !config.ParseTime {
		t.Errorf("%s=%s", EnvMySQLDSN, values[EnvMySQLDSN])
	}
}

func TestParseSecrets(t *testing.T) {
	const good = "FLASHGATE_JWT_SECRET='s'\nFLASHGATE_ADMIN_TOKEN=t\n"
	for _, c := range []struct{ name, text, wrong string }{
		{"quoted and bare", "# a comment\n\n" + good + "FLASHGATE_MYSQL_DSN='u:p@tcp(h:1)/d?a=b&c=d'\n", ""},
		{"one missing", good, "FLASHGATE_MYSQL_DSN is missing"},
		{"no assignment", good + "export\n", "line 3"},
		{"open quote", good + "FLASHGATE_MYSQL_DSN='u:p@tcp(h:1)/d\n", "line 3"},
		{"no DSN", good + "FLASHGATE_MYSQL_DSN='nonsense'\n", "FLASHGATE_MYSQL_DSN"},
		{"a password that ends an SQL string", good + "FLASHGATE_MYSQL_DSN=u:p'q@tcp(h:1)/d\n", "quote"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := parseSecrets([]byte(c.text))
			if c.wrong == "" {
				if err != nil || got.password != "p" || len(got.pairs) != 3 {
					t.Errorf("%+v, %v", got, err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.wrong) {
				t.Errorf("error %v does not name %q", err, c.wrong)
			}
		})
	}
}

func TestStateOutlivesItsWriter(t *testing.T) {
	dir := t.TempDir()
	if _, err := readState(dir); !errors.Is(err, ErrNotUp) {
		t.Errorf("no state file: %v", err)
	}
	if err := Down(t.Context(), dir, nil); !errors.Is(err, ErrNotUp) {
		t.Errorf("Down of nothing: %v", err)
	}
	p := sleeper(t)
	r := &Rig{options: Options{Dir: dir, Ports: TestPorts}, strays: []*Process{p}, mysqlUnavailable: "no line"}
	if err := r.save(); err != nil {
		t.Fatal(err)
	}
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	got, err := readState(dir)
	if err != nil {
		t.Fatal(err)
	}
	if got.Options.Ports != TestPorts || got.MySQLUnavailable != "no line" ||
		len(got.Processes) != 1 || got.Processes[0].PID() != p.PID() {
		t.Errorf("read back as %+v", got)
	}
	var log strings.Builder
	if err := Down(t.Context(), dir, &log); err != nil {
		t.Fatal(err)
	}
	if p.PID() != 0 || !strings.Contains(log.String(), "stopped, 1 of 1") {
		t.Errorf("pid %d after Down, which says %q", p.PID(), log.String())
	}
	if err := Down(t.Context(), dir, nil); !errors.Is(err, ErrNotUp) {
		t.Errorf("a second Down: %v", err)
	}
}

func TestWipeKeepsTheLock(t *testing.T) {
	dir := t.TempDir()
	unlock, err := Lock(t.Context(), lockFile(dir), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	if err := os.MkdirAll(filepath.Join(dir, "redis", "7101"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := wipe(dir); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 || entries[0].Name() != "lock" {
		t.Errorf("left: %v, %v", entries, err)
	}
}

func TestParseInfo(t *testing.T) {
	got := parseInfo("# Replication\r\nrole:master\r\nslave0:ip=127.0.0.1,port=7106,state=online,offset=14,lag=0\r\n")
	if got["role"] != "master" || !strings.Contains(got["slave0"], "state=online") {
		t.Errorf("%v", got)
	}
}

func TestDebianMirrorsAreReadFromApt(t *testing.T) {
	const printed = `'http://mirror.example/debian/dists/bookworm/InRelease' mirror_InRelease 0
'http://mirror.example/debian-security/dists/bookworm-security/InRelease' mirror_InRelease 0
'http://mirror.example/debian/dists/bookworm/main/binary-amd64/Packages.xz' mirror_Packages 0
`
	var got []string
	for _, match := range aptIndexURI.FindAllStringSubmatch(printed, -1) {
		got = append(got, match[1])
	}
	want := []string{"http://mirror.example/debian", "http://mirror.example/debian-security"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%v, not %v", got, want)
	}
}
