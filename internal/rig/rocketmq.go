package rig

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	_ "embed"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"text/template"
	"time"
)

const (
	// jarsHashDigits of the POM's hash name the directory of its jars.
	jarsHashDigits = 8
	// jarsTimeoutSeconds is for 137 jars, 94 MB, on a slow line.
	jarsTimeoutSeconds = 600
	// rocketmqReadyTimeoutSeconds is for two JVMs on a machine busy with builds;
	// alone they take 5 s.
	rocketmqReadyTimeoutSeconds = 240
	// checkBackSeconds is longer than any purchase takes, so that the broker asks only
	// about what was left undecided.
	checkBackSeconds = 6
	// opNotedPart of that time is how late the broker notes the end of a half message.
	opNotedPart = 6
	// brokerSlackMillis late may the broker's timers be. Dozens of its threads look for work
	// every 1, 5 or 10 ms, for 70 ms of processor a second with nothing to do, and 40 ms
	// so. No purchase waits for any of them.
	brokerSlackMillis = 4
)

//go:embed broker.conf.tmpl
var brokerConfText string

//go:embed namesrv.conf.tmpl
var namesrvConfText string

var (
	brokerConf  = template.Must(template.New("broker.conf").Parse(brokerConfText))
	namesrvConf = template.Must(template.New("namesrv.conf").Parse(namesrvConfText))
)

type rocketmq struct {
	progress    progress
	pom         string
	jars        string // the directory of the jars that this content of pom names
	namesrvPort int
	brokerPort  int
	brokerIP    string // the broker's address as clients are told
	checkBack   int    // seconds until a half message is asked about
	namesrv     *Process
	broker      *Process
}

func newRocketMQ(options *Options, progress progress) (*rocketmq, error) {
	dir, pom := options.Dir, options.POM
	namesrvPort, brokerPort := options.Ports.Namesrv, options.Ports.Broker
	list, err := os.ReadFile(pom)
	if err != nil {
		return nil, fmt.Errorf("the list of RocketMQ's jars: %w", err)
	}
	java, err := lookup("java")
	if err != nil {
		return nil, err
	}
	r := &rocketmq{
		progress: progress,
		pom:      pom,
		// Another version goes beside the one that may be running.
		jars:        filepath.Join(options.Cache, fmt.Sprintf("rocketmq-%x", sha256.Sum256(list))[:len("rocketmq-")+jarsHashDigits]),
		namesrvPort: namesrvPort,
		brokerPort:  brokerPort,
		brokerIP:    cmp.Or(options.Front, "127.0.0.1"),
		checkBack:   cmp.Or(options.CheckBackSeconds, checkBackSeconds),
	}
	jvm := func(name string, port int, flags []string, class string) *Process {
		home := filepath.Join(dir, "rocketmq", name)
		argv := append([]string{java}, flags...)
		argv = append(argv,
			"-Dfile.encoding=UTF-8", // the environment is empty: no locale says so
			"-Duser.home="+home,     // where it keeps logs and whatever has no setting
			// Both servers' logging files are on the class path: unasked, either
			// takes whichever comes first.
			"-Drmq.logback.configurationFile=rmq."+name+".logback.xml",
			"-Drocketmq.home.dir="+home,
			// A path may hold a comma, at which it would be split into several stores.
			"-Drocketmq.broker.multiPathSplitter=//",
			// Refuse writes when the disk is really full, not at 90 %: the disk is
			// the developer's own.
			"-Drocketmq.broker.diskSpaceWarningLevelRatio=0.98",
			"-Drocketmq.broker.diskSpaceCleanForciblyRatio=0.97",
			"-XX:ErrorFile="+filepath.Join(home, "crash.log"),
			"-cp", filepath.Join(r.jars, "*"),
			class,
			"-c", filepath.Join(home, name+".conf"))
		return &Process{
			Name:    "rocketmq-" + name,
			Engine:  r.name(),
			Addr:    address(port),
			Argv:    argv,
			PIDFile: filepath.Join(home, name+".pid"),
			Logs: []string{
				filepath.Join(home, "console.log"),
				filepath.Join(home, "logs", "rocketmqlogs", name+".log"),
			},
		}
	}
	// Without the optimising compiler and the parallel collector a server starts on half
	// the processor time. The name server does next to nothing.
	quick := []string{"-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"}
	r.namesrv = jvm("namesrv", namesrvPort, append([]string{"-Xmx256m"}, quick...), "org.apache.rocketmq.namesrv.NamesrvStartup")
	brokerFlags := []string{"-Xms512m", "-Xmx512m", "-XX:MaxDirectMemorySize=512m"}
	if options.QuickStart {
		brokerFlags = append(brokerFlags, quick...)
	}
	r.broker = jvm("broker", brokerPort, brokerFlags, "org.apache.rocketmq.broker.BrokerStartup")
	r.broker.TimerSlack = brokerSlackMillis * time.Millisecond
	return r, nil
}

func (r *rocketmq) name() string          { return "rocketmq" }
func (r *rocketmq) processes() []*Process { return []*Process{r.namesrv, r.broker} }

func (r *rocketmq) where() string {
	return fmt.Sprintf("name server on %s, broker on %d", address(r.namesrvPort), r.brokerPort)
}

func (r *rocketmq) start(ctx context.Context) error {
	if err := r.fetchJars(ctx); err != nil {
		return err
	}
	if r.namesrv.PID() == 0 {
		if err := r.configure(r.namesrv, namesrvConf, r.namesrvPort); err != nil {
			return err
		}
		if err := r.namesrv.Start(); err != nil {
			return err
		}
	}
	// The broker registers when it starts and, having found no name server, only
	// half a minute later again.
	err := await(ctx, rocketmqReadyTimeoutSeconds*time.Second, []*Process{r.namesrv}, func() error {
		_, err := remotingCall(ctx, r.namesrv.Addr, codeBrokerClusterInfo)
		return err
	})
	if err != nil || r.broker.PID() != 0 {
		return err
	}
	// Beside the port of the configuration: one for clients in a hurry (-2) and
	// one for slaves (+1).
	if err := r.configure(r.broker, brokerConf, r.brokerPort, r.brokerPort-2, r.brokerPort+1); err != nil {
		return err
	}
	return r.broker.Start()
}

func (r *rocketmq) configure(p *Process, conf *template.Template, ports ...int) error {
	for _, port := range ports {
		if err := portFree(port); err != nil {
			return err
		}
	}
	home := filepath.Dir(p.PIDFile)
	if err := os.MkdirAll(home, 0o755); err != nil {
		return err
	}
	var text bytes.Buffer
	err := conf.Execute(&text, map[string]string{
		"Port":           strconv.Itoa(ports[0]),
		"IP":             r.brokerIP,
		"Namesrv":        r.namesrv.Addr,
		"CheckMillis":    strconv.Itoa(r.checkBack * 1000),
		"IntervalMillis": strconv.Itoa(max(1, r.checkBack-1) * 1000),
		"OpMillis":       strconv.Itoa(r.checkBack * 1000 / opNotedPart),
		"Store":          filepath.Join(home, "store"),
	})
	if err != nil {
		return err
	}
	return os.WriteFile(p.Argv[len(p.Argv)-1], text.Bytes(), 0o644)
}

// ready holds when the name server knows the broker and the broker answers.
func (r *rocketmq) ready(ctx context.Context) error {
	return await(ctx, rocketmqReadyTimeoutSeconds*time.Second, r.processes(), func() error {
		known, err := remotingCall(ctx, r.namesrv.Addr, codeBrokerClusterInfo)
		if err != nil {
			return err
		}
		announced := net.JoinHostPort(r.brokerIP, strconv.Itoa(r.brokerPort))
		if !bytes.Contains(known, []byte(strconv.Quote(announced))) {
			return fmt.Errorf("the name server does not know a broker at %s", announced)
		}
		_, err = remotingCall(ctx, r.broker.Addr, codeBrokerRuntimeInfo)
		return err
	})
}

// fetchJars has Maven copy the server's jars, once. They are copied aside and
// renamed: a directory that exists is whole.
func (r *rocketmq) fetchJars(ctx context.Context) error {
	if _, err := os.Stat(r.jars); err == nil {
		return nil
	}
	maven, err := lookup("mvn")
	if err != nil {
		return err
	}
	r.progress(r.name(), "fetching its jars with Maven into "+r.jars+", this once", "")
	partial := r.jars + ".partial"
	if err := os.RemoveAll(partial); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, jarsTimeoutSeconds*time.Second)
	defer cancel()
	_, err = command(ctx, maven, "-B", "-q", "-f", r.pom,
		"dependency:copy-dependencies", "-DincludeScope=runtime", "-DoutputDirectory="+partial)
	if err != nil {
		return fmt.Errorf("fetch RocketMQ's jars: %w", err)
	}
	return os.Rename(partial, r.jars)
}
