package usage

import (
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

func TestStolen(t *testing.T) {
	require.Equal(t, 1230*time.Millisecond, stealOf([]byte("cpu  10 20 30 40 50 60 70 123 5 5\ncpu0 1 1 1 1 1 1 1 99 1 1\n")))
	require.Zero(t, stealOf([]byte("cpu  10 20 30 40\n")))
	require.Zero(t, stealOf(nil))
	// That nothing was stolen is said, but not where nothing else is.
	at := time.Unix(1_700_000_000, 0)
	for _, self := range []time.Duration{0, time.Second} {
		w := &Watch{processes: []Process{{Name: "self"}, Stolen}, quit: make(chan struct{}), gone: make(chan struct{})}
		close(w.gone)
		w.looks = []look{
			{at: at, cpu: make([]time.Duration, 2), bytes: make([]int64, 2)},
			{at: at.Add(time.Second), cpu: []time.Duration{self, time.Second - self}, bytes: make([]int64, 2)},
		}
		var names []string
		for _, u := range w.Between(at, at.Add(time.Second)) {
			names = append(names, u.Name)
		}
		require.Equal(t, map[time.Duration][]string{0: nil, time.Second: {"self", Stolen.Name}}[self], names)
	}
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
