package faults

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"strconv"

	toxiproxy "github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"

	"flashgate/internal/rig"
)

// front is the address at which the engines announce themselves: everything that
// daemons, Redis's nodes among each other, and shoppers send goes through a proxy.
const front = "127.0.0.2"

// redisNodes is how many nodes a rig's cluster has.
const redisNodes = 6

// clusterBusOffset is Redis's own rule: nodes talk to each other on the client port
// plus this.
const clusterBusOffset = 10000

// network is the proxies, by name: redis-0 and bus-0 to redis-5 and bus-5, namesrv,
// broker, mariadb, and the gateways by their names.
type network struct {
	server  *toxiproxy.ApiServer
	proxies map[string]*toxiproxy.Proxy
}

func newNetwork(ports rig.Ports) (*network, error) {
	// Some toxics have loggers of their own.
	zerolog.SetGlobalLevel(zerolog.Disabled)
	n := &network{
		server:  toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop()),
		proxies: make(map[string]*toxiproxy.Proxy),
	}
	on := map[string]int{"namesrv": ports.Namesrv, "broker": ports.Broker, "mariadb": ports.MariaDB}
	for i := range redisNodes {
		on[fmt.Sprintf("redis-%d", i)] = ports.Redis + i
		on[fmt.Sprintf("bus-%d", i)] = ports.Redis + i + clusterBusOffset
	}
	for name, port := range on {
		p := strconv.Itoa(port)
		if err := n.add(name, net.JoinHostPort(front, p), net.JoinHostPort("127.0.0.1", p)); err != nil {
			return nil, err
		}
	}
	return n, nil
}

func (n *network) add(name, listen, upstream string) error {
	p := toxiproxy.NewProxy(n.server, name, listen, upstream)
	if err := n.server.Collection.Add(p, true); err != nil {
		return fmt.Errorf("proxy %s: %w", name, err)
	}
	n.proxies[name] = p
	return nil
}

func (n *network) close() error { return n.server.Collection.Clear() }

// toxic is what a proxy does to what passes it; see toxiproxy's README for types and
// attributes.
type toxic struct {
	Name       string         `json:"name"`
	Type       string         `json:"type"`
	Stream     string         `json:"stream"`
	Toxicity   float32        `json:"toxicity"`
	Attributes map[string]int `json:"attributes"`
}

// poison puts a toxic on both directions of a proxy.
func (n *network) poison(proxy, kind string, attributes map[string]int) error {
	for _, stream := range []string{"upstream", "downstream"} {
		text, err := json.Marshal(toxic{kind + "-" + stream, kind, stream, 1, attributes})
		if err != nil {
			return err
		}
		if _, err := n.proxies[proxy].Toxics.AddToxicJson(bytes.NewReader(text)); err != nil {
			return fmt.Errorf("%s on %s: %w", kind, proxy, err)
		}
	}
	return nil
}

// cure takes all toxics off a proxy.
func (n *network) cure(ctx context.Context, proxy string) {
	n.proxies[proxy].Toxics.ResetToxics(ctx)
}

// cut ends all connections through a proxy and refuses new ones, until mend.
func (n *network) cut(proxy string) { n.proxies[proxy].Stop() }

func (n *network) mend(proxy string) error { return n.proxies[proxy].Start() }
