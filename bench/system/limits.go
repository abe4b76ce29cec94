package system

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"flashgate/internal/limits"
)

// tuneTimeoutSeconds is for a limits file to be in force at every gateway; 1 s is promised.
const tuneTimeoutSeconds = 30

// limitsFile is what the gateways of a run with raised limits follow.
func (s *System) limitsFile() string { return filepath.Join(s.Dir, limitsName) }

// Limits are those that the run's gateways were started with.
func (s *System) Limits() (*limits.Rules, error) { return limits.Load(s.limitsFile()) }

// Tune puts limits in force in every gateway that the run started with raised ones, while
// it runs.
func (s *System) Tune(ctx context.Context, r *limits.Rules) error {
	text, err := yaml.Marshal(r)
	if err != nil {
		return err
	}
	// By a rename: nobody reads half of it.
	aside := s.limitsFile() + ".new"
	if err := os.WriteFile(aside, text, 0o600); err != nil {
		return err
	}
	if err := os.Rename(aside, s.limitsFile()); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, tuneTimeoutSeconds*time.Second)
	defer cancel()
	for _, d := range s.daemons {
		if !slices.Contains(s.Gateways, d.listen) {
			continue
		}
		if err := await(ctx, func() error { return s.inForce(ctx, d, text) }); err != nil {
			return fmt.Errorf("%s: %w", d.name, err)
		}
	}
	return nil
}

func (s *System) inForce(ctx context.Context, d *Daemon, text []byte) error {
	out, err := s.run(ctx, "limits", "show", "--json", "--operators-listen", d.operators)
	if err != nil {
		return err
	}
	var shown limits.View
	if err := json.Unmarshal(out, &shown); err != nil {
		return err
	}
	if shown.Refused != nil {
		return fmt.Errorf("limits were refused: %s", strings.Join(shown.Refused.Problems, "; "))
	}
	if shown.Limits != string(text) {
		return errors.New("other limits are still in force")
	}
	return nil
}
