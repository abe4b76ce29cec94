// Package usage says what processes take of the machine while a load runs: processor
// time and resident memory, out of Linux's /proc. Where there is no /proc it says
// nothing.
package usage

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// intervalMillis is between two looks: a burst of seconds has points enough, and
	// a look at a dozen processes costs some 100 µs.
	intervalMillis = 200
	// ticksPerSecond is USER_HZ, 100 on every Linux that Go runs on.
	ticksPerSecond = 100
	// maxSamples bounds a watch: two hours.
	maxSamples = 36_000
)

// Process is what is watched under one name: one process, or several that are one to
// the reader, as the nodes of a cluster.
type Process struct {
	Name string
	PIDs []int

	stolen bool
}

// Stolen is what other virtual machines took of the processors that this one had work
// for: a figure with much of it says little of what was measured.
var Stolen = Process{Name: "stolen by other machines", stolen: true}

// Usage is what a process took between two moments.
type Usage struct {
	Name       string   `json:"name"`
	CPUSeconds float64  `json:"cpu_seconds"`
	PeakBytes  int64    `json:"peak_bytes"` // resident, summed over its processes
	Samples    []Sample `json:"samples"`
}

// Sample is one look.
type Sample struct {
	Seconds float64 `json:"seconds"` // from the first moment
	Cores   float64 `json:"cores"`   // busy since the look before
	Bytes   int64   `json:"bytes"`   // resident
}

// look is what all processes had taken at one moment, in the order of the watch.
type look struct {
	at    time.Time
	cpu   []time.Duration
	bytes []int64
}

// Watch looks at processes until it is stopped.
type Watch struct {
	processes []Process
	quit      chan struct{}
	gone      chan struct{}
	stop      sync.Once
	looks     []look // read after gone
}

// Start begins to watch.
func Start(processes []Process) *Watch {
	w := &Watch{processes: processes, quit: make(chan struct{}), gone: make(chan struct{})}
	w.look(time.Now())
	go func() {
		defer close(w.gone)
		ticker := time.NewTicker(intervalMillis * time.Millisecond)
		defer ticker.Stop()
		for len(w.looks) < maxSamples {
			select {
			case <-w.quit:
				w.look(time.Now())
				return
			case now := <-ticker.C:
				w.look(now)
			}
		}
	}()
	return w
}

func (w *Watch) look(at time.Time) {
	l := look{at: at, cpu: make([]time.Duration, len(w.processes)), bytes: make([]int64, len(w.processes))}
	for i, p := range w.processes {
		if p.stolen {
			l.cpu[i] = stolen()
		}
		for _, pid := range p.PIDs {
			cpu, bytes := taken(pid)
			l.cpu[i] += cpu
			l.bytes[i] += bytes
		}
	}
	w.looks = append(w.looks, l)
}

// Stop ends the watch. Idempotent.
func (w *Watch) Stop() {
	w.stop.Do(func() { close(w.quit) })
	<-w.gone
}

// Between is what each process took from one moment to another; it stops the watch.
// Processes that took nothing measurable are left out; of what is stolen, that is a figure.
func (w *Watch) Between(from, to time.Time) []Usage {
	w.Stop()
	var out []Usage
	for i, p := range w.processes {
		u := Usage{Name: p.Name}
		for n := 1; n < len(w.looks); n++ {
			before, now := &w.looks[n-1], &w.looks[n]
			// A process that has ended has taken no less than before.
			cpu := max(0, now.cpu[i]-before.cpu[i])
			begin, end := later(before.at, from), earlier(now.at, to)
			if !begin.Before(end) {
				continue
			}
			part := float64(end.Sub(begin)) / float64(now.at.Sub(before.at))
			u.CPUSeconds += cpu.Seconds() * part
			u.PeakBytes = max(u.PeakBytes, now.bytes[i])
			u.Samples = append(u.Samples, Sample{
				Seconds: end.Sub(from).Seconds(),
				Cores:   cpu.Seconds() / now.at.Sub(before.at).Seconds(),
				Bytes:   now.bytes[i],
			})
		}
		if p.stolen && len(out) > 0 || !p.stolen && u.CPUSeconds > 0 {
			out = append(out, u)
		}
	}
	return out
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// taken is the processor time that a process has taken and the memory that it has;
// zeros of one that is not there.
func taken(pid int) (time.Duration, int64) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0
	}
	// The name, in parentheses, may hold anything; the fields behind it are proc(5)'s
	// 3rd and on.
	end := bytes.LastIndexByte(stat, ')')
	fields := bytes.Fields(stat[end+1:])
	const utime, stime, rss = 14 - 3, 15 - 3, 24 - 3
	if end < 0 || len(fields) <= rss {
		return 0, 0
	}
	number := func(i int) int64 {
		n, _ := strconv.ParseInt(string(fields[i]), 10, 64) // the kernel writes numbers there
		return n
	}
	ticks := number(utime) + number(stime)
	return time.Duration(ticks) * time.Second / ticksPerSecond, number(rss) * int64(os.Getpagesize())
}

// stolen is the time that all processors were kept from this machine since it started.
func stolen() time.Duration {
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0
	}
	return stealOf(stat)
}

// stealOf is the steal in a /proc/stat; 0 if the kernel does not tell.
func stealOf(stat []byte) time.Duration {
	const steal = 8 // of the fields of the first line, which is of all processors: proc(5)
	line, _, _ := bytes.Cut(stat, []byte{'\n'})
	fields := bytes.Fields(line)
	if len(fields) <= steal {
		return 0
	}
	ticks, _ := strconv.ParseInt(string(fields[steal]), 10, 64) // the kernel writes numbers there
	return time.Duration(ticks) * time.Second / ticksPerSecond
}

// engines are the processes of the real engines, by what their command lines hold.
var engines = []struct {
	name string
	has  []string // one of them
}{
	{"redis", []string{"redis-server"}},
	{"rocketmq broker", []string{"broker.BrokerStartup"}},
	{"rocketmq name server", []string{"namesrv.NamesrvStartup"}},
	{"mariadb or mysql", []string{"mariadbd", "mysqld"}},
}

// Engines finds the real engines that run on this machine, whoever started them; an
// engine on another machine is not seen.
func Engines() []Process {
	out := make([]Process, len(engines))
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil || len(line) == 0 {
			continue
		}
		if i := engineOf(strings.Split(string(line), "\x00")); i >= 0 {
			out[i].Name = engines[i].name
			out[i].PIDs = append(out[i].PIDs, pid)
		}
	}
	return slices.DeleteFunc(out, func(p Process) bool { return len(p.PIDs) == 0 })
}

// engineOf is the engine of a command line, or -1. What a program does to a server
// (pkill, an editor, a shell) names it too, so the program itself must be the server,
// or Java with a class.
func engineOf(args []string) int {
	program := args[0][strings.LastIndexByte(args[0], '/')+1:]
	for i, e := range engines {
		for _, has := range e.has {
			if program == has || strings.HasPrefix(program, has+" ") {
				return i
			}
			if program == "java" && slices.ContainsFunc(args[1:], func(a string) bool { return strings.HasSuffix(a, has) }) {
				return i
			}
		}
	}
	return -1
}

// peakPollMillis is between two looks of Peak.
const peakPollMillis = 20

// Peak is the most memory that a process has had resident, in bytes, as Linux showed it
// last; it returns when the process has ended. ru_maxrss will not do: it begins with
// that of the process that started this one.
func Peak(pid int) (peak int64) {
	ticker := time.NewTicker(peakPollMillis * time.Millisecond)
	defer ticker.Stop()
	for ; ; <-ticker.C {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		_, line, found := strings.Cut(string(status), "\nVmHWM:")
		if err != nil || !found { // ended: no memory is left to tell of
			return peak
		}
		var kib int64
		if _, err := fmt.Sscan(line, &kib); err == nil {
			peak = kib << 10
		}
	}
}
