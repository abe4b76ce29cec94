package limits

import (
	"fmt"
	"slices"
	"time"

	"flashgate/internal/sale"
	"flashgate/internal/strictyaml"
)

// Rules are the contents of a limits file. But for Cluster, every gateway process holds
// all of them by itself: with four gateways a user has four buckets.
type Rules struct {
	Gateway     PerClass             `yaml:"gateway"`
	Address     PerClass             `yaml:"address"`
	User        PerClass             `yaml:"user"`
	Sale        PerClass             `yaml:"sale"`
	Sales       map[string]NamedSale `yaml:"sales" max:"1000"` // by a sale's id, in place of Sale
	Tracked     Tracked              `yaml:"tracked"`
	Flow        Flow                 `yaml:"flow"`
	Hotspot     Hotspot              `yaml:"hotspot"`
	Concurrency Concurrency          `yaml:"concurrency"`
	System      System               `yaml:"system"`
	Breakers    Breakers             `yaml:"breakers"`
	Cluster     Cluster              `yaml:"cluster"`
	Proxies     Proxies              `yaml:"proxies"`
	Block       Listed               `yaml:"block"`
	Allow       Listed               `yaml:"allow"`
	Ticket      Ticket               `yaml:"ticket"`
}

// PerClass is a token bucket for each class of requests.
type PerClass struct {
	Purchase Bucket `yaml:"purchase"`
	Read     Bucket `yaml:"read"`
}

func (p PerClass) classes() [classes]Bucket { return [classes]Bucket{p.Purchase, p.Read} }

// Bucket is a token bucket; every request takes one token. The bounds keep sums of
// tokens and nanoseconds far inside float64 and int64.
type Bucket struct {
	Rate  float64 `yaml:"rate" required:"true" min:"1" max:"100000000000"`  // tokens that come back a second
	Burst int     `yaml:"burst" required:"true" min:"1" max:"100000000000"` // tokens of a full bucket
}

// NamedSale is what one sale is held to in place of Sale and Hotspot: buckets, and a
// flow rule of Sentinel for each class, in requests a second.
type NamedSale struct {
	Purchase    Bucket  `yaml:"purchase"`
	Read        Bucket  `yaml:"read"`
	PurchaseQPS float64 `yaml:"purchase_qps" required:"true" min:"1" max:"100000000000"`
	ReadQPS     float64 `yaml:"read_qps" required:"true" min:"1" max:"100000000000"`
}

// Tracked is for how many keys there is room, for each class. It takes 32 bytes each, at
// least 128 KiB, from when they come.
type Tracked struct {
	Addresses int `yaml:"addresses" default:"65536" min:"1024" max:"10000000"`
	Users     int `yaml:"users" default:"131072" min:"1024" max:"10000000"`
}

// Flow is Sentinel's flow rule of each class, in requests a second.
type Flow struct {
	PurchaseQPS float64 `yaml:"purchase_qps" required:"true" min:"1" max:"100000000000"`
	ReadQPS     float64 `yaml:"read_qps" required:"true" min:"1" max:"100000000000"`
	// WarmUp is how long the rules for purchases, the named sales' too, take from
	// 1/ColdFactor of their rate, which is what they let in after a quiet time, to all
	// of it; 0s = none. Whole seconds: Sentinel counts in them.
	WarmUp     time.Duration `yaml:"warm_up" default:"0s" min:"0s" max:"10m"`
	ColdFactor int           `yaml:"cold_factor" default:"3" min:"2" max:"100"`
}

// Hotspot is Sentinel's rule on the sale as a parameter: requests a second for any one.
type Hotspot struct {
	PurchaseQPS float64 `yaml:"purchase_qps" required:"true" min:"1" max:"100000000000"`
	ReadQPS     float64 `yaml:"read_qps" required:"true" min:"1" max:"100000000000"`
}

// Concurrency is how many requests of a class may be under way at once.
type Concurrency struct {
	Purchase int `yaml:"purchase" default:"65536" min:"1" max:"1000000000"`
	Read     int `yaml:"read" default:"65536" min:"1" max:"1000000000"`
}

// System is Sentinel's protection of the machine, over both classes.
type System struct {
	// Load1 is the load average of a minute above which no more requests are let in at
	// once than the machine was seen to complete (Sentinel's BBR).
	Load1       float64 `yaml:"load1" default:"1000" min:"0.1" max:"1000000"`
	Concurrency int     `yaml:"concurrency" default:"131072" min:"1" max:"1000000000"` // requests under way
	InboundQPS  float64 `yaml:"inbound_qps" required:"true" min:"1" max:"100000000000"`
}

// Breakers is a circuit breaker an engine.
type Breakers struct {
	Redis    BreakerRule `yaml:"redis"`
	RocketMQ BreakerRule `yaml:"rocketmq"`
	MySQL    BreakerRule `yaml:"mysql"`
}

// BreakerRule opens a breaker when, of the calls that ended within the last Window,
// at least MinRequests in number, ErrorPercent or more failed, or SlowPercent or more
// took longer than SlowCall, or ErrorCount failed. After RetryAfter one call tries the
// engine out: if it succeeds, in time, the breaker closes, if not it stays open for
// another RetryAfter.
type BreakerRule struct {
	ErrorPercent int           `yaml:"error_percent" default:"50" min:"1" max:"100"`
	ErrorCount   int           `yaml:"error_count" default:"1000" min:"1" max:"1000000000"`
	SlowCall     time.Duration `yaml:"slow_call" default:"900ms" min:"1ms" max:"1m"`
	SlowPercent  int           `yaml:"slow_percent" default:"80" min:"1" max:"100"`
	MinRequests  int           `yaml:"min_requests" default:"4" min:"1" max:"1000000"`
	Window       time.Duration `yaml:"window" default:"2s" min:"100ms" max:"1m"`
	RetryAfter   time.Duration `yaml:"retry_after" default:"1s" min:"100ms" max:"1m"`
}

// breakerBuckets is into how many steps a breaker's window slides.
const breakerBuckets = 10

// Cluster is a limit that all gateways keep together, by leases from Redis.
type Cluster struct {
	Enabled  bool   `yaml:"enabled" default:"false"`
	Gateways int    `yaml:"gateways" default:"1" min:"1" max:"10000"` // taken for their number until Redis has told it
	Purchase Bucket `yaml:"purchase"`
	Read     Bucket `yaml:"read"`
}

// Proxies are networks whose word about a client's address is taken.
type Proxies struct {
	Trusted []string `yaml:"trusted" max:"1000"` // addresses or networks; none = headers are not looked at
	Header  string   `yaml:"header" default:"X-Forwarded-For" oneof:"X-Forwarded-For|Forwarded"`
}

// Listed are users (a token's sub) and addresses or networks.
type Listed struct {
	Users     []string `yaml:"users" max:"10000"`
	Addresses []string `yaml:"addresses" max:"10000"`
}

// Ticket says whether a purchase needs a ticket, and how long one is good.
type Ticket struct {
	Required bool          `yaml:"required" default:"false"`
	TTL      time.Duration `yaml:"ttl" default:"30s" min:"1s" max:"1h"`
}

// Load reads and checks a limits file. Its errors are strictyaml.Problems: file, line
// and key of everything that is wrong.
func Load(path string) (*Rules, error) {
	var r Rules
	return r.checked(strictyaml.Read(path, &r))
}

// Parse is Load on the content of a file named file.
func Parse(file string, content []byte) (*Rules, error) {
	var r Rules
	return r.checked(strictyaml.Decode(file, content, &r))
}

// Summary says in a line what the rules let in.
func (r *Rules) Summary() string {
	s := fmt.Sprintf("purchases a second: %g by the gateway (flow %g), %g by an address, %g by a user, %g of a sale; %d sales named",
		r.Gateway.Purchase.Rate, r.Flow.PurchaseQPS, r.Address.Purchase.Rate, r.User.Purchase.Rate, r.Sale.Purchase.Rate, len(r.Sales))
	if r.Cluster.Enabled {
		s += fmt.Sprintf("; %g by all gateways", r.Cluster.Purchase.Rate)
	}
	if r.Ticket.Required {
		s += "; tickets required"
	}
	return s
}

func (r *Rules) checked(doc *strictyaml.Doc) (*Rules, error) {
	for _, b := range []struct {
		key  string
		rule BreakerRule
	}{{"redis", r.Breakers.Redis}, {"rocketmq", r.Breakers.RocketMQ}, {"mysql", r.Breakers.MySQL}} {
		if step := breakerBuckets * time.Millisecond; b.rule.Window%step != 0 {
			doc.Fail("breakers."+b.key+".window", "%s: want a multiple of %s", b.rule.Window, step)
		}
	}
	if r.Flow.WarmUp%time.Second != 0 {
		doc.Fail("flow.warm_up", "%s: want whole seconds", r.Flow.WarmUp)
	}
	for id := range r.Sales {
		if !sale.ValidID(id) {
			doc.Fail("sales."+id, "is no sale's id: want 1–64 of A–Z a–z 0–9 _ -")
		}
	}
	for key, list := range map[string][]string{
		"proxies.trusted": r.Proxies.Trusted, "block.addresses": r.Block.Addresses, "allow.addresses": r.Allow.Addresses,
	} {
		for _, text := range list {
			if _, err := sale.ParseNetwork(text); err != nil {
				doc.Fail(key, "%v", err)
			}
		}
	}
	for key, list := range map[string][]string{"block.users": r.Block.Users, "allow.users": r.Allow.Users} {
		for _, user := range list {
			if len(user) > sale.MaxUserIDBytes {
				doc.Fail(key, "%.20q…: a user is 1–%d bytes", user, sale.MaxUserIDBytes)
			}
		}
	}
	for _, user := range r.Block.Users {
		if slices.Contains(r.Allow.Users, user) {
			doc.Fail("allow.users", "%q is blocked too: want one or the other", user)
		}
	}
	if err := doc.Err(); err != nil {
		return nil, err
	}
	return r, nil
}
