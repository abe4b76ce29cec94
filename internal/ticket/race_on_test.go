//go:build race

package ticket

const raceAllocs = 10.0
