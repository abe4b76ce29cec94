package system

import (
	"context"
	"time"

	"flashgate/bench/usage"
)

const (
	// quietCores is what the engines and daemons may take of the processor in all when a
	// load begins: with nothing to do they take a quarter of a core.
	quietCores = 0.4
	// quietLookMillis is how long a look at that is.
	quietLookMillis = 500
	// quietTimeoutSeconds bounds the wait: a broker's compiler may go on for half a
	// minute after its first load, and a ledger writes its pages.
	quietTimeoutSeconds = 40
)

// Quiet waits until nothing is left to do of what ran before, or was done to prepare what
// runs next, so that a load is not measured with another's work. It is no error if that
// takes too long: progress says so.
func (s *System) Quiet(ctx context.Context) error {
	// Not only the system's own engines: any of this machine would be in the way.
	processes := append(s.processes(), usage.Engines()...)
	deadline := time.Now().Add(quietTimeoutSeconds * time.Second)
	for said := false; ; said = true {
		began := time.Now()
		watch := usage.Start(processes)
		select {
		case <-ctx.Done():
			watch.Stop()
			return ctx.Err()
		case <-time.After(quietLookMillis * time.Millisecond):
		}
		now := time.Now()
		cores := 0.0
		for _, u := range watch.Between(began, now) {
			cores += u.CPUSeconds / now.Sub(began).Seconds()
		}
		if cores <= quietCores {
			return nil
		}
		if now.After(deadline) {
			s.Progress.Step("not quiet after %d s: engines and daemons take %.1f cores", quietTimeoutSeconds, cores)
			return nil
		}
		if !said {
			s.Progress.Step("waiting until engines and daemons have done what is left to do")
		}
	}
}
