package bus

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"flashgate/internal/sale"
	"github.com/stretchr/testify/require"
)

func sh(t *testing.T, s string) {
	out, err := exec.Command("bash", "-c", s).CombinedOutput()
	require.NoError(t, err, string(out))
}

func TestOutage(t *testing.T) {
	D := t.TempDir()
	outage, _ := strconv.Atoi(os.Getenv("OUTAGE"))
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	var mu sync.Mutex
	decided := map[sale.ID]Decision{}
	asked := map[sale.ID]int{}
	o := Options{Logger: log, NameServers: []string{"localhost:29976"}, Producers: 4, Check: func(_ context.Context, b *sale.Batch) Decision {
		mu.Lock()
		defer mu.Unlock()
		asked[b.ID]++
		return decided[b.ID]
	}}
	start := time.Now()
	b, err := OpenRocketMQ(o)
	require.NoError(t, err)
	fmt.Println("open", time.Since(start))
	in := newInbox()
	consume(t, b, in.handle, o.Check)
	try := func() error {
		ctx, c := context.WithTimeout(context.Background(), 2*time.Second)
		defer c()
		s := time.Now()
		x := newBatch(50)
		err := b.Send(ctx, x, func() Decision {
			mu.Lock()
			decided[x.ID] = Commit
			mu.Unlock()
			if time.Now().UnixNano()%2 == 0 {
				return Unknown
			}
			return Commit
		})
		msg := ""
		if err != nil {
			msg = strings.ReplaceAll(err.Error(), "\n", " ")
		}
		if err != nil {
			fmt.Printf("%6.1fs send took %v: %.150s\n", time.Since(start).Seconds(), time.Since(s).Round(time.Microsecond), msg)
		}
		return err
	}
	require.Error(t, try())
	fmt.Println("ping:", b.Ping(t.Context()))
	sh(t, "/tmp/rmq/start.sh "+D+" 29976 30961 >/dev/null 2>&1")
	pid := func(n string) string { b, _ := os.ReadFile(D + "/" + n + ".pid"); return strings.TrimSpace(string(b)) }
	defer func() { exec.Command("kill", "-9", pid("ns")).Run(); exec.Command("kill", "-9", pid("broker")).Run() }()
	for {
		ctx, c := context.WithTimeout(context.Background(), time.Second)
		_, err := EnsureTopics(ctx, o.NameServers, DefaultTopic, 4)
		c()
		if err == nil {
			break
		}
		time.Sleep(200 * time.Millisecond)
	}
	fmt.Printf("%6.1fs topic there\n", time.Since(start).Seconds())
	for try() != nil {
		time.Sleep(500 * time.Millisecond)
	}
	fmt.Printf("%6.1fs sends work\n", time.Since(start).Seconds())
	for range 20 {
		require.NoError(t, try())
	}
	for in.len() < 21 {
		time.Sleep(100 * time.Millisecond)
	}
	fmt.Printf("%6.1fs all delivered\n", time.Since(start).Seconds())
	for round := range 2 {
		for range 20 {
			require.NoError(t, try())
		}
		exec.Command("kill", "-9", pid("broker")).Run()
		fmt.Printf("%6.1fs broker killed\n", time.Since(start).Seconds())
		for range 3 {
			require.Error(t, try())
		}
		fmt.Println("ping:", b.Ping(t.Context()))
		end := time.Now().Add(time.Duration(outage*round) * time.Second)
		for time.Now().Before(end) {
			try()
			time.Sleep(5 * time.Second)
		}
		sh(t, "ONLYBROKER=1 /tmp/rmq/start.sh "+D+" 29976 30961 >/dev/null 2>&1")
		for try() != nil {
			time.Sleep(500 * time.Millisecond)
		}
		fmt.Printf("%6.1fs sends work again\n", time.Since(start).Seconds())
		for range 20 {
			require.NoError(t, try())
		}
		mu.Lock()
		n := len(decided)
		mu.Unlock()
		dl := time.Now().Add(100 * time.Second)
		for in.len() < n && time.Now().Before(dl) {
			time.Sleep(100 * time.Millisecond)
		}
		mu.Lock()
		fmt.Printf("%6.1fs delivered %d of %d, asked %d\n", time.Since(start).Seconds(), in.len(), n, len(asked))
		mu.Unlock()
		require.GreaterOrEqual(t, in.len(), n)
	}
	require.NoError(t, b.Close())
}

func TestStranded(t *testing.T) {
	D := t.TempDir()
	sh(t, "MAXCHECK=2 /tmp/rmq/start.sh "+D+" 29976 30961 >/dev/null 2>&1")
	pid := func(n string) string { b, _ := os.ReadFile(D + "/" + n + ".pid"); return strings.TrimSpace(string(b)) }
	defer func() { exec.Command("kill", "-9", pid("ns")).Run(); exec.Command("kill", "-9", pid("broker")).Run() }()
	start := time.Now()
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	ns := []string{"127.0.0.1:29976"}
	for {
		ctx, c := context.WithTimeout(context.Background(), time.Second)
		_, err := EnsureTopics(ctx, ns, DefaultTopic, 4)
		c()
		if err == nil {
			break
		}
		time.Sleep(200 * time.Millisecond)
	}
	b, err := OpenRocketMQ(Options{Logger: log, NameServers: ns, Producers: 1, Check: answering(Unknown)})
	require.NoError(t, err)
	in := newInbox()
	n := map[sale.ID]int{}
	roll := newBatch(1)
	var rolled bool
	consume(t, b, in.handle, func(_ context.Context, x *sale.Batch) Decision {
		if x.ID == roll.ID {
			rolled = true
			return Rollback
		}
		n[x.ID]++
		if n[x.ID] < 3 {
			return Unknown
		}
		return Commit
	})
	x := newBatch(3)
	send(t, b, x, Unknown)
	send(t, b, roll, Unknown)
	trySend(t.Context(), func(ctx context.Context) error {
		return b.send(ctx, "k", []byte("{}"), func() Decision { return Unknown })
	})
	fmt.Printf("%6.1fs sent\n", time.Since(start).Seconds())
	eventually(t, "rescued", func() bool { return in.get(x.ID) != nil && len(in.poisoned()) == 1 })
	fmt.Printf("%6.1fs rescued, rolled %v\n", time.Since(start).Seconds(), rolled)
	require.Equal(t, x, in.get(x.ID))
	require.Nil(t, in.get(roll.ID))
}
