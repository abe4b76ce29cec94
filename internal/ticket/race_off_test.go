//go:build !race

package ticket

const raceAllocs = 0.0
