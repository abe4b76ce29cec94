//go:build !failpoints

package failpoint

import "time"

// Enabled says whether this build has failpoints.
const Enabled = false

// Hit does nothing in this build.
func Hit(Point) {}

// Now is time.Now in this build.
func Now() time.Time { return time.Now() }
