package rig

import (
	"bytes"
	"context"
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"text/template"
	"time"
)

const (
	redisNodes   = 6 // 3 masters, 1 replica each
	redisMasters = 3
	redisSlots   = 16384

	// clusterBusOffset is Redis's own rule: the nodes talk to each other on the
	// client port plus this.
	clusterBusOffset = 10000

	// redisReadyTimeoutSeconds covers loading a large AOF and a failover that a
	// restart may begin with.
	redisReadyTimeoutSeconds = 60
	redisCommandSeconds      = 5
	redisCreateSeconds       = 60
)

//go:embed redis.conf.tmpl
var redisConfText string

var redisConf = template.Must(template.New("redis.conf").Parse(redisConfText))

type redisCluster struct {
	dir   string
	front string // where nodes say they are; "" = where they are
	first int    // port of the first node
	nodes []*Process
}

func newRedisCluster(dir string, first int, front string) (*redisCluster, error) {
	server, err := lookup("redis-server")
	if err != nil {
		return nil, err
	}
	c := &redisCluster{dir: filepath.Join(dir, "redis"), front: front, first: first}
	for i := range redisNodes {
		port := first + i
		home := c.home(port)
		c.nodes = append(c.nodes, &Process{
			Name:    "redis-" + strconv.Itoa(port),
			Engine:  c.name(),
			Addr:    address(port),
			Argv:    []string{server, filepath.Join(home, "redis.conf")},
			PIDFile: filepath.Join(home, "redis.pid"),
			Logs:    []string{filepath.Join(home, "console.log"), filepath.Join(home, "redis.log")},
		})
	}
	return c, nil
}

func (c *redisCluster) name() string          { return "redis cluster" }
func (c *redisCluster) processes() []*Process { return c.nodes }
func (c *redisCluster) home(port int) string  { return filepath.Join(c.dir, strconv.Itoa(port)) }

func (c *redisCluster) where() string {
	return fmt.Sprintf("%d nodes on %s-%d", redisNodes, address(c.first), c.first+redisNodes-1)
}

func (c *redisCluster) start(ctx context.Context) error {
	for i, node := range c.nodes {
		if node.PID() != 0 {
			continue
		}
		port := c.first + i
		for _, used := range []int{port, port + clusterBusOffset} {
			if err := portFree(used); err != nil {
				return err
			}
		}
		if err := c.configure(port, node); err != nil {
			return err
		}
		if err := node.Start(); err != nil {
			return err
		}
	}
	err := await(ctx, redisReadyTimeoutSeconds*time.Second, c.nodes, func() error {
		for i := range c.nodes {
			if _, err := c.ask(ctx, c.first+i, "PING"); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return c.form(ctx)
}

func (c *redisCluster) configure(port int, node *Process) error {
	home := c.home(port)
	if err := os.MkdirAll(home, 0o755); err != nil {
		return err
	}
	var conf bytes.Buffer
	err := redisConf.Execute(&conf, map[string]string{
		"Port":  strconv.Itoa(port),
		"Front": c.front,
		// Quoted as in redis.conf, where a path may hold blanks.
		"Dir":     strconv.Quote(home),
		"PIDFile": strconv.Quote(node.PIDFile),
		"LogFile": strconv.Quote(node.Logs[1]),
	})
	if err != nil {
		return err
	}
	return os.WriteFile(node.Argv[1], conf.Bytes(), 0o644)
}

// form joins the nodes to a cluster, once: the nodes keep it in nodes.conf.
func (c *redisCluster) form(ctx context.Context) error {
	begun := false
	for i := range c.nodes {
		info, err := c.info(ctx, c.first+i, "CLUSTER", "INFO")
		if err != nil {
			return err
		}
		if info["cluster_slots_assigned"] == strconv.Itoa(redisSlots) {
			return nil
		}
		begun = begun || info["cluster_known_nodes"] != "1" || info["cluster_slots_assigned"] != "0"
	}
	var addrs []string
	for i := range c.nodes {
		port := c.first + i
		addrs = append(addrs, address(port))
		if !begun {
			continue
		}
		// An earlier attempt was interrupted. No node knows of a whole cluster, so
		// none has ever held data.
		for _, command := range [][]string{{"FLUSHALL"}, {"CLUSTER", "RESET", "HARD"}} {
			// A half-joined replica refuses FLUSHALL and has nothing to flush.
			if _, err := c.ask(ctx, port, command...); err != nil && command[0] != "FLUSHALL" {
				return err
			}
		}
	}
	ctx, cancel := context.WithTimeout(ctx, redisCreateSeconds*time.Second)
	defer cancel()
	args := append([]string{"--cluster", "create"}, addrs...)
	args = append(args, "--cluster-replicas", "1", "--cluster-yes")
	if out, err := exec.CommandContext(ctx, "redis-cli", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("redis-cli %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

// ready holds when every node sees the whole cluster and every replica is online
// on its master, so that WAIT 1 succeeds at once.
func (c *redisCluster) ready(ctx context.Context) error {
	return await(ctx, redisReadyTimeoutSeconds*time.Second, c.nodes, func() error { return c.check(ctx) })
}

func (c *redisCluster) check(ctx context.Context) error {
	masters := 0
	for i := range c.nodes {
		port := c.first + i
		cluster, err := c.info(ctx, port, "CLUSTER", "INFO")
		if err != nil {
			return err
		}
		for field, want := range map[string]string{
			"cluster_state":       "ok",
			"cluster_slots_ok":    strconv.Itoa(redisSlots),
			"cluster_known_nodes": strconv.Itoa(redisNodes),
		} {
			if cluster[field] != want {
				return fmt.Errorf("redis-%d says %s:%s, not %s", port, field, cluster[field], want)
			}
		}
		replication, err := c.info(ctx, port, "INFO", "replication")
		if err != nil {
			return err
		}
		if replication["role"] == "master" {
			masters++
			if !strings.Contains(replication["slave0"], "state=online") {
				return fmt.Errorf("redis-%d is a master without a replica online", port)
			}
		} else if link := replication["master_link_status"]; link != "up" {
			return fmt.Errorf("redis-%d is a replica with master_link_status:%s", port, link)
		}
	}
	if masters != redisMasters {
		return fmt.Errorf("the cluster has %d masters, not %d", masters, redisMasters)
	}
	return nil
}

func (c *redisCluster) info(ctx context.Context, port int, command ...string) (map[string]string, error) {
	out, err := c.ask(ctx, port, command...)
	if err != nil {
		return nil, err
	}
	return parseInfo(out), nil
}

// parseInfo reads the field:value lines of INFO and CLUSTER INFO.
func parseInfo(text string) map[string]string {
	fields := map[string]string{}
	for line := range strings.Lines(text) {
		if field, value, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			fields[field] = value
		}
	}
	return fields
}

func (c *redisCluster) ask(ctx context.Context, port int, command ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, redisCommandSeconds*time.Second)
	defer cancel()
	args := append([]string{"-e", "-h", "127.0.0.1", "-p", strconv.Itoa(port)}, command...)
	out, err := exec.CommandContext(ctx, "redis-cli", args...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("redis-%d, %s: %w: %s", port, strings.Join(command, " "), err, bytes.TrimSpace(out))
	}
	return string(out), nil
}
