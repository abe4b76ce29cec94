package system

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/google/pprof/profile"
)

// EnvAdminToken is by what operators are known.
const EnvAdminToken = "FLASHGATE_ADMIN_TOKEN"

// Profile is what the system's daemons do with the processor for so long, all together.
func (s *System) Profile(ctx context.Context, length time.Duration) (*profile.Profile, error) {
	profiles := make([]*profile.Profile, len(s.daemons))
	err := sideBySide(ctx, len(profiles), func(ctx context.Context, i int) (err error) {
		profiles[i], err = s.daemons[i].profile(ctx, length, s.Secret(EnvAdminToken))
		return err
	})
	if err != nil {
		return nil, err
	}
	return profile.Merge(profiles)
}

func (d *Daemon) profile(ctx context.Context, length time.Duration, token string) (*profile.Profile, error) {
	ctx, cancel := context.WithTimeout(ctx, length+probeTimeoutSeconds*time.Second)
	defer cancel()
	url := fmt.Sprintf("http://%s/debug/pprof/profile?seconds=%d", d.operators, int(length.Seconds()))
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return nil, err
	}
	r.Header.Set("Authorization", "Bearer "+token)
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d.name, err)
	}
	defer func() { _ = answer.Body.Close() }()
	if answer.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s for its profile: is %s the one that it was started with?", d.name, answer.Status, EnvAdminToken)
	}
	p, err := profile.Parse(answer.Body)
	if err != nil {
		return nil, fmt.Errorf("%s: its profile: %w", d.name, err)
	}
	return p, nil
}
