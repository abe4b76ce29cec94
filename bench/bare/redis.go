package bare

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/google/uuid"
	"github.com/redis/rueidis"

	"flashgate/bench/report"
	"flashgate/bench/usage"
)

// sellScript is the least that sells: a unit, if the user has none and there is one.
const sellScript = `
if redis.call('HEXISTS', KEYS[2], ARGV[1]) == 1 then return 0 end
if tonumber(redis.call('GET', KEYS[1])) < 1 then return -1 end
redis.call('DECR', KEYS[1])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
return 1`

const (
	redisTimeoutSeconds = 10              // of one call, with all others in line before it
	redisKeep           = 5 * time.Minute // keys of a run that was killed go by themselves
	sold                = 1               // sellScript's answer
)

// Redis sells with one EVALSHA a purchase through rueidis, which pipelines what is
// called at one time. No addresses = miniredis, in this process.
func Redis(ctx context.Context, o Options, addresses []string) (*report.Report, error) {
	rep := report.New("bare EVALSHA", "")
	var engines []usage.Process
	if len(addresses) == 0 {
		m := miniredis.NewMiniRedis()
		if err := m.StartAddr("127.0.0.1:0"); err != nil {
			return nil, err
		}
		defer m.Close()
		addresses = []string{m.Addr()}
		rep.Set("engine", "miniredis")
	} else {
		engines = usage.Engines()
		rep.Set("engine", "Redis")
	}
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: addresses, DisableCache: true})
	if err != nil {
		return nil, fmt.Errorf("Redis: %w", err)
	}
	defer client.Close()

	tag := "bare-" + uuid.NewString()
	keys := []string{"fgbench:{" + tag + "}:stock", "fgbench:{" + tag + "}:buyers"}
	defer client.Do(context.WithoutCancel(ctx), client.B().Unlink().Key(keys...).Build())
	// One unit more than is sold: the warm-up's.
	if err := client.Do(ctx, client.B().Set().Key(keys[0]).Value(strconv.Itoa(o.Calls+1)).Px(redisKeep).Build()).Error(); err != nil {
		return nil, fmt.Errorf("Redis: %w", err)
	}
	// Not rueidis.Lua: it falls back to the text by itself, which is not what is measured.
	sha, err := client.Do(ctx, client.B().ScriptLoad().Script(sellScript).Build()).ToString()
	if err != nil {
		return nil, fmt.Errorf("SCRIPT LOAD: %w", err)
	}
	// In a cluster the script has to be known to the node that has the keys.
	if err := client.Do(ctx, client.B().Eval().Script(sellScript).Numkeys(2).Key(keys...).Arg("warm-up", "1").Build()).Error(); err != nil {
		return nil, fmt.Errorf("EVAL: %w", err)
	}
	if err := client.Do(ctx, client.B().Pexpire().Key(keys[1]).Milliseconds(redisKeep.Milliseconds()).Build()).Error(); err != nil {
		return nil, err
	}
	users := make([]string, o.Calls)
	for i := range users {
		users[i] = uuid.NewString()
	}
	err = measure(ctx, rep, o.Progress, o.Connections, o.Calls, 1, "sold", engines, func(ctx context.Context, i int) error {
		ctx, cancel := context.WithTimeout(ctx, redisTimeoutSeconds*time.Second)
		defer cancel()
		n, err := client.Do(ctx, client.B().Evalsha().Sha1(sha).Numkeys(2).Key(keys...).Arg(users[i], users[i]).Build()).ToInt64()
		if err == nil && n != sold {
			err = errors.New("sold nothing where there was stock")
		}
		return err
	})
	return rep, err
}
