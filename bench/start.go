package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"flashgate/internal/rig"
)

const (
	readyTimeoutSeconds = 60 // to /readyz: a first start migrates, warms up and loads sales
	stopTimeoutSeconds  = 30 // to drain after SIGTERM; then SIGKILL, and the run is broken
	probeTimeoutSeconds = 5  // for one look at /readyz
)

// daemon is a process that the run started and stops.
type daemon struct {
	name      string
	listen    string // shoppers, host:port
	operators string
	log       string
	cmd       *exec.Cmd
	ended     chan struct{} // closed when the process is gone
	err       error         // how it ended; read after ended
}

func startDaemon(command string, args []string, config, dir, name string, listen, operators string) (*daemon, error) {
	d := &daemon{name: name, listen: listen, operators: operators, log: filepath.Join(dir, name+".log"), ended: make(chan struct{})}
	log, err := os.Create(d.log)
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }()
	args = append(args, "--config", config, "--listen", listen, "--operators-listen", operators)
	d.cmd = exec.Command(command, args...)
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

// ready waits for the daemon's /readyz.
func (d *daemon) ready(ctx context.Context) error {
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
		c := newConn(d.operators, probeTimeoutSeconds*time.Second)
		defer c.close()
		if err := c.do(appendGet(nil, d.operators, "/readyz", "")); err != nil {
			return fmt.Errorf("%s is not ready: %w", d.name, err)
		}
		if c.resp.StatusCode() != http.StatusOK {
			return fmt.Errorf("%s is not ready: /readyz says %d %.300s", d.name, c.resp.StatusCode(), c.resp.Body())
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
func (d *daemon) ending() error {
	if d.err == nil {
		return errors.New("exit status 0")
	}
	return d.err
}

func (d *daemon) tail() string {
	text, _ := os.ReadFile(d.log) // no log, no tail
	return tail(text)
}

// stop ends the daemon and says if it did not end well.
func (d *daemon) stop() error {
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
	startNone     = "none"     // it runs already
	startDaemons  = "daemons"  // gateways, workers and a reconciler, on the engines of the config
	startEmbedded = "embedded" // one process, engines included
)

// withSystem gives use a system to measure, as the options say, and stops
// afterwards what it started. batchMax overrides the config's, unless "".
func withSystem(ctx context.Context, o *options, p *progress, batchMax string, use func(*system) error) (err error) {
	dir, err := os.MkdirTemp("", "flashgate-bench-")
	if err != nil {
		return err
	}
	defer func() {
		if err == nil {
			_ = os.RemoveAll(dir)
			return
		}
		p.step("logs and configs of the failed run are in %s", dir)
	}()
	sys := &system{command: o.flashgate, config: o.configFile(), dir: dir, timeout: o.timeout, progress: p}
	if o.start == startNone {
		for _, raw := range o.gateways {
			addr, err := gatewayAddr(raw)
			if err != nil {
				return err
			}
			sys.gateways = append(sys.gateways, addr)
		}
		return use(sys)
	}
	defer func() {
		p.step("stopping %d processes", len(sys.daemons))
		// Gateways first: what they still accept, the others still carry.
		for _, d := range sys.daemons {
			err = errors.Join(err, d.stop())
		}
	}()
	if err := sys.start(ctx, o, batchMax); err != nil {
		return err
	}
	return use(sys)
}

// start starts the processes of a system; those that run are in s.daemons even if it
// fails.
func (s *system) start(ctx context.Context, o *options, batchMax string) error {
	roles := o.roles()
	addrs, err := rig.FreeAddresses(2 * len(roles))
	if err != nil {
		return err
	}
	changes := setup{
		listen:      addrs[0],
		operators:   addrs[1],
		raiseLimits: o.limits == limitsRaised,
		batchMax:    batchMax,
	}
	if o.start == startEmbedded {
		// Its audit is made by the process, with the watermark of the process.
		changes.dataDir, changes.watermark = filepath.Join(s.dir, "data"), auditWatermark.String()
	}
	s.config, err = writeConfig(s.config, s.dir, "flashgate.yaml", changes)
	if err != nil {
		return err
	}
	if o.start == startDaemons {
		s.progress.step("flashgate migrate")
		if _, err := s.run(ctx, "migrate"); err != nil {
			return err
		}
	}
	s.progress.step("starting %s", strings.Join(roles, ", "))
	for n, role := range roles {
		var args []string
		if o.start == startDaemons {
			args = []string{strings.TrimRight(role, "-0123456789")}
		}
		d, err := startDaemon(s.command, args, s.config, s.dir, role, addrs[2*n], addrs[2*n+1])
		if err != nil {
			return err
		}
		s.daemons = append(s.daemons, d)
		if o.start == startEmbedded || args[0] == "gateway" {
			s.gateways = append(s.gateways, d.listen)
		}
	}
	for _, d := range s.daemons {
		if err := d.ready(ctx); err != nil {
			return err
		}
	}
	return nil
}

// buildFlashgate builds the program of this module into dir.
func buildFlashgate(ctx context.Context, dir string) (string, error) {
	command := filepath.Join(dir, "flashgate")
	out, err := exec.CommandContext(ctx, "go", "build", "-o", command, "flashgate").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("building flashgate: %w\n%s", err, tail(out))
	}
	return command, nil
}
