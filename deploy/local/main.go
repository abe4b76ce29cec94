// Command local runs the real engines on this machine: for hand use (`make up`,
// `make down`) and for tests (`make test`).
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"flashgate/internal/rig"
)

const usage = `Usage: go run ./deploy/local COMMAND

  up                start the engines of configs/local.yaml; those that run are left alone
  down              stop them; the data stays in .run
  status            what runs, and where its log is
  env               print the environment for daemons and tests on these engines: eval "$(go run ./deploy/local env)"
  test [-- ARGS]    start a set of engines for tests, run "go test ARGS" (default ./...) on it, stop it
`

const (
	// testInterruptSeconds is what an interrupted go test gets to end in.
	testInterruptSeconds = 10
	// downTimeoutSeconds bounds the stop after a test run, when the context of
	// the run is over already.
	downTimeoutSeconds = 120
	parentPollMillis   = 500
	exitUsage          = 2
)

// goTestFlags come before the caller's own, which override them. Two packages at
// a time: all share one set of engines. -count=1, because a cached result says
// nothing about engines.
var goTestFlags = []string{"test", "-p=2", "-count=1", "-timeout=10m"}

func main() {
	// SIGHUP too: a closed terminal must not leave engines behind.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	code, err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "local: %v\n", err)
	}
	os.Exit(code)
}

func run(ctx context.Context, args []string) (int, error) {
	if len(args) == 0 {
		fmt.Fprint(os.Stderr, usage)
		return exitUsage, nil
	}
	root, err := moduleRoot()
	if err != nil {
		return 1, err
	}
	dir := filepath.Join(root, ".run")
	options := rig.Options{
		Dir:   dir,
		Cache: filepath.Join(dir, "cache"),
		POM:   filepath.Join(root, "deploy", "local", "rocketmq", "pom.xml"),
		Ports: rig.HandPorts,
		Log:   os.Stdout,
	}
	command, rest := args[0], args[1:]
	if command == "test" {
		options.Dir = filepath.Join(dir, "test")
		options.Ports = rig.TestPorts
		options.MySQL = true
		options.Fresh = true
		if len(rest) > 0 && rest[0] == "--" {
			rest = rest[1:]
		}
		return test(ctx, root, options, rest)
	}
	if len(rest) > 0 {
		fmt.Fprint(os.Stderr, usage)
		return exitUsage, nil
	}
	switch command {
	case "up":
		err = up(ctx, options)
	case "down":
		err = down(ctx, options)
	case "status":
		err = status(options)
	case "env":
		err = env(options)
	case "help", "-h", "--help":
		fmt.Print(usage)
	default:
		fmt.Fprint(os.Stderr, usage)
		return exitUsage, nil
	}
	if err != nil {
		return 1, err
	}
	return 0, nil
}

func up(ctx context.Context, options rig.Options) error {
	if _, err := rig.Up(ctx, options); err != nil {
		if ctx.Err() != nil {
			return errors.New("interrupted; `make down` stops what was started")
		}
		return err
	}
	fmt.Printf("\nsecrets and the ledger's DSN are in %s:  set -a; . .run/env; set +a\n", filepath.Join(options.Dir, "env"))
	return nil
}

func down(ctx context.Context, options rig.Options) error {
	err := rig.Down(ctx, options.Dir, options.Log)
	if errors.Is(err, rig.ErrNotUp) {
		fmt.Println("the engines are not up")
		return nil
	}
	return err
}

func status(options rig.Options) error {
	engines, err := rig.Attach(options.Dir, options.Log)
	if errors.Is(err, rig.ErrNotUp) {
		fmt.Println("the engines are not up")
		return nil
	}
	if err != nil {
		return err
	}
	missing := 0
	for _, p := range engines.Processes() {
		pid := "not running"
		if n := p.PID(); n != 0 {
			pid = fmt.Sprintf("pid %d", n)
		} else {
			missing++
		}
		fmt.Printf("%-18s %-16s %-12s %s\n", p.Name, p.Addr, pid, p.Logs[len(p.Logs)-1])
	}
	if missing > 0 {
		return fmt.Errorf("%d processes are not running: `make up` starts them", missing)
	}
	return nil
}

func env(options rig.Options) error {
	engines, err := rig.Attach(options.Dir, options.Log)
	if err != nil {
		return err
	}
	for _, pair := range append(engines.Env(), engines.TestEnv()...) {
		name, value, _ := strings.Cut(pair, "=")
		fmt.Printf("export %s='%s'\n", name, strings.ReplaceAll(value, "'", `'\''`))
	}
	return nil
}

// test returns go test's exit code. Whatever happens in between, the engines are
// stopped.
func test(ctx context.Context, root string, options rig.Options, args []string) (code int, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go cancelWhenOrphaned(ctx, cancel)

	if err := os.MkdirAll(options.Dir, 0o755); err != nil {
		return 1, err
	}
	// One test run of this clone at a time: they share ports and directory.
	unlock, err := rig.Lock(ctx, options.Dir+".lock", options.Log)
	if err != nil {
		return 1, err
	}
	defer unlock()

	began := time.Now()
	engines, err := rig.Up(ctx, options)
	defer func() {
		// Not ctx, which a signal has ended.
		downCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), downTimeoutSeconds*time.Second)
		defer cancel()
		if downErr := rig.Discard(downCtx, options.Dir, nil); downErr != nil && !errors.Is(downErr, rig.ErrNotUp) {
			code, err = 1, errors.Join(err, downErr)
		}
		if engines == nil || ctx.Err() != nil {
			return
		}
		if reason := engines.MySQLUnavailable(); reason != "" {
			fmt.Printf("not tested on real MySQL, only on MariaDB: %s\n", firstLine(reason))
		}
	}()
	if ctx.Err() != nil {
		return 1, errors.New("interrupted while the engines were starting")
	}
	if err != nil {
		return 1, err
	}
	if len(args) == 0 {
		args = []string{"./..."}
	}
	fmt.Printf("%-14s %-48s in %.1fs\n\n", "engines", "all ready", time.Since(began).Seconds())
	return goTest(ctx, root, append(goTestFlags, args...), engines.TestEnv())
}

func goTest(ctx context.Context, root string, args, env []string) (int, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	// A group of its own, so that an interrupt reaches the tests' processes once
	// and from here alone.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGINT) }
	cmd.WaitDelay = testInterruptSeconds * time.Second

	err := cmd.Run()
	if ctx.Err() != nil {
		// What did not end by itself is still in the group; when nothing is, there
		// is no such group any more.
		if killErr := syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL); killErr != nil && !errors.Is(killErr, syscall.ESRCH) {
			err = errors.Join(err, killErr)
		}
		return 1, fmt.Errorf("interrupted: %w", errors.Join(ctx.Err(), err))
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Exited() {
		return exit.ExitCode(), nil // its output has said why
	}
	if err != nil {
		return 1, err
	}
	return 0, nil
}

// cancelWhenOrphaned ends the run when the program that started it is gone: a
// killed `go run` passes no signal on to its child.
func cancelWhenOrphaned(ctx context.Context, cancel func()) {
	parent := os.Getppid()
	ticker := time.NewTicker(parentPollMillis * time.Millisecond)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			if os.Getppid() != parent {
				cancel()
				return
			}
		}
	}
}

func firstLine(text string) string {
	line, _, _ := strings.Cut(text, "\n")
	return line
}

// moduleRoot is the directory of go.mod, at or above the working directory.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("no go.mod here or above: run this inside the repository")
		}
		dir = parent
	}
}
