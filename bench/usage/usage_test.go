package usage

import (
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// awaitTaken keeps a processor busy until this process has taken so much more of it.
func awaitTaken(more time.Duration) {
	before, _ := taken(os.Getpid())
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); {
		if now, _ := taken(os.Getpid()); now-before >= more {
			return
		}
	}
}

func TestAWatchSeesWhatThisProcessTakes(t *testing.T) {
	began := time.Now()
	w := Start([]Process{{Name: "self", PIDs: []int{os.Getpid()}}, {Name: "nobody", PIDs: []int{1 << 30}}})
	awaitTaken(50 * time.Millisecond)
	w.Stop()
	got := w.Between(began, time.Now())
	require.Len(t, got, 1, "what took nothing is left out")
	require.Equal(t, "self", got[0].Name)
	require.GreaterOrEqual(t, got[0].CPUSeconds, 0.04)
	require.Greater(t, got[0].PeakBytes, int64(1<<20))
	require.NotEmpty(t, got[0].Samples)
}

// TestPartsAddUp: however a watch is cut in two, both parts together took the whole.
func TestPartsAddUp(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		began := time.Unix(1_700_000_000, 0)
		w := &Watch{processes: []Process{{Name: "p"}}, quit: make(chan struct{}), gone: make(chan struct{})}
		close(w.gone)
		at, cpu := began, time.Duration(0)
		for range rapid.IntRange(2, 20).Draw(t, "looks") {
			w.looks = append(w.looks, look{at: at, cpu: []time.Duration{cpu}, bytes: []int64{1}})
			at = at.Add(time.Duration(rapid.IntRange(1, 1000).Draw(t, "gap")) * time.Millisecond)
			cpu += time.Duration(rapid.IntRange(1, 1000).Draw(t, "cpu")) * time.Millisecond
		}
		end := w.looks[len(w.looks)-1].at
		cut := began.Add(time.Duration(rapid.Int64Range(0, int64(end.Sub(began))).Draw(t, "cut")))
		sum := 0.0
		for _, part := range [][2]time.Time{{began, cut}, {cut, end}} {
			for _, u := range w.Between(part[0], part[1]) {
				sum += u.CPUSeconds
			}
		}
		require.InDelta(t, w.looks[len(w.looks)-1].cpu[0].Seconds(), sum, 1e-6)
	})
}

// What others took is counted where Linux counts it, and is never less than before.
func TestStolen(t *testing.T) {
	text, err := os.ReadFile("/proc/stat")
	require.NoError(t, err)
	var ticks [8]int64
	_, err = fmt.Sscanf(string(text), "cpu %d %d %d %d %d %d %d %d", &ticks[0], &ticks[1], &ticks[2], &ticks[3], &ticks[4], &ticks[5], &ticks[6], &ticks[7])
	require.NoError(t, err)
	require.GreaterOrEqual(t, stolen(), time.Duration(ticks[7])*time.Second/ticksPerSecond)
	began := time.Now()
	w := Start([]Process{{Name: "self", PIDs: []int{os.Getpid()}}, Stolen})
	awaitTaken(50 * time.Millisecond)
	got := w.Between(began, time.Now())
	require.Len(t, got, 2, "that nothing was stolen is said")
	require.Equal(t, Stolen.Name, got[1].Name)
	require.GreaterOrEqual(t, w.looks[0].cpu[1], time.Duration(ticks[7])*time.Second/ticksPerSecond)
}

func TestEnginesAreToldByTheirProgram(t *testing.T) {
	for want, lines := range map[int][][]string{
		0:  {{"/usr/bin/redis-server 127.0.0.1:7001 [cluster]"}, {"redis-server", "x.conf"}},
		1:  {{"/usr/bin/java", "-Xmx1g", "org.apache.rocketmq.broker.BrokerStartup", "-c", "x"}},
		2:  {{"java", "org.apache.rocketmq.namesrv.NamesrvStartup"}},
		3:  {{"/usr/sbin/mariadbd", "--port=1"}, {"mysqld"}},
		-1: {{"vi", "redis-server"}, {"sh", "-c", "mysqld"}, {"java", "-jar", "x"}, {""}},
	} {
		for _, line := range lines {
			require.Equal(t, want, engineOf(line), "%q", line)
		}
	}
}

func TestThePeakOfAProcess(t *testing.T) {
	cmd := exec.Command("cat") // until its input ends
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	peak := make(chan int64, 1)
	go func() { peak <- Peak(cmd.Process.Pid) }()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); {
		if _, bytes := taken(cmd.Process.Pid); bytes > 0 {
			break
		}
	}
	require.NoError(t, in.Close())
	require.NoError(t, cmd.Wait())
	require.Less(t, <-peak, int64(100<<20), "a little program's, and not this one's")
}
