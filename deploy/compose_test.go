package deploy_test

import (
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/compose-spec/compose-go/v2/types"
	"github.com/google/pprof/profile"
	"github.com/stretchr/testify/require"

	"flashgate/internal/config"
)

// secretVariables are what secrets.sh writes.
func secretVariables(t *testing.T) []string {
	t.Helper()
	m := regexp.MustCompile(`(?m)^for name in (.*); do$`).FindStringSubmatch(read(t, "secrets.sh"))
	require.NotNil(t, m)
	return strings.Fields(m[1])
}

// loadCompose reads compose.yaml as Docker Compose does, with these variables and no
// others.
func loadCompose(t *testing.T, variables []string) (*types.Project, error) {
	t.Helper()
	options, err := cli.NewProjectOptions([]string{"compose.yaml"}, cli.WithEnv(variables), cli.WithResolvedPaths(true))
	require.NoError(t, err)
	return options.LoadProject(t.Context())
}

// secretOf is a variable's value in tests: found again wherever it ends up.
func secretOf(name string) string { return "value-of-" + name }

func compose(t *testing.T) *types.Project {
	t.Helper()
	var variables []string
	for _, name := range secretVariables(t) {
		variables = append(variables, name+"="+secretOf(name))
	}
	p, err := loadCompose(t, variables)
	require.NoError(t, err)
	return p
}

// TestComposeWantsItsSecrets: without any one of them it says what to do, and it has none
// of its own.
func TestComposeWantsItsSecrets(t *testing.T) {
	names := secretVariables(t)
	for i := range names {
		var others []string
		for j, name := range names {
			if i != j {
				others = append(others, name+"="+secretOf(name))
			}
		}
		_, err := loadCompose(t, others)
		require.ErrorContains(t, err, "secrets.sh", "without %s", names[i])
	}
	require.Contains(t, read(t, "../.gitignore"), "\n/deploy/.env\n")
	for name, s := range compose(t).Services {
		for key, value := range s.Environment {
			if regexp.MustCompile(`PASSWORD|SECRET|TOKEN|DSN|AUTH`).MatchString(key) {
				require.Contains(t, *value, "value-of-", "%s: %s is written in the file", name, key)
			}
		}
	}
}

var daemons = []string{"gateway", "worker", "reconciler"}

// TestComposeServices: each is pinned, bounded, watched, and may do nothing but its work.
func TestComposeServices(t *testing.T) {
	p := compose(t)
	pinned := regexp.MustCompile(`:v?\d+\.\d+\.\d+(-[a-z]+)?$`)
	published := map[string]bool{}
	for name, s := range p.Services {
		if s.Image != "flashgate:local" {
			require.Regexp(t, pinned, s.Image, name)
		}
		require.Positive(t, int64(s.MemLimit), "%s: memory", name)
		require.Equal(t, []string{"ALL"}, s.CapDrop, name)
		if name != "rocketmq-volume" { // which is there to chown
			require.Empty(t, s.CapAdd, name)
			require.NotContains(t, s.User, "0:0", name)
		}
		require.Contains(t, s.SecurityOpt, "no-new-privileges:true", name)
		require.Equal(t, "10m", s.Logging.Options["max-size"], name)
		oneOff := s.Restart != types.RestartPolicyUnlessStopped
		if oneOff {
			require.Contains(t, []string{"redis-create", "rocketmq-volume", "migrate"}, name, s.Restart)
		} else {
			require.NotNil(t, s.HealthCheck, name)
			require.NotEmpty(t, s.HealthCheck.Test, name)
		}
		for on, d := range s.DependsOn {
			other := p.Services[on]
			want := types.ServiceConditionHealthy
			if other.Restart != types.RestartPolicyUnlessStopped {
				want = types.ServiceConditionCompletedSuccessfully
			}
			require.Equal(t, want, d.Condition, "%s on %s", name, on)
		}
		for _, port := range s.Ports {
			require.Equal(t, "127.0.0.1", port.HostIP, "%s is open to the network", name)
			require.False(t, published[port.Published], "port %s is taken twice", port.Published)
			published[port.Published] = true
		}
		for _, v := range s.Volumes {
			if v.Type == types.VolumeTypeBind {
				require.True(t, v.ReadOnly, "%s: %s", name, v.Source)
				_, err := os.Stat(v.Source)
				require.NoError(t, err, name)
			}
		}
	}
	require.True(t, p.Networks["engines"].Internal, "engines are reached from inside alone")
}

// TestComposeDaemons: their config is valid, has the variables it names, and no others.
func TestComposeDaemons(t *testing.T) {
	p := compose(t)
	c := loadConfig(t, "compose/flashgate.yaml", "../configs/limits.yaml")
	text := read(t, "compose/flashgate.yaml")
	require.Empty(t, references(fileReference, text), "secrets are variables here")
	named := references(envReference, text)
	for _, name := range append(slices.Clone(daemons), "migrate") {
		s := p.Services[name]
		requireCommand(t, s.Command)
		require.Equal(t, name, s.Command[0])
		require.True(t, s.ReadOnly, name)
		var set []string
		for key := range s.Environment {
			set = append(set, key)
		}
		require.ElementsMatch(t, named, set, name)
		require.Contains(t, []string{"deploy/Dockerfile"}, s.Build.Dockerfile, name)
		if name == "migrate" {
			continue
		}
		require.Equal(t, []string{"CMD", "/flashgate", "ready", "--config", containerFolder + "flashgate.yaml"}, []string(s.HealthCheck.Test))
		code, out := flashgate("ready", "--help")
		require.Zero(t, code, out)
		for _, on := range []string{"migrate", "redis-create"} {
			require.Contains(t, s.DependsOn, on, name)
		}
		takes := max(c.Gateway.DrainTimeout+c.Gateway.RequestTimeout, c.Worker.DrainTimeout+c.Worker.SettleTimeout) + operatorsDrain + c.Tracing.Timeout
		require.Less(t, takes, time.Duration(*s.StopGracePeriod), name)
		folder := false
		for _, v := range s.Volumes {
			folder = folder || v.Target == containerFolder+"limits" && strings.HasSuffix(v.Source, "/configs")
		}
		require.True(t, folder, "%s: the folder with limits.yaml, so that a file replaced in it is seen", name)
	}
	require.Equal(t, secretOf("REDIS_PASSWORD"), *p.Services["gateway"].Environment["FLASHGATE_REDIS_PASSWORD"])
	require.Equal(t, secretOf("REDIS_PASSWORD"), *p.Services["redis-1"].Environment["REDISCLI_AUTH"])
	require.Contains(t, *p.Services["gateway"].Environment[config.EnvMySQLDSN], "flashgate:"+secretOf("MYSQL_PASSWORD")+"@tcp(mysql:3306)/flashgate")
	for _, address := range slices.Concat(c.Redis.Addresses, c.RocketMQ.NameServers) {
		host, _, _ := strings.Cut(address, ":")
		require.Contains(t, p.Services, host)
	}
}

// TestComposeAddresses: what engines tell their clients is where they are.
func TestComposeAddresses(t *testing.T) {
	p := compose(t)
	address := func(service string) string {
		if n := p.Services[service].Networks["engines"]; n != nil {
			return n.Ipv4Address
		}
		return ""
	}
	seen := map[string]bool{}
	for name := range p.Services {
		if a := address(name); a != "" {
			require.False(t, seen[a], a)
			seen[a] = true
		}
	}
	var nodes []string
	for i := range 6 {
		nodes = append(nodes, address("redis-"+strconv.Itoa(i+1))+":6379")
	}
	require.Contains(t, read(t, "compose/redis-create.sh"), "nodes='"+strings.Join(nodes, " ")+"'\n")
	require.Contains(t, read(t, "compose/broker.conf"), "\nbrokerIP1="+address("rocketmq-broker")+"\n")
}

// TestVersionsAgree: an engine has one version wherever it is named, which is the tested one
// where it is installed here.
func TestVersionsAgree(t *testing.T) {
	versions := map[string]string{}
	for name, s := range compose(t).Services {
		image, version, _ := strings.Cut(s.Image, ":")
		if known, ok := versions[image]; ok {
			require.Equal(t, known, version, "%s: %s", name, image)
		}
		versions[image] = version
	}
	m := regexp.MustCompile(`<rocketmq.version>(.*)</rocketmq.version>`).FindStringSubmatch(read(t, "local/rocketmq/pom.xml"))
	require.Equal(t, m[1], versions["apache/rocketmq"])
	mod := regexp.MustCompile(`(?m)^go (\d+\.\d+)`).FindStringSubmatch(read(t, "../go.mod"))
	require.Contains(t, read(t, "Dockerfile"), "FROM golang:"+mod[1]+".")

	// The broker of compose.yaml keeps half messages as the tested one does.
	tested, here := settings(t, "../internal/rig/broker.conf.tmpl"), settings(t, "compose/broker.conf")
	for _, key := range []string{
		"brokerRole", "flushDiskType", "autoCreateTopicEnable", "transactionCheckMax",
		"maxTransferCountOnMessageInMemory", "maxTransferBytesOnMessageInMemory", "maxTransferCountOnMessageInDisk", "maxTransferBytesOnMessageInDisk",
	} {
		require.NotEmpty(t, tested[key], key)
		require.Equal(t, tested[key], here[key], key)
	}
}

func settings(t *testing.T, path string) map[string]string {
	t.Helper()
	found := map[string]string{}
	for line := range strings.Lines(read(t, path)) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && !strings.HasPrefix(key, "#") {
			found[key] = value
		}
	}
	return found
}

// TestImage: static, on nothing, nobody's.
func TestImage(t *testing.T) {
	text := read(t, "Dockerfile")
	_, last, ok := strings.Cut(text, "\nFROM scratch\n")
	require.True(t, ok, "the last stage is empty")
	require.NotContains(t, last, "\nFROM ")
	require.Contains(t, text, "CGO_ENABLED=0 go build ")
	// The compiler's profile is there, and in what the build sees.
	m := regexp.MustCompile(` -pgo=(\S+) `).FindStringSubmatch(text)
	require.NotNil(t, m)
	_, err := profile.ParseData([]byte(read(t, "../"+m[1])))
	require.NoError(t, err)
	require.Contains(t, strings.Fields(read(t, "../.dockerignore")), "!"+m[1])
	require.Regexp(t, `(?m)^USER [1-9]\d+:[1-9]\d+$`, last)
	require.Contains(t, last, `ENTRYPOINT ["/flashgate"]`)
	for _, secret := range []string{".git", ".run", "data", "deploy"} {
		require.Contains(t, strings.Fields(read(t, "../.dockerignore")), secret)
	}
}
