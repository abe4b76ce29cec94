package system

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"flashgate/bench/load"
	"flashgate/bench/usage"
	"flashgate/internal/rig"
)

const (
	readyTimeoutSeconds = 60 // to /readyz: a first start migrates, warms up and loads sales
	stopTimeoutSeconds  = 30 // to drain after SIGTERM; then SIGKILL, and the run is broken
	probeTimeoutSeconds = 5  // for one look at /readyz
)

// Daemon is a process that the run started and stops.
type Daemon struct {
	name      string
	listen    string // shoppers, host:port
	operators string
	log       string
	cmd       *exec.Cmd
	ended     chan struct{} // closed when the process is gone
	err       error         // how it ended; read after ended
}

// startDaemon starts a process; its operators' port is "" if it has none.
func startDaemon(command string, args, env []string, dir, name, listen, operators string) (*Daemon, error) {
	d := &Daemon{name: name, listen: listen, operators: operators, log: filepath.Join(dir, name+".log"), ended: make(chan struct{})}
	log, err := os.Create(d.log)
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }()
	d.cmd = exec.Command(command, args...)
	d.cmd.Env = env
	d.cmd.Stdout, d.cmd.Stderr = log, log
	// A group of its own: Ctrl-C in the terminal is for the driver, which then
	// stops its daemons in good order.
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := d.cmd.Start(); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	go func() {
		d.err = d.cmd.Wait()
		close(d.ended)
	}()
	return d, nil
}

// ready waits for the daemon's /readyz, or, if it has none, until it takes connections.
func (d *Daemon) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeoutSeconds*time.Second)
	defer cancel()
	gone := false
	err := await(ctx, func() error {
		select {
		case <-d.ended:
			gone = true
			return nil
		default:
		}
		if d.operators == "" {
			c := load.NewConn(d.listen, probeTimeoutSeconds*time.Second)
			defer c.Close()
			return c.Dial()
		}
		c := load.NewConn(d.operators, probeTimeoutSeconds*time.Second)
		defer c.Close()
		if err := c.Do(load.AppendGet(nil, d.operators, "/readyz", "")); err != nil {
			return fmt.Errorf("%s is not ready: %w", d.name, err)
		}
		if c.Resp.StatusCode() != http.StatusOK {
			return fmt.Errorf("%s is not ready: /readyz says %d %.300s", d.name, c.Resp.StatusCode(), c.Resp.Body())
		}
		return nil
	})
	if gone {
		err = fmt.Errorf("%s ended at once: %w", d.name, d.ending())
	}
	if err != nil {
		return fmt.Errorf("%w\n%s", err, d.tail())
	}
	return nil
}

// ending is how a daemon ended that should not have; ending well is no better.
func (d *Daemon) ending() error {
	if d.err == nil {
		return errors.New("exit status 0")
	}
	return d.err
}

func (d *Daemon) tail() string {
	text, _ := os.ReadFile(d.log) // no log, no tail
	return tail(text)
}

// stop ends the daemon and says if it did not end well.
func (d *Daemon) stop() error {
	select {
	case <-d.ended:
		return fmt.Errorf("%s ended during the run: %w\n%s", d.name, d.ending(), d.tail())
	default:
	}
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("%s: %w", d.name, err)
	}
	select {
	case <-d.ended:
	case <-time.After(stopTimeoutSeconds * time.Second):
		_ = d.cmd.Process.Kill() // gone already is as good
		<-d.ended
		return fmt.Errorf("%s did not stop within %d s of SIGTERM and was killed\n%s", d.name, stopTimeoutSeconds, d.tail())
	}
	if d.err != nil {
		return fmt.Errorf("%s stopped badly: %w\n%s", d.name, d.err, d.tail())
	}
	return nil
}

// The ways to come by a running system.
const (
	StartNone     = "none"     // it runs already
	StartDaemons  = "daemons"  // gateways, workers and a reconciler, on the engines of the config
	StartEmbedded = "embedded" // one process, engines included
	StartAuto     = "auto"     // daemons if the engines of the config answer, or else embedded
)

// With gives use a system to measure, as the options say, and stops afterwards what it
// started. batchMax overrides the config's, unless "".
func With(ctx context.Context, o *Options, p *load.Progress, batchMax string, use func(*System) error) error {
	return withOwnIn(ctx, o, p, func(dir string) error {
		sys := &System{command: o.Flashgate, Config: o.ConfigFile(), Dir: dir, Timeout: o.Timeout, Progress: p, Real: o.Start != StartEmbedded, own: o.own}
		if o.Start == StartNone {
			for _, raw := range o.Gateways {
				addr, err := gatewayAddr(raw)
				if err != nil {
					return err
				}
				sys.Gateways = append(sys.Gateways, addr)
			}
			return use(sys)
		}
		return sys.whileUp(func() error {
			if err := sys.start(ctx, o, batchMax); err != nil {
				return err
			}
			return use(sys)
		})
	})
}

// WithServer is With of one process that is no flashgate: command, with its name and
// where to listen as its arguments.
func WithServer(ctx context.Context, o *Options, p *load.Progress, command, name string, use func(*System) error) error {
	return inFolder(p, func(dir string) error {
		addrs, err := rig.FreeAddresses(1)
		if err != nil {
			return err
		}
		sys := &System{Gateways: addrs, Dir: dir, Timeout: o.Timeout, Progress: p}
		return sys.whileUp(func() error {
			d, err := startDaemon(command, []string{name, addrs[0]}, os.Environ(), dir, name, addrs[0], "")
			if err != nil {
				return err
			}
			sys.daemons = append(sys.daemons, d)
			if err := d.ready(ctx); err != nil {
				return err
			}
			return use(sys)
		})
	})
}

// WithEngines gives use the engines of the options alone, with nothing started.
func WithEngines(ctx context.Context, o *Options, p *load.Progress, use func(*System) error) error {
	return withOwnIn(ctx, o, p, func(dir string) error {
		return use(&System{Config: o.ConfigFile(), Dir: dir, Timeout: o.Timeout, Progress: p, Real: o.Start != StartEmbedded, own: o.own})
	})
}

func withOwnIn(ctx context.Context, o *Options, p *load.Progress, use func(dir string) error) error {
	return withOwn(ctx, o, p, func() error { return inFolder(p, use) })
}

// inFolder gives use a folder, which stays if it fails.
func inFolder(p *load.Progress, use func(dir string) error) error {
	dir, err := os.MkdirTemp("", "flashgate-bench-")
	if err != nil {
		return err
	}
	if err := use(dir); err != nil {
		p.Step("logs and configs of the failed run are in %s", dir)
		return err
	}
	return os.RemoveAll(dir)
}

// whileUp stops all processes of the system after use, the gateways first: what they
// still accept, the others still carry.
func (s *System) whileUp(use func() error) (err error) {
	defer func() {
		s.Progress.Step("stopping %d processes", len(s.daemons))
		for _, d := range s.daemons {
			err = errors.Join(err, d.stop())
		}
	}()
	return use()
}

// start starts the processes of a system; those that run are in s.daemons even if it
// fails.
func (s *System) start(ctx context.Context, o *Options, batchMax string) error {
	roles := o.roles()
	addrs, err := rig.FreeAddresses(2 * len(roles))
	if err != nil {
		return err
	}
	changes := Setup{
		listen:      addrs[0],
		operators:   addrs[1],
		raiseLimits: o.Limits == LimitsRaised,
		batchMax:    batchMax,
		ownBus:      s.own != nil,
	}
	if o.Start == StartEmbedded {
		// Its audit is made by the process, with the watermark of the process.
		changes.dataDir, changes.Watermark = filepath.Join(s.Dir, "data"), auditWatermark.String()
	}
	s.Config, err = WriteConfig(s.Config, s.Dir, "flashgate.yaml", changes)
	if err != nil {
		return err
	}
	if o.Start == StartDaemons {
		s.Progress.Step("flashgate migrate")
		if _, err := s.run(ctx, "migrate"); err != nil {
			return err
		}
	}
	s.Progress.Step("starting %s", strings.Join(roles, ", "))
	for n, role := range roles {
		var args []string
		if o.Start == StartDaemons {
			args = []string{strings.TrimRight(role, "-0123456789")}
		}
		args = append(args, "--config", s.Config, "--listen", addrs[2*n], "--operators-listen", addrs[2*n+1])
		env := s.own.env()
		if strings.HasPrefix(role, "gateway") {
			env = append(shareOfCores(o.GatewayCount), env...) // what the environment says comes later, and counts
		}
		d, err := startDaemon(s.command, args, env, s.Dir, role, addrs[2*n], addrs[2*n+1])
		if err != nil {
			return err
		}
		s.daemons = append(s.daemons, d)
		if o.Start == StartDaemons && !strings.HasPrefix(role, "gateway") {
			// As docs/operations.md tells operators to, where they share a machine.
			if err := rig.Renice(d.cmd.Process.Pid, rig.BehindNice); err != nil {
				return err
			}
		}
		if o.Start == StartEmbedded || strings.HasPrefix(role, "gateway") {
			s.Gateways = append(s.Gateways, d.listen)
		}
	}
	for _, d := range s.daemons {
		if err := d.ready(ctx); err != nil {
			return err
		}
	}
	return nil
}

// shareOfCores gives each of the gateways on this machine its part of the cores, as
// docs/operations.md tells operators to: each of them on all cores only gets in the way of
// the others.
func shareOfCores(gateways int) []string {
	return []string{fmt.Sprintf("GOMAXPROCS=%d", max(1, runtime.NumCPU()/gateways))}
}

// Watch watches the driver, the processes that it started, and the real engines of
// this machine if they are what runs.
func (s *System) Watch() *usage.Watch {
	processes := append([]usage.Process{{Name: "driver", PIDs: []int{os.Getpid()}}}, s.processes()...)
	if s.Real {
		processes = append(processes, usage.Engines()...)
	}
	return usage.Start(append(processes, usage.Stolen))
}

// processes are those that the run started.
func (s *System) processes() (out []usage.Process) {
	for _, d := range s.daemons {
		out = append(out, usage.Process{Name: d.name, PIDs: []int{d.cmd.Process.Pid}})
	}
	return out
}

// SignalWorkers sends a signal to every worker that the run started.
func (s *System) SignalWorkers(sig syscall.Signal) error {
	for _, d := range s.daemons {
		if strings.HasPrefix(d.name, "worker") {
			if err := d.cmd.Process.Signal(sig); err != nil {
				return fmt.Errorf("%s: %w", d.name, err)
			}
		}
	}
	return nil
}

// ProfileFile is what the compiler is told of where the time goes, in the module's folder.
const ProfileFile = "deploy/flashgate.pgo"

// Build builds the program of this module into dir, as for production.
func Build(ctx context.Context, dir string) (string, error) {
	module, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "flashgate").Output()
	if err != nil {
		return "", fmt.Errorf("building flashgate: not in its module: %w", err)
	}
	command := filepath.Join(dir, "flashgate")
	pgo := "-pgo=" + filepath.Join(strings.TrimSpace(string(module)), ProfileFile)
	out, err := exec.CommandContext(ctx, "go", "build", pgo, "-o", command, "flashgate").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("building flashgate: %w\n%s", err, tail(out))
	}
	return command, nil
}
