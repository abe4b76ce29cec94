package limits

import (
	"strings"
	"sync"
	"time"

	"go.yaml.in/yaml/v3"
)

// View is what is in force, for operators.
type View struct {
	File     string            `json:"file"`              // that is followed
	Since    time.Time         `json:"since"`             // when these rules were put in force
	Limits   string            `json:"limits"`            // all of them, as a limits file
	Refused  *RefusedFile      `json:"refused,omitempty"` // what the file says now, if it was refused
	Breakers map[Engine]string `json:"breakers"`
	Access   int               `json:"access_rules"`            // blocks and allowances that operators made
	Alone    []string          `json:"cluster_alone,omitempty"` // limits of all gateways that this one keeps by itself
}

// RefusedFile is a limits file that was not put in force.
type RefusedFile struct {
	At       time.Time `json:"at"`
	Problems []string  `json:"problems"` // each with file, line and key
}

// View tells what is in force and since when.
func (l *Limiter) View() View {
	r := l.rules.Load()
	text, err := yaml.Marshal(&r.Rules)
	if err != nil {
		panic("BUG: limits that are no YAML: " + err.Error())
	}
	v := View{Since: r.since.UTC(), Limits: string(text), Breakers: map[Engine]string{}, Access: l.accessRules()}
	v.File, v.Refused = l.history.read()
	for _, e := range Engines {
		v.Breakers[e] = State(l.circuits[e].state.Load()).String()
	}
	for c := range classes {
		if s := l.shares[c]; s.rules.Load() != nil && s.own.Load() != nil {
			v.Alone = append(v.Alone, limitNames[limitCluster][c])
		}
	}
	return v
}

// history is what became of the file that is followed.
type history struct {
	mu      sync.Mutex
	file    string
	problem *RefusedFile
}

func (h *history) from(file string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.file = file
}

// refused notes why the file was refused; nil: it was not.
func (h *history) refused(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.problem = nil
	if err != nil {
		h.problem = &RefusedFile{time.Now().UTC(), strings.Split(err.Error(), "\n")}
	}
}

func (h *history) read() (file string, refused *RefusedFile) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.file, h.problem
}
