package load

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
)

const (
	terminalMillis = 200  // between two redrawings of the line on a terminal
	logMillis      = 5000 // between two lines where nobody is watching
	lineColumns    = 110  // a longer line would wrap, and then not be overwritten
)

// Progress says on stderr, while a run lasts, what it is doing. Its zero value is
// silent.
type Progress struct {
	w        io.Writer
	terminal bool

	mu      sync.Mutex
	open    bool      // a line that is to be overwritten is on the screen
	written time.Time // of the last line
}

// NewProgress writes to f: a line that is overwritten on a terminal, else one now and then.
func NewProgress(f *os.File) *Progress {
	info, err := f.Stat()
	return &Progress{w: f, terminal: err == nil && info.Mode()&os.ModeCharDevice != 0}
}

// Step says that something new begins.
func (p *Progress) Step(format string, args ...any) {
	if p.w == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clear()
	_, _ = fmt.Fprintf(p.w, "bench: "+format+"\n", args...)
}

// Update shows how far the present step is, if it is time to.
func (p *Progress) Update(format string, args ...any) {
	if p.w == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if time.Since(p.written) < p.interval() {
		return
	}
	p.written = time.Now()
	line := fmt.Sprintf(format, args...)
	if len(line) > lineColumns {
		line = line[:lineColumns]
	}
	if p.terminal {
		_, _ = fmt.Fprintf(p.w, "\r\x1b[K  %s", line)
		p.open = true
		return
	}
	_, _ = fmt.Fprintf(p.w, "  %s\n", line)
}

func (p *Progress) interval() time.Duration {
	if p.terminal {
		return terminalMillis * time.Millisecond
	}
	return logMillis * time.Millisecond
}

// clear removes the line under way; p.mu is held.
func (p *Progress) clear() {
	if p.open {
		_, _ = io.WriteString(p.w, "\r\x1b[K")
		p.open = false
	}
}

// follow shows the counts of a load until the returned function is called.
func (p *Progress) follow(ks *Kinds, requests int) (finish func()) {
	if p.w == nil {
		return func() {}
	}
	p.mu.Lock()
	p.written = time.Now()
	p.mu.Unlock()
	quit, gone := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(gone)
		ticker := time.NewTicker(terminalMillis * time.Millisecond)
		defer ticker.Stop()
		last, at := int64(0), time.Now()
		for {
			select {
			case <-quit:
				return
			case now := <-ticker.C:
				total := ks.total()
				rate := float64(total-last) / now.Sub(at).Seconds()
				last, at = total, now
				p.Update("%d of %d requests, %.0f/s: %s", total, requests, rate, codesLine(ks.List()))
			}
		}
	}()
	return func() {
		close(quit)
		<-gone
		p.mu.Lock()
		defer p.mu.Unlock()
		p.clear()
	}
}

func codesLine(counts []Count) string {
	var b strings.Builder
	for i, c := range counts {
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "%d %s", c.Count, c.Kind)
	}
	return b.String()
}
