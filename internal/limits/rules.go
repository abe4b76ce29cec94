package limits

import (
	"time"

	"flashgate/internal/strictyaml"
)

// Rules are the contents of a limits file. Every gateway process holds all of them
// by itself: with four gateways a user has four buckets.
type Rules struct {
	Gateway     PerClass    `yaml:"gateway"`
	Address     PerClass    `yaml:"address"`
	User        PerClass    `yaml:"user"`
	Tracked     Tracked     `yaml:"tracked"`
	Flow        Flow        `yaml:"flow"`
	Concurrency Concurrency `yaml:"concurrency"`
	Breakers    Breakers    `yaml:"breakers"`
}

// PerClass is a token bucket for each class of requests.
type PerClass struct {
	Purchase Bucket `yaml:"purchase"`
	Read     Bucket `yaml:"read"`
}

// Bucket is a token bucket; every request takes one token. The bounds keep sums of
// tokens and nanoseconds far inside float64 and int64.
type Bucket struct {
	Rate  float64 `yaml:"rate" required:"true" min:"1" max:"100000000000"`  // tokens that come back a second
	Burst int     `yaml:"burst" required:"true" min:"1" max:"100000000000"` // tokens of a full bucket
}

// Tracked bounds the memory for keyed buckets, some 300 bytes each, for each class.
type Tracked struct {
	Addresses int `yaml:"addresses" default:"65536" min:"1024" max:"10000000"`
	Users     int `yaml:"users" default:"131072" min:"1024" max:"10000000"`
}

// Flow is Sentinel's flow rule of each class, in requests a second.
type Flow struct {
	PurchaseQPS float64 `yaml:"purchase_qps" required:"true" min:"1" max:"100000000000"`
	ReadQPS     float64 `yaml:"read_qps" required:"true" min:"1" max:"100000000000"`
}

// Concurrency is how many requests of a class may be under way at once.
type Concurrency struct {
	Purchase int `yaml:"purchase" default:"65536" min:"1" max:"1000000000"`
	Read     int `yaml:"read" default:"65536" min:"1" max:"1000000000"`
}

// Breakers is a circuit breaker an engine.
type Breakers struct {
	Redis    BreakerRule `yaml:"redis"`
	RocketMQ BreakerRule `yaml:"rocketmq"`
	MySQL    BreakerRule `yaml:"mysql"`
}

// BreakerRule opens a breaker when, of the calls that ended within the last Window,
// at least MinRequests in number, ErrorPercent or more failed. After RetryAfter one
// call tries the engine out: if it succeeds the breaker closes, if not it stays open
// for another RetryAfter.
type BreakerRule struct {
	ErrorPercent int           `yaml:"error_percent" default:"50" min:"1" max:"100"`
	MinRequests  int           `yaml:"min_requests" default:"4" min:"1" max:"1000000"`
	Window       time.Duration `yaml:"window" default:"2s" min:"100ms" max:"1m"`
	RetryAfter   time.Duration `yaml:"retry_after" default:"1s" min:"100ms" max:"1m"`
}

// breakerBuckets is into how many steps a breaker's window slides.
const breakerBuckets = 10

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

func (r *Rules) checked(doc *strictyaml.Doc) (*Rules, error) {
	for _, b := range []struct {
		key  string
		rule BreakerRule
	}{{"redis", r.Breakers.Redis}, {"rocketmq", r.Breakers.RocketMQ}, {"mysql", r.Breakers.MySQL}} {
		if step := breakerBuckets * time.Millisecond; b.rule.Window%step != 0 {
			doc.Fail("breakers."+b.key+".window", "%s: want a multiple of %s", b.rule.Window, step)
		}
	}
	if err := doc.Err(); err != nil {
		return nil, err
	}
	return r, nil
}
